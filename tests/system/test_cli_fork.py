#!/usr/bin/env python3
"""`rfork fork`: what arrives is what the seed has, byte for byte, and a fork that fails leaves nothing behind.

ctest: timeout=600
"""

import os
import pty
import select
import resource
import signal
import subprocess
import time
import unittest
from pathlib import Path

import util
from util import Tensor

STALL = "fault:1,kind=stall,after=64KiB:tcp"
SLOW = "fault:7,kind=delay:tcp" # a hundred chunks take some seconds


class Folders(util.Case):
    def check(self, model, *serve):
        """Forks a folder by each transport; every file is as the seed's."""
        with self.seed("--model-path", model, *serve) as seed:
            for transport in seed.fields["transports"].split(","):
                copy = self.path(f"copy-{transport}")
                done = self.rfork_json("fork", seed.url, "-o", copy, "--transport", transport)
                self.assertTrue(done["verified"])
                self.assertEqual(done["root_digest"], seed.root_digest())
                self.assert_same_files(model, copy)

    def test_a_single_file_model(self):
        self.check(self.model())

    def test_a_sharded_model(self):
        self.check(self.model(shards=4))

    def test_from_the_page_cache(self):
        self.check(self.model(shards=2), "--mmap")

    def test_by_small_chunks(self):
        self.check(self.model(shards=2), "--chunk-size", "64KiB", "--digest", "sha256")

    def test_side_files_and_those_in_sub_folders(self):
        self.check(self.model(side_files={
            "tokenizer.json": b"{}", "generation_config.json": b"{\"eos_token_id\": 2}", "empty.txt": b"",
            "onnx/config.json": b"{}", "a name with blanks.txt": b"x", "vocab-\u00fc.txt": b"\xff\x00", "README.md": b"# hi\n",
        }))

    def test_all_dtypes(self):
        self.check(self.model(tensors={f"t.{dtype}": Tensor(dtype, [3, 8]) for dtype in util.DTYPE_BITS}))

    def test_zero_sizes_and_scalars(self):
        self.check(self.model(tensors={
            "empty": Tensor("F32", [0]), "flat": Tensor("BF16", [4, 0, 3]), "scalar": Tensor("F64", []),
            "one": Tensor("U8", [1]), "odd": Tensor("I8", [12345]), "zz": Tensor("F32", [0]),
        }))

    def test_nothing_but_zero_sizes(self):
        self.check(self.model(tensors={"empty": Tensor("F32", [0]), "flat": Tensor("BF16", [4, 0])}))

    def test_tied_tensors_that_are_not_in_the_file(self):
        self.check(self.model(config={"architectures": ["TestForCausalLM"], "tie_word_embeddings": True}))

    def test_headers_with_metadata_and_odd_names(self):
        tensors = {"weight/with \"quotes\"": Tensor("F32", [2]), "\u00fcber.\u6a21\u578b": Tensor("F16", [3]), "a": Tensor("U8", [7])}
        self.check(self.model(tensors=tensors, metadata={"format": "pt", "note": "x" * 3000}))

    def test_many_small_tensors(self):
        self.check(self.model(tensors={f"layer.{i:05}.bias": Tensor("F32", [i % 5]) for i in range(5000)}, shards=3))

    def test_tensors_larger_than_chunks(self):
        self.check(self.model(tensors=util.big_tensors(40 << 20, count=3)))

    def test_a_file_alone(self):
        model = Path(self.model("alone", side_files={"other.txt": b"not the model's"}))
        with self.seed("--model-path", model / "model.safetensors") as seed:
            self.rfork_ok("fork", seed.url, "-o", self.path("copy"))
            self.assertEqual(util.folder_content(self.path("copy")),
                             {"model.safetensors": util.folder_content(model)["model.safetensors"]})

    def test_into_an_empty_folder(self):
        model = self.model()
        os.mkdir(self.path("copy"))
        with self.seed("--model-path", model) as seed:
            self.rfork_ok("fork", seed.url, "-o", self.path("copy"), "--no-sync")
            self.assert_same_files(model, self.path("copy"))

    def test_a_trailing_slash_does_not_matter(self):
        model = self.model()
        with self.seed("--model-path", model + "/") as seed:
            self.rfork_ok("fork", seed.url + "/", "-o", self.path("copy") + "/")
            self.assert_same_files(model, self.path("copy"))


class Results(util.Case):
    def test_json_has_what_scripts_need(self):
        model = self.model(tensors=util.big_tensors(20 << 20))
        with self.seed("--model-path", model) as seed:
            root = seed.root_digest()
            done = self.rfork_json("fork", seed.url, "--transport", "tcp", "--connections", "2")
            self.assertEqual(done["bytes"], int(seed.fields["bytes"]))
            self.assertEqual(done["wire_bytes"], done["bytes"])
            self.assertEqual(done["transport"], "tcp")
            self.assertIn("2 connections", done["reason"])
            self.assertEqual(done["connections"], 2)
            self.assertEqual(done["chunks"], 3)
            self.assertEqual(done["chunks_retried"], 0)
            self.assertTrue(done["verified"])
            self.assertEqual(done["root_digest"], root)
            self.assertGreater(done["seconds"], 0)
            self.assertAlmostEqual(done["bytes_per_s"], done["bytes"] / done["seconds"], delta=done["bytes_per_s"] / 100)
            self.assertEqual(done["model"], "model")
            self.assertEqual(done["tensors"], 8)
            self.assertIsNone(done["output"])

    def test_under_map_no_byte_moves_and_verifying_is_asked_for(self):
        with self.seed("--model-path", self.model()) as seed:
            done = self.rfork_json("fork", seed.url)
            self.assertEqual(done["transport"], "map")
            self.assertTrue(done["mapped"])
            self.assertEqual(done["wire_bytes"], 0)
            self.assertFalse(done["verified"])
            self.assertIsNone(done["bytes_per_s"])
            done = self.rfork_json("fork", seed.url, "--verify")
            self.assertTrue(done["verified"])
            self.assertEqual(done["root_digest"], seed.root_digest())

    def test_copy_takes_memory_of_its_own(self):
        with self.seed("--model-path", self.model()) as seed:
            done = self.rfork_json("fork", seed.url, "--copy")
            self.assertEqual(done["transport"], "map (copy)")
            self.assertFalse(done["mapped"])
            self.assertTrue(done["verified"])

    def test_no_verify_is_said(self):
        with self.seed("--model-path", self.model()) as seed:
            done = self.rfork_json("fork", seed.url, "--transport", "tcp", "--no-verify")
            self.assertFalse(done["verified"])
            text = self.rfork_ok("fork", seed.url, "--transport", "tcp", "--no-verify").stdout
            self.assertIn("not verified", text)

    def test_lines_for_people(self):
        with self.seed("--model-path", self.model()) as seed:
            text = self.rfork_ok("fork", seed.url, "-o", self.path("copy"), "--transport", "tcp")
            self.assertRegex(text.stdout, rf"^model: 262 kB in .*, .*B/s, verified; wrote {self.path('copy')}\n"
                                          r"by tcp: .*\nroot digest xxh3-128:[0-9a-f]{32}\n$")
            self.assertEqual(text.stderr, "", "no progress where there is no terminal")

    def test_corrupt_chunks_are_read_again(self):
        model = self.model(tensors=util.big_tensors(16 << 20))
        with self.seed("--model-path", model, "--chunk-size", "1MiB") as seed:
            done = self.rfork_json("fork", seed.url, "-o", self.path("copy"), "--transport",
                                   "fault:5,kind=corrupt,times=2:tcp", "--connections", "1")
            self.assertGreater(done["chunks_retried"], 0)
            self.assertGreater(done["wire_bytes"], done["bytes"])
            self.assert_same_files(model, self.path("copy"))

    def test_what_stays_corrupt_fails(self):
        with self.seed("--model-path", self.model()) as seed:
            line = self.rfork_fails(util.CORRUPT, "fork", seed.url, "-o", self.path("copy"), "--transport",
                                    "fault:5,kind=corrupt:tcp")
            self.assertRegex(line, "chunk 0")
            self.assert_nothing_left(self.path("copy"))

    def test_environment_gives_defaults(self):
        with self.seed("--model-path", self.model()) as seed:
            done = self.rfork_json("fork", seed.url, env={"RFORK_TRANSPORT": "tcp", "RFORK_CONNECTIONS": "1"})
            self.assertEqual((done["transport"], done["connections"]), ("tcp", 1))
            done = self.rfork_json("fork", seed.url, "--transport", "map", env={"RFORK_TRANSPORT": "tcp"})
            self.assertEqual(done["transport"], "map")


class DryRun(util.Case):
    def test_by_tcp_it_is_timed(self):
        with self.seed("--model-path", self.model(tensors=util.big_tensors(32 << 20))) as seed:
            done = self.rfork_json("fork", seed.url, "--dry-run", "--transport", "tcp", "-o", self.path("copy"))
            self.assertTrue(done["dry_run"])
            self.assertEqual(done["bytes"], int(seed.fields["bytes"]))
            self.assertEqual(done["move_bytes"], done["bytes"])
            self.assertGreater(done["estimated_seconds"], 0)
            self.assertGreater(done["probe_bytes"], 0)
            self.assertEqual(done["transport"], "tcp")
            self.assert_nothing_left(self.path("copy"))
            text = self.rfork_ok("fork", seed.url, "--dry-run", "--transport", "tcp").stdout
            self.assertRegex(text, r"33.6 MB in 8 tensors, 2 files\nby tcp: .*\nabout .*: a probe of .*B/s over")

    def test_a_folder_in_the_way_is_seen_before(self):
        full = self.folder / "full"
        full.mkdir()
        (full / "file").touch()
        with self.seed("--model-path", self.model()) as seed:
            for output, says in ((full, "not empty .it holds file"), (full / "file", "exists and is not a folder"),
                                 (self.folder / "none" / "copy", "open folder .*none")):
                line = self.rfork_fails(self.rfork("fork", seed.url, "-o", output).returncode, "fork", seed.url, "--dry-run",
                                        "-o", output, says=says)
                self.assertIn(str(output), line)
            (full / "file").unlink()
            self.rfork_ok("fork", seed.url, "--dry-run", "-o", full)
            self.assertEqual(list(self.folder.glob("*partial*")), [])

    def test_by_map_nothing_would_move(self):
        with self.seed("--model-path", self.model()) as seed:
            done = self.rfork_json("fork", seed.url, "--dry-run")
            self.assertEqual((done["transport"], done["move_bytes"]), ("map", 0))
            self.assertIn("no bytes would move", self.rfork_ok("fork", seed.url, "--dry-run").stdout)
            util.wait_until(lambda: seed.metrics()["rfork_leases"] == 0, 10, "no lease left")


class Failing(util.Case):
    def test_no_seed_there(self):
        port = util.free_port()
        begin = time.monotonic()
        line = self.rfork_fails(util.UNREACHABLE, "fork", f"http://127.0.0.1:{port}", "-o", self.path("copy"))
        self.assertIn(str(port), line)
        self.assertLess(time.monotonic() - begin, 5 * util.SLOW)
        self.assert_nothing_left(self.path("copy"))

    def test_an_existing_folder_is_not_touched(self):
        model = self.model()
        (Path(self.path("copy"))).mkdir()
        Path(self.path("copy"), "mine.txt").write_text("mine")
        with self.seed("--model-path", model) as seed:
            self.rfork_fails(util.INVAL, "fork", seed.url, "-o", self.path("copy"), says="not empty")
            Path(self.path("file")).write_text("mine")
            self.rfork_fails(util.INVAL, "fork", seed.url, "-o", self.path("file"))
        self.assertEqual(os.listdir(self.path("copy")), ["mine.txt"])
        self.assertEqual(Path(self.path("file")).read_text(), "mine")

    def test_a_parent_that_does_not_exist(self):
        with self.seed("--model-path", self.model()) as seed:
            self.rfork_fails(util.SYS, "fork", seed.url, "-o", self.path("no/such/folder"), says="No such file")

    def test_a_full_disk(self):
        mount = self.path("small")
        os.mkdir(mount)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"no small file system can be mounted here: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", mount])
        with self.seed("--model-path", self.model(tensors=util.big_tensors(16 << 20))) as seed:
            line = self.rfork_fails(util.NOMEM, "fork", seed.url, "-o", mount + "/copy")
            self.assertRegex(line, r"16.8 MB|16\.\d MB|\d{8}")
        self.assertEqual(os.listdir(mount), [])

    def started(self, seed, *extra):
        """A fork that is under way: bytes arrive, and it is not yet done."""
        reader = self.start("fork", seed.url, "-o", self.path("copy"), "--connections", "1", *extra)
        util.wait_until(lambda: seed.metrics()['rfork_sent_bytes_total{transport="tcp"}'] > 0, 30, "some bytes")
        self.assertTrue(reader.running(), reader.stderr + reader.stdout)
        return reader

    def slow_seed(self):
        return self.seed("--model-path", self.model(tensors=util.big_tensors(64 << 20)), "--chunk-size", "64KiB",
                         "--drain-timeout", "200ms")

    def test_a_seed_that_is_killed_meanwhile(self):
        seed = self.slow_seed()
        reader = self.started(seed, "--transport", SLOW)
        seed.kill()
        begin = time.monotonic()
        self.assertEqual(reader.wait(20), util.UNREACHABLE, reader.stderr)
        self.assertLess(time.monotonic() - begin, 8 * util.SLOW, "it was told by the connection, not by a deadline")
        self.assertIn(seed.url, reader.stderr)
        self.assert_nothing_left(self.path("copy"))

    def test_what_a_killed_reader_leaves_is_no_model(self):
        seed = self.slow_seed()
        reader = self.started(seed, "--transport", STALL, "--timeout", "60s")
        reader.kill()
        folder = os.path.dirname(self.path("copy"))
        left = [os.path.join(folder, name) for name in os.listdir(folder) if ".rfork-partial-" in name]
        self.assertEqual(len(left), 1, "a killed process cannot tidy up")
        self.assertFalse(os.path.exists(self.path("copy")))
        for name in ("serve", "inspect", "verify"):
            arguments = ["--model-path", left[0], "--port", "0"] if name == "serve" else [left[0]]
            self.assertNotEqual(self.rfork(name, *arguments).returncode, 0, f"{name} took a half-forked folder")
        seed.kill()

    def test_a_file_size_limit_is_an_error(self):
        seed = self.slow_seed()
        done = self.rfork("fork", seed.url, "-o", self.path("copy"),
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
        self.assertNotIn(done.returncode, (0, -signal.SIGXFSZ))
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assert_nothing_left(self.path("copy"))
        seed.kill()

    def test_a_seed_that_stops_answering(self):
        seed = self.slow_seed()
        reader = self.started(seed, "--transport", SLOW, "--timeout", "1s", "--retries", "0")
        seed.send(signal.SIGSTOP)
        try:
            self.assertIn(reader.wait(20), (util.TIMEOUT, util.UNREACHABLE), reader.stderr)
        finally:
            seed.send(signal.SIGCONT)
        self.assert_nothing_left(self.path("copy"))

    def test_signals_leave_nothing(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number):
                seed = self.slow_seed()
                reader = self.started(seed, "--transport", STALL, "--timeout", "60s")
                reader.send(number)
                self.assertEqual(reader.wait(5), util.CANCELLED, reader.stderr)
                self.assert_nothing_left(self.path("copy"))
                util.wait_until(lambda: seed.metrics()["rfork_leases"] == 0, 5, "no lease left")
                seed.kill()

    def test_a_signal_while_a_seed_is_waited_for(self):
        reader = self.start("fork", f"http://127.0.0.1:{util.free_port()}", "--wait-ready", "10min")
        util.wait_until(lambda: self.handles_sigint(reader), 10, "its handler")
        reader.send(signal.SIGINT)
        self.assertEqual(reader.wait(5), util.CANCELLED, reader.stderr)

    @staticmethod
    def handles_sigint(process):
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.split("SigCgt:\t")[1].split()[0], 16)
        return caught >> (signal.SIGINT - 1) & 1


class Terminal(util.Case):
    def test_progress_on_a_terminal(self):
        with self.seed("--model-path", self.model(tensors=util.big_tensors(64 << 20)), "--chunk-size", "64KiB") as seed:
            ours, theirs = pty.openpty()
            process = subprocess.Popen(
                [util.RFORK, "fork", seed.url, "--transport", SLOW, "--connections", "1"], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=theirs, text=True, env=util.environment({"TERM": "xterm"}))
            os.close(theirs)
            seen = b""
            end = time.monotonic() + 60 * util.SLOW
            while time.monotonic() < end:
                ready, _, _ = select.select([ours], [], [], 0.2)
                if ready:
                    try:
                        piece = os.read(ours, 4096)
                    except OSError: # EIO: the other side is closed
                        break
                    if not piece:
                        break
                    seen += piece
            out, _ = process.communicate(timeout=10)
            os.close(ours)
            self.assertEqual(process.returncode, util.OK, seen)
            text = seen.decode()
            if time.monotonic() - end > 0 or "left" not in text:
                self.assertRegex(out, r"in (\d+ ms|1\.\d s)", "it showed nothing although it took long")
                self.skipTest("it was done before there was anything to show")
            lines = text.split("\r")
            self.assertTrue(all(len(line) <= 79 for line in lines), lines)
            self.assertRegex(text, r"model  \S+ MB of 67.1 MB  \S+ .?B/s  .* left")
            self.assertEqual(lines[-1].strip(), "", "the line is gone at the end")


if __name__ == "__main__":
    unittest.main()
