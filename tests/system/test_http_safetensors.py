#!/usr/bin/env python3
"""A rank as a safetensors file over HTTP, whole, in ranges, and by tensor: what curl gets is what the model's files hold."""

import json
import random
import shutil
import struct
import subprocess
import unittest
from pathlib import Path
from urllib.parse import quote

import util
from util import Tensor

CURL = shutil.which("curl")


def setUpModule():
    if CURL is None:
        raise unittest.SkipTest("no curl")


class Http(util.Case):
    def curl(self, url, *arguments, status=200):
        """The body, after checking status and length."""
        head = self.path("head")
        command = [CURL, "-sS", "--noproxy", "*", "--max-time", str(60 * util.SLOW), "-D", head, *arguments, url]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=90 * util.SLOW)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = Path(head).read_text().splitlines()
        self.assertEqual(int(lines[0].split()[1]), status, lines)
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
        if "-I" not in arguments:
            self.assertEqual(int(self.headers["content-length"]), len(done.stdout))
        return done.stdout

    def rank_url(self, seed):
        return f"{seed.url}/v1/ranks/0.safetensors"

    def assert_same_tensors(self, found, wanted):
        self.assertEqual(set(found), set(wanted))
        for name, tensor in wanted.items():
            self.assertEqual((found[name].dtype, found[name].shape), (tensor.dtype, tensor.shape), name)
            self.assertTrue(found[name].data == tensor.data, name)


class Ranks(Http):
    def check_rank(self, tensors, *serve, **how):
        """The rank file of this model has its tensors, in a file that any reader of the format takes."""
        with self.seed("--model-path", self.model(tensors=tensors, **how), *serve) as seed:
            whole = self.curl(self.rank_url(seed))
            path = Path(self.path("rank.safetensors"))
            path.write_bytes(whole)
            found, metadata = util.read_safetensors(path)
            self.assert_same_tensors(found, tensors)
            self.assertTrue(metadata is None or all(isinstance(value, str) for value in metadata.values()))
            self.check_layout(whole)
            # It is a model of its own: the same one.
            self.rfork_ok("verify", str(path), "--against", seed.root_digest())
            return whole

    def check_layout(self, whole):
        """The header is JSON padded with blanks to 8 bytes; the data have neither holes nor overlaps nor a tail."""
        (length,) = struct.unpack("<Q", whole[:8])
        self.assertEqual(length % 8, 0)
        text = whole[8 : 8 + length]
        self.assertTrue(text.startswith(b"{") and text.rstrip(b" ").endswith(b"}"))
        header = json.loads(text)
        header.pop("__metadata__", None)
        at = 0
        for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
            self.assertEqual(begin, at)
            at = end
        self.assertEqual(8 + length + at, len(whole))

    def test_a_sharded_model_is_one_file(self):
        self.check_rank(util.random_tensors(), shards=3)

    def test_from_the_page_cache(self):
        self.check_rank(util.random_tensors(), "--mmap", shards=2)

    def test_every_dtype_scalars_and_empty_tensors(self):
        tensors = {f"t.{dtype}": Tensor(dtype, [3, 8]) for dtype in util.DTYPE_BITS}
        tensors |= {"scalar": Tensor("F64", []), "empty": Tensor("BF16", [4, 0]), "odd": Tensor("I8", [4097])}
        self.check_rank(tensors)

    def test_odd_names(self):
        self.check_rank({'a "quoted"\\ name': Tensor("F32", [3]), "ü/模型": Tensor("U8", [5]), "tab\tnewline\n": Tensor("U8", [1])})

    def test_a_fork_of_an_instance_serves_the_same_file(self):
        model = self.model(shards=2)
        with self.seed("--model-path", model) as seed, self.seed("--from", seed.url, "--transport", "tcp") as fork:
            self.assertEqual(self.curl(self.rank_url(seed)), self.curl(self.rank_url(fork)))

    def test_ranges_are_pieces_of_it(self):
        rng = random.Random(4)
        with self.seed("--model-path", self.model(tensors=util.big_tensors(3 << 20)), "--chunk-size", "64KiB") as seed:
            url = self.rank_url(seed)
            whole = self.curl(url)
            total = len(whole)
            (length,) = struct.unpack("<Q", whole[:8])
            ranges = [(0, 7), (0, 0), (8, 8 + length - 1), (5, 8 + length + 5), (total - 1, total - 1), (0, total - 1)]
            ranges += [tuple(sorted(rng.choices(range(total), k=2))) for _ in range(20)]
            for first, last in ranges:
                body = self.curl(url, "-r", f"{first}-{last}", status=206)
                self.assertTrue(body == whole[first : last + 1], (first, last))
                self.assertEqual(self.headers["content-range"], f"bytes {first}-{last}/{total}")
            self.assertTrue(self.curl(url, "-r", "-100", status=206) == whole[-100:])
            self.assertTrue(self.curl(url, "-r", f"{total - 9}-", status=206) == whole[-9:])
            self.assertTrue(self.curl(url, "-r", f"{total - 9}-{total + 99}", status=206) == whole[-9:])
            self.curl(url, "-r", f"{total}-", status=416)
            self.assertEqual(self.headers["content-range"], f"bytes */{total}")
            self.assertEqual(self.curl(url, "-I"), Path(self.path("head")).read_bytes(), "-I prints the head, and no body")
            self.assertEqual((int(self.headers["content-length"]), self.headers["accept-ranges"]), (total, "bytes"))
            self.curl(url.replace("/0.", "/1."), status=404)


class Tensors(Http):
    def test_a_tensor_has_the_bytes_of_the_file(self):
        model = Path(self.model(shards=2))
        wanted = {}
        for file in sorted(model.glob("*.safetensors")):
            wanted |= util.read_safetensors(file)[0]
        with self.seed("--model-path", model) as seed:
            for name, tensor in wanted.items():
                url = f"{seed.url}/v1/tensors/{quote(name, safe='')}"
                self.assertTrue(self.curl(url) == tensor.data, name)
                self.assertEqual(self.headers["x-rfork-dtype"], tensor.dtype)
                self.assertEqual(json.loads(self.headers["x-rfork-shape"]), tensor.shape)
                size = len(tensor.data)
                self.assertTrue(self.curl(url, "-r", f"{size // 3}-{size // 2}", status=206)
                                == tensor.data[size // 3 : size // 2 + 1], name)
                self.assertTrue(self.curl(url, "-r", "-5", status=206) == tensor.data[-5:], name)
            self.curl(f"{seed.url}/v1/tensors/model.nrom.weight", status=404)


if __name__ == "__main__":
    unittest.main()
