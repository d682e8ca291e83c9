#!/usr/bin/env python3
"""`rfork inspect`, `diff`, `verify` and `doctor`: what they say of seeds, folders and files."""

import json
import os
import re
import unittest
from pathlib import Path

import util
from util import Tensor


def changed(tensors, name, at=0):
    """The same tensors, one bit of one of them flipped."""
    data = bytearray(tensors[name].data)
    data[at] ^= 1
    return {**tensors, name: Tensor(tensors[name].dtype, tensors[name].shape, bytes(data))}


class Inspect(util.Case):
    def test_a_seed(self):
        model = self.model(shards=2, side_files={"sub/vocab.txt": b"a"})
        with self.seed("--model-path", model) as seed:
            root = seed.root_digest()
            facts = self.rfork_json("inspect", seed.url)
            self.assertEqual(facts["kind"], "seed")
            self.assertEqual(facts["state"], "ready")
            self.assertEqual(facts["model"], "model")
            self.assertEqual(facts["architecture"], "TestForCausalLM")
            self.assertEqual(facts["root_digest"], root)
            self.assertEqual(facts["bytes"], int(seed.fields["bytes"]))
            self.assertEqual({e["transport"] for e in facts["endpoints"]}, {"map", "tcp"})
            text = self.rfork_ok("inspect", seed.url).stdout
            for line in (r"model +model \(TestForCausalLM\)", rf"seed +{seed.url}, ready", rf"root digest +{root}",
                         r"rank +tp0/1: 20 tensors", r"side file +sub/vocab.txt, 1 B"):
                self.assertRegex(text, line)

    def test_a_folder_reads_no_weights_unless_asked(self):
        model = self.model()
        facts = self.rfork_json("inspect", model)
        self.assertEqual(facts["kind"], "files")
        self.assertIsNone(facts["root_digest"])
        self.assertEqual(facts["tensors"], 20)
        self.assertEqual(facts["dtypes"]["BF16"]["tensors"], 16)
        self.assertEqual(sum(d["bytes"] for d in facts["dtypes"].values()), facts["bytes"])
        facts = self.rfork_json("inspect", model, "--digest")
        with self.seed("--model-path", model) as seed:
            self.assertEqual(facts["root_digest"], seed.root_digest())
            self.assertEqual(facts["manifest_id"], self.rfork_json("inspect", seed.url)["manifest_id"])

    def test_a_file(self):
        model = Path(self.model())
        facts = self.rfork_json("inspect", model / "model.safetensors", "--digest")
        self.assertEqual(facts["root_digest"], self.rfork_json("inspect", model, "--digest")["root_digest"])

    def test_tensors_are_listed(self):
        model = self.model(tensors={"b": Tensor("F32", [2, 3]), "a": Tensor("U8", []), "c": Tensor("I64", [0, 5])})
        text = self.rfork_ok("inspect", model, "--tensors").stdout
        self.assertEqual(re.findall(r"^tensor +(.*)$", text, re.M), ["a U8 [] 1", "b F32 [2, 3] 24", "c I64 [0, 5] 0"])
        facts = self.rfork_json("inspect", model, "--tensors")
        self.assertIn("manifest", facts)


class Diff(util.Case):
    def differences(self, *arguments):
        done = self.rfork("diff", "--json", *arguments)
        self.assertIn(done.returncode, (util.OK, util.FAILED), done.stderr)
        found = json.loads(done.stdout)
        self.assertEqual(found["equal"], done.returncode == util.OK)
        return [(d["name"], d["kind"]) for d in found["differences"]]

    def test_equal_however_split(self):
        tensors = util.random_tensors()
        one, three = self.model("one", tensors), self.model("three", tensors, shards=3)
        self.assertEqual(self.differences(one, three), [])
        with self.seed("--model-path", three) as seed, self.seed("--model-path", one, "--mmap") as other:
            for pair in ((seed.url, one), (one, seed.url), (seed.url, other.url), (seed.url, seed.url)):
                self.assertEqual(self.differences(*pair), [], pair)
            self.assertRegex(self.rfork_ok("diff", seed.url, one).stdout, "^equal: root digest xxh3-128:")

    def test_what_differs_is_named(self):
        tensors = util.random_tensors()
        other = changed(tensors, "model.layers.1.mlp.up_proj.weight", 1000)
        other = changed(other, "model.norm.weight", -1)
        del other["model.layers.0.self_attn.q_proj.weight"]
        other["added.weight"] = Tensor("F32", [3])
        other["model.layers.2.input_layernorm.weight"] = Tensor("F16", [64])
        other["model.embed_tokens.weight"] = Tensor("BF16", [250, 128])
        expected = sorted([
            ("model.layers.1.mlp.up_proj.weight", "content"), ("model.norm.weight", "content"),
            ("model.layers.0.self_attn.q_proj.weight", "missing"), ("added.weight", "extra"),
            ("model.layers.2.input_layernorm.weight", "dtype"), ("model.embed_tokens.weight", "shape"),
        ])
        a, b = self.model("a", tensors), self.model("b", other, shards=2)
        self.assertEqual(self.differences(a, b), expected, "in the order of names")
        with self.seed("--model-path", a) as seed, self.seed("--model-path", b) as second:
            self.assertEqual(sorted(self.differences(seed.url, b)), expected)
            self.assertEqual(sorted(self.differences(a, second.url)), expected)
            self.assertEqual(sorted(self.differences(seed.url, second.url)), expected)
            swapped = {name: kind for name, kind in self.differences(second.url, seed.url)}
            self.assertEqual(swapped["added.weight"], "missing")
        done = self.rfork("diff", a, b)
        self.assertEqual(done.returncode, util.FAILED)
        self.assertIn(f"A: {a}\nB: {b}\n", done.stdout)
        self.assertIn("model.embed_tokens.weight: shape [500, 64] in A, [250, 128] in B\n", done.stdout)
        self.assertRegex(done.stdout.splitlines()[-1], "^6 differences: 1 missing, 1 extra, 1 dtype, 1 shape, 2 content$")
        names = self.rfork("diff", "--names-only", a, b).stdout.split()
        self.assertEqual(sorted(names), sorted(name for name, _ in expected))

    def test_one_bit_far_inside(self):
        tensors = util.big_tensors(24 << 20, count=3)
        a = self.model("a", tensors)
        b = self.model("b", changed(tensors, "big.001.weight", 5 << 20))
        self.assertEqual(self.differences(a, b), [("big.001.weight", "content")])

    def test_chunk_sizes_do_not_matter(self):
        tensors = util.random_tensors()
        model = self.model("a", tensors)
        other = self.model("b", changed(tensors, "model.norm.weight"))
        with self.seed("--model-path", model, "--chunk-size", "64KiB") as seed, \
                self.seed("--model-path", model) as same, self.seed("--model-path", other) as differs:
            self.assertEqual(self.differences(seed.url, same.url), [])
            self.assertEqual(self.differences(seed.url, differs.url), [("model.norm.weight", "content")])
            self.assertEqual(self.differences(seed.url, model), [])

    def test_digests_of_two_kinds_cannot_be_compared(self):
        model = self.model()
        with self.seed("--model-path", model) as seed, self.seed("--model-path", model, "--digest", "sha256") as other:
            self.rfork_fails(util.UNSUPPORTED, "diff", seed.url, other.url, says="xxh3-128.*sha256")
            self.assertEqual(self.differences(other.url, model), [])

    def test_side_files_on_request(self):
        tensors = util.random_tensors()
        a = self.model("a", tensors, side_files={"same.txt": b"1", "other.txt": b"2", "only-a.txt": b"3"})
        b = self.model("b", tensors, side_files={"same.txt": b"1", "other.txt": b"4", "only-b.txt": b"5"})
        self.assertEqual(self.differences(a, b), [])
        self.assertEqual(sorted(self.differences(a, b, "--files")),
                         [("only-a.txt", "missing"), ("only-b.txt", "extra"), ("other.txt", "content")])

    def test_trouble_is_more_than_one(self):
        model = self.model()
        self.assertGreater(self.rfork("diff", model, self.path("absent")).returncode, 1)
        self.rfork_fails(util.UNREACHABLE, "diff", model, f"http://127.0.0.1:{util.free_port()}")


class Verify(util.Case):
    def test_a_folder_and_a_seed_have_one_digest(self):
        model = self.model(shards=2)
        with self.seed("--model-path", model) as seed:
            root = seed.root_digest()
            self.assertTrue(self.rfork_ok("verify", model).stdout.startswith(f"{root}  {model}\n"))
            for transport in ("map", "tcp"):
                done = self.rfork_json("verify", seed.url, "--transport", transport)
                self.assertEqual((done["root_digest"], done["transport"], done["verified"], done["state"]),
                                 (root, transport, True, "ready"))
            for against in (root, seed.url, model):
                self.rfork_ok("verify", model, "--against", against)
                self.rfork_ok("verify", seed.url, "--against", against)

    def test_the_digest_of_several_ranks_is_of_what_arrived(self):
        """Also when the seed does not know its own yet."""
        config = {"architectures": ["Own"]}
        plan = self.folder / "own.plan"
        plan.write_text("plan own\ntensor big.{i}.weight column\n".replace("{i}", "*"))
        model = self.model(tensors=util.big_tensors(64 << 20), config=config)
        with self.seed("--model-path", model, "--tp", 2, "--plan", plan) as seed:
            done = self.rfork_json("verify", seed.url, "--transport", "tcp")
            self.assertEqual((done["root_digest"], done["bytes"]), (seed.root_digest(), int(seed.fields["bytes"])))
            self.rfork_ok("verify", seed.url, "--transport", "tcp", "--against", seed.url)

    def test_another_digest_is_a_mismatch(self):
        tensors = util.random_tensors()
        model, other = self.model("a", tensors), self.model("b", changed(tensors, "model.norm.weight"))
        with self.seed("--model-path", model) as seed:
            line = self.rfork_fails(util.MISMATCH, "verify", other, "--against", seed.url)
            self.assertIn(seed.root_digest(), line)
            self.rfork_fails(util.MISMATCH, "verify", seed.url, "--against", "xxh3-128:" + "0" * 32)

    def test_the_kind_of_digest_follows_what_it_is_compared_with(self):
        model = self.model()
        with self.seed("--model-path", model, "--digest", "sha256", "--chunk-size", "128KiB") as seed:
            done = self.rfork_json("verify", model, "--against", seed.url)
            self.assertTrue(done["root_digest"].startswith("sha256:"))
            done = self.rfork_json("verify", model, "--against", seed.root_digest(), "--chunk-size", "128KiB")
            self.assertTrue(done["equal"])

    def test_a_seed_larger_than_our_memory_could_be_verified(self):
        with self.seed("--model-path", self.model(tensors=util.big_tensors(256 << 20))) as seed:
            if util.SANITIZED:
                self.skipTest("sanitizers need memory of their own")
            import resource
            limit = 192 << 20 # of address space beyond what the program itself takes
            done = self.rfork("verify", seed.url, "--transport", "tcp", "--connections", "1",
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
            self.assertEqual(done.returncode, util.OK, done.stderr)

    def test_corrupt_bytes_are_found(self):
        with self.seed("--model-path", self.model()) as seed:
            self.rfork_fails(util.CORRUPT, "verify", seed.url, "--transport", "fault:3,kind=corrupt:tcp", "--retries", "1",
                             says="chunk 0")


class Doctor(util.Case):
    def test_this_machine(self):
        facts = self.rfork_json("doctor")
        self.assertTrue(facts["transports"]["tcp"]["usable"])
        self.assertFalse(facts["transports"]["rdma"]["usable"])
        self.assertIn("not in this build", facts["transports"]["cuda"]["reason"])
        self.assertGreater(facts["host"]["memory_available_bytes"], 0)
        self.assertRegex(self.rfork_ok("doctor").stdout, "(?s)This machine.*sealed memfd.*Transports here.*tcp")

    def test_towards_a_seed(self):
        with self.seed("--model-path", self.model(), "--mmap") as seed:
            facts = self.rfork_json("doctor", seed.url)["seed"]
            self.assertEqual(facts["choice"], "tcp")
            self.assertIn("map: ", facts["not_offered"])
            self.assertRegex(self.rfork_ok("doctor", seed.url).stdout, "a fork would take tcp: ")
        with self.seed("--model-path", self.model("other")) as seed:
            self.assertEqual(self.rfork_json("doctor", seed.url)["seed"]["choice"], "map")

    def test_towards_nobody(self):
        done = self.rfork("doctor", f"http://127.0.0.1:{util.free_port()}")
        self.assertEqual(done.returncode, util.UNREACHABLE)
        self.assertIn("This machine", done.stdout, "what is known is shown all the same")
        self.assertRegex(done.stderr, "^rfork: .*\n$")


if __name__ == "__main__":
    unittest.main()
