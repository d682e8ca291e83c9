"""`rfork bench` on sizes small enough for a test: that it measures, says so in JSON, and judges. No figure is asserted."""

import json
import os
import unittest

import util


class Bench(util.Case):
    def bench(self, *arguments):
        done = self.rfork("bench", "--size", "16MiB", "--map-size", "256MiB", "--load-size", "256MiB", "--rounds", "1",
                          "--folder", os.path.dirname(self.path("x")), *arguments, timeout=120)
        self.assertIn(done.returncode, (0, 1), done.stderr)
        return done

    def test_json_has_every_sample_and_its_verdict(self):
        report = json.loads(self.bench("--only", "loopback,header,manifest,copy", "--json").stdout)
        names = [result["name"] for result in report["results"]]
        self.assertIn("tcp, loopback", names)
        self.assertIn("header of 60,000 tensors: parse", names)
        for result in report["results"]:
            with self.subTest(result["name"]):
                self.assertFalse(result["skipped"], result["note"])
                self.assertGreater(result["value"], 0)
                self.assertGreaterEqual(len(result["samples"]), 1)
                self.assertIsInstance(result["met"], bool)
        tcp = report["results"][names.index("tcp, loopback")]
        self.assertGreater(tcp["ceiling"], 0)
        self.assertIn("verified", tcp["note"])

    def test_the_table_shows_memory_and_ready_times_and_leaves_no_files(self):
        done = self.bench("--only", "memory,start,map")
        for words in ("seed: memory beside the weights", "serve --mmap", "map, 268 MB: ready"):
            self.assertIn(words, done.stdout)
        self.assertEqual([name for name in os.listdir(os.path.dirname(self.path("x"))) if "rfork-bench" in name], [])

    def test_ranks_are_measured_and_their_models_removed(self):
        done = self.bench("--only", "ranks,ranks-memory,reshard-tcp,reshard-map,reshard-plan", "--json")
        results = {result["name"]: result for result in json.loads(done.stdout)["results"]}
        for words in ("serve --mmap --tp 4 --layout sglang", "serve --mmap --tp 4, ",
                      "reshard 4 to 2 over tcp, layout sglang", "reshard 4 to 2 over tcp, layout checkpoint",
                      "reshard 2 to 4 on one host, layout sglang", "reshard 2 to 4 on one host, layout checkpoint",
                      "plan: 64 ranks of 60132 tensors, layout sglang"):
            with self.subTest(words):
                found = [result for name, result in results.items() if name.startswith(words)]
                self.assertEqual(len(found), 1)
                self.assertGreater(found[0]["value"], 0)
                self.assertIsInstance(found[0]["met"], bool)
        # No matter of time: what lies in one piece in the files is not made.
        memory = [result for name, result in results.items() if name.endswith("memory made")]
        self.assertTrue(memory[0]["met"], memory)
        self.assertEqual([name for name in os.listdir(os.path.dirname(self.path("x"))) if "rfork-bench" in name], [])

    def test_an_unknown_part_is_refused(self):
        self.rfork_fails(util.INVALID if hasattr(util, "INVALID") else 2, "bench", "--only", "warp", says="warp")

    def test_what_does_not_fit_memory_is_refused_before_it_starts(self):
        self.rfork_fails(11, "bench", "--size", "64TiB", says="--size")


if __name__ == "__main__":
    unittest.main()
