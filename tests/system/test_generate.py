#!/usr/bin/env python3
"""tools/models/generate.py: models of any size that are valid, reproducible, and as large as asked."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import unittest
from pathlib import Path

import util

TOOL = util.SOURCE / "tools/models/generate.py"


def written(path):
    """What tells whether a file was written again: not its time of access, which a reader moves."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Case(util.Case):
    def generate(self, *arguments):
        return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60 * util.SLOW, cwd=self.folder)

    def made(self, name, *arguments):
        """The folder, made without complaint."""
        done = self.generate("--out", self.path(name), *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertRegex(done.stdout, rf"^{self.path(name)}: tensors=\d+ bytes=\d+ shards=\d+ dtype=\w+ .*\n$")
        return Path(self.path(name))

    def fails(self, *arguments, says, code=1):
        """One line says why, and nothing is left."""
        before = util.folder_content(self.folder)
        done = self.generate(*arguments)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertRegex(done.stderr.splitlines()[-1], says)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(util.folder_content(self.folder), before)

    def read(self, folder):
        """All tensors of a folder, its files checked: neither holes nor overlaps, each tensor in one file."""
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            raw = path.read_bytes()
            (length,) = struct.unpack("<Q", raw[:8])
            header = json.loads(raw[8 : 8 + length])
            self.assertEqual(length % 8, 0)
            self.assertEqual(header.pop("__metadata__"), {"format": "pt"})
            at = 0
            for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
                self.assertEqual(begin, at)
                at = end
            self.assertEqual(8 + length + at, len(raw), path)
            tensors, _ = util.read_safetensors(path)
            self.assertFalse(set(found) & set(tensors))
            found |= tensors
        return found

    def sizes(self, folder):
        """Bytes of all tensors, by the headers alone."""
        total = 0
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
            total += path.stat().st_size - 8 - length
        return total


class Models(Case):
    def test_it_is_a_qwen3_model(self):
        folder = self.made("m", "--layers", 2, "--hidden", 64, "--vocab", 100)
        config = json.loads((folder / "config.json").read_text())
        self.assertEqual((config["architectures"], config["model_type"]), (["Qwen3ForCausalLM"], "qwen3"))
        self.assertEqual((config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]), (2, 64, 100))
        tensors = self.read(folder)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        heads, kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        expected = {"model.embed_tokens.weight": [100, 64], "model.norm.weight": [64], "lm_head.weight": [100, 64]}
        for layer in range(2):
            prefix, inner = f"model.layers.{layer}.", config["intermediate_size"]
            expected |= {
                prefix + "input_layernorm.weight": [64], prefix + "post_attention_layernorm.weight": [64],
                prefix + "self_attn.q_proj.weight": [heads * dim, 64], prefix + "self_attn.k_proj.weight": [kv * dim, 64],
                prefix + "self_attn.v_proj.weight": [kv * dim, 64], prefix + "self_attn.o_proj.weight": [64, heads * dim],
                prefix + "self_attn.q_norm.weight": [dim], prefix + "self_attn.k_norm.weight": [dim],
                prefix + "mlp.gate_proj.weight": [inner, 64], prefix + "mlp.up_proj.weight": [inner, 64],
                prefix + "mlp.down_proj.weight": [64, inner],
            }
        self.assertEqual(shapes, expected)
        self.assertEqual({tensor.dtype for tensor in tensors.values()}, {"BF16"})

    def test_a_tied_one_has_no_head(self):
        folder = self.made("m", "--layers", 1, "--hidden", 64, "--tied")
        self.assertNotIn("lm_head.weight", self.read(folder))
        self.assertIs(json.loads((folder / "config.json").read_text())["tie_word_embeddings"], True)

    def test_every_dtype_is_valid_and_finite(self):
        for dtype in util.DTYPE_BITS:
            with self.subTest(dtype):
                folder = self.made(dtype, "--dtype", dtype, "--layers", 1, "--hidden", 32)
                tensors = self.read(folder)
                self.assertEqual({tensor.dtype for tensor in tensors.values()}, {dtype})
                data = b"".join(tensor.data for tensor in tensors.values())
                self.check_values(dtype, data)
                self.assertGreater(len(set(data)), 1)

    def check_values(self, dtype, data):
        codes = {"F16": "e", "F32": "f", "C64": "f", "F64": "d"}
        if dtype in codes:
            width = struct.calcsize(codes[dtype])
            values = struct.unpack(f"<{len(data) // width}{codes[dtype]}", data)
            self.assertTrue(all(math.isfinite(value) for value in values))
            self.assertTrue(any(value < 0 for value in values) and any(value > 0 for value in values))
        elif dtype == "BF16":
            self.assertTrue(all(high & 0x7F < 0x7F for high in data[1::2]))
        elif dtype == "BOOL":
            self.assertLessEqual(set(data), {0, 1})
        elif dtype == "F8_E4M3":
            self.assertFalse({0x7F, 0xFF} & set(data))
        elif dtype == "F8_E5M2":
            self.assertTrue(all(byte & 0x7C != 0x7C for byte in data))
        elif dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ"):
            self.assertNotIn(0x80, data)
        elif dtype == "F8_E8M0":
            self.assertNotIn(0xFF, data)

    def test_the_program_serves_it(self):
        for name, arguments in (("one", []), ("five", ["--shards", 5]), ("packed", ["--dtype", "F6_E2M3"])):
            with self.subTest(name):
                folder = self.made(name, "--bytes", "1MiB", *arguments)
                facts = self.rfork_json("inspect", folder)
                self.assertEqual((facts["bytes"], facts["architecture"]), (self.sizes(folder), "Qwen3ForCausalLM"))
                self.rfork_ok("verify", folder)

    def test_shards_have_an_index_and_about_the_same_size(self):
        folder = self.made("m", "--bytes", "8MiB", "--layers", 8, "--shards", 4)
        names = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
        self.assertEqual(sorted(path.name for path in folder.iterdir()),
                         sorted([*names, "config.json", "model.safetensors.index.json"]))
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        where = {}
        for name in names:
            where |= dict.fromkeys(util.read_safetensors(folder / name)[0], name)
        self.assertEqual(index["weight_map"], where)
        self.assertEqual(index["metadata"]["total_size"], self.sizes(folder))
        files = [(folder / name).stat().st_size for name in names]
        self.assertLess(max(files), 2 * min(files), files)

    def test_any_number_of_tensors(self):
        for count in (14, 113, 500, 3000):
            folder = self.made(f"m{count}", "--tensors", count, "--bytes", "2MiB")
            self.assertEqual(len(self.read(folder)), count)


class Sizes(Case):
    def check(self, wanted, name, *arguments):
        folder = self.made(name, *arguments)
        size = self.sizes(folder)
        self.assertLess(abs(size - wanted) / wanted, 0.01, f"{arguments}: {size}")

    def test_bytes_are_met_within_a_percent(self):
        for text, wanted, dtype in (("1MiB", 1 << 20, "BF16"), ("3MB", 3_000_000, "F32"), ("17MiB", 17 << 20, "BF16"),
                                    ("2500000", 2_500_000, "F4"), ("64MB", 64_000_000, "U8")):
            with self.subTest(text):
                self.check(wanted, text, "--bytes", text, "--dtype", dtype)

    def test_with_what_is_given_the_rest_is_chosen(self):
        for name, arguments in (("layers", ["--layers", 3]), ("hidden", ["--hidden", 128]), ("tied", ["--tied"]),
                                ("both", ["--layers", 5, "--hidden", 128]), ("tensors", ["--tensors", 200])):
            with self.subTest(name):
                self.check(6_000_000, name, "--bytes", "6MB", *arguments)


class Reproducible(Case):
    def test_the_same_arguments_make_the_same_bytes(self):
        arguments = ["--bytes", "1MiB", "--shards", 2, "--seed", 7]
        one, other = self.made("one", *arguments), self.made("other", *arguments)
        self.assert_same_files(one, other)

    def test_another_seed_makes_other_bytes(self):
        one = self.made("one", "--bytes", "1MiB", "--seed", 1)
        other = self.made("other", "--bytes", "1MiB", "--seed", 2)
        first, second = self.read(one), self.read(other)
        self.assertEqual(set(first), set(second))
        self.assertTrue(all(first[name].data != second[name].data for name in first))

    def test_shards_do_not_change_the_tensors(self):
        one, three = self.made("one", "--bytes", "1MiB"), self.made("three", "--bytes", "1MiB", "--shards", 3)
        first, second = self.read(one), self.read(three)
        self.assertEqual(set(first), set(second))
        self.assertTrue(all(first[name].data == second[name].data for name in first))

    def test_tensors_differ_from_each_other(self):
        big = [tensor.data[:64] for tensor in self.read(self.made("m", "--bytes", "1MiB")).values() if len(tensor.data) >= 64]
        self.assertEqual(len(set(big)), len(big))

    def test_what_is_there_is_kept_or_replaced_when_asked(self):
        folder = self.made("m", "--bytes", "1MiB")
        before = written(folder / "model.safetensors")
        self.fails("--out", folder, "--bytes", "1MiB", says="is there already; say --force")
        done = self.generate("--out", folder, "--bytes", "1MiB", "--reuse")
        self.assertRegex(done.stdout, "reused$")
        self.assertEqual(written(folder / "model.safetensors"), before)
        done = self.generate("--out", folder, "--bytes", "2MiB", "--reuse")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(self.sizes(folder), 1.9 * (1 << 20))
        os.truncate(folder / "model.safetensors", 1000)
        done = self.generate("--out", folder, "--bytes", "2MiB", "--reuse")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotRegex(done.stdout, "reused$")
        self.read(folder)
        self.made("m", "--bytes", "1MiB", "--force")
        self.assertEqual(os.listdir(self.folder), ["m"])


class Errors(Case):
    def test_arguments_that_make_no_model(self):
        out = ["--out", self.path("m")]
        self.fails(*out, says="say how large: --bytes, --tensors, or --layers and --hidden")
        self.fails(*out, "--layers", 2, says="say how large")
        self.fails(*out, "--bytes", 0, says="at least one element")
        self.fails(*out, "--bytes", 10, says="the smallest model .* has \\d+ bytes")
        self.fails(*out, "--tensors", 5, says="--tensors 5: a model has at least 14")
        self.fails(*out, "--tensors", 100, says="cannot have this number; from 113 on any will do")
        self.fails(*out, "--tensors", 113, "--layers", 3, says="--tensors 113 means 10 layers, not 3")
        self.fails(*out, "--bytes", "1MiB", "--shards", 10000, says="tensors cannot fill 10000 shards")
        self.fails(*out, "--layers", 2, "--hidden", 64, "--heads", 3, "--kv-heads", 2, says="3 heads cannot share 2 KV heads")
        self.fails(*out, "--bytes", "1MB", "--layers", 1, "--hidden", 8, "--vocab", 9, says="leave one of them")
        for bad in (["--bytes", "1XB"], ["--bytes", "-1"], ["--dtype", "F99"], ["--layers", "0"], ["--shards", "x"], ["--frob"]):
            self.fails(*out, *bad, says="generate.py: error: ", code=2)
        self.fails(says="required: --out", code=2)

    def test_what_no_disk_holds_is_refused_at_once(self):
        self.fails("--out", self.path("no/m"), "--bytes", "9000TiB", says="^generate: .*bytes needed, .* on the whole disk")
        self.assertFalse(os.path.exists(self.path("no")))

    def test_a_folder_that_cannot_be_made(self):
        Path(self.path("file")).write_text("mine")
        self.fails("--out", self.path("file/m"), "--bytes", "1MiB", says="^generate: .*file: (File exists|Not a directory)")

    def test_a_signal_leaves_nothing(self):
        process = self.start(str(TOOL), "--out", self.path("m"), "--bytes", "1GiB", program=sys.executable)
        util.wait_until(lambda: [p for p in self.folder.glob(".m.*.partial/*") if p.stat().st_size > 1 << 20], 30, "a file")
        process.send(signal.SIGTERM)
        code = process.wait(20)
        if code == 0:
            self.skipTest("it was done before the signal came")
        self.assertEqual(code, 143, process.stderr)
        self.assertEqual([p.name for p in self.folder.iterdir() if "m" in p.name.split(".")], [])


if __name__ == "__main__":
    unittest.main()
