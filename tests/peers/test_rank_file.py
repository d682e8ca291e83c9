"""The safetensors package opens a rank as it comes over HTTP, and finds in it what the model's own files have."""

import json
import random
import sys
import unittest
import urllib.request
from pathlib import Path
from urllib.parse import quote

import rfork_program

try:
    import numpy
    from safetensors import safe_open
    from safetensors.numpy import save_file
except ImportError as error:
    rfork_program.skip(f"the safetensors package cannot be loaded: {error}")

sys.path.insert(0, str(rfork_program.SOURCE / "tests/system"))
import util  # noqa: E402

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NUMPY_DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64",
                "float64"]  # fmt: skip


def download(url: str, path: Path) -> Path:
    """Fetches a URL into a file, piece by piece; AssertionError unless all announced bytes came."""
    with OPENER.open(url, timeout=rfork_program.SECONDS) as answer, path.open("wb") as file:
        while piece := answer.read(1 << 20):
            file.write(piece)
        announced = int(answer.headers["Content-Length"])
    if path.stat().st_size != announced:
        raise AssertionError(f"{url}: {path.stat().st_size} of {announced} bytes")
    return path


def tensors_of(folder: Path) -> dict[str, util.Tensor]:
    """All tensors of a model folder, read without the package."""
    found: dict[str, util.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= util.read_safetensors(path)[0]
    return found


class RankFile(unittest.TestCase):
    def compare(self, source: Path, rank: Path) -> None:
        """Every tensor of the folder, and no other, has the same dtype, shape and bytes in the rank file."""
        wanted = tensors_of(source)
        with safe_open(rank, framework="numpy") as file:
            self.assertEqual(set(file.keys()), set(wanted))
            for name, tensor in wanted.items():
                piece = file.get_slice(name)
                self.assertEqual((piece.get_dtype(), piece.get_shape()), (tensor.dtype, tensor.shape), name)
                if tensor.dtype != "BF16":  # numpy has no such numbers
                    self.assertEqual(file.get_tensor(name).tobytes(), tensor.data, name)
        found, _ = util.read_safetensors(rank)
        for name, tensor in wanted.items():
            self.assertTrue(found[name].data == tensor.data, name)

    def check(self, source: Path, *serve: str) -> None:
        with rfork_program.scratch() as folder, rfork_program.seed("--model-path", source, *serve) as url:
            self.compare(source, download(f"{url}/v1/ranks/0.safetensors", folder / "rank.safetensors"))

    def test_a_model_of_numpy_arrays(self) -> None:
        rng = numpy.random.default_rng(1)
        with rfork_program.scratch() as folder:
            arrays = {f"{dtype}.{i}": numpy.asarray(rng.random(shape) * 100, dtype)
                      for dtype in NUMPY_DTYPES for i, shape in enumerate([(), (7,), (3, 0, 2), (2, 3, 5), (257, 129)])}  # fmt: skip
            save_file(arrays, folder / "model.safetensors", {"format": "np"})
            self.check(folder)
            with rfork_program.seed("--model-path", folder) as url:
                rank = download(f"{url}/v1/ranks/0.safetensors", folder / "rank.bin")
                with safe_open(rank, framework="numpy") as file:
                    for name, array in arrays.items():
                        numpy.testing.assert_array_equal(file.get_tensor(name), array, strict=True)

    def test_a_sharded_bf16_model_from_memory_and_page_cache(self) -> None:
        with rfork_program.scratch() as folder:
            source = Path(util.write_model(folder / "model", util.random_tensors(3), shards=3))
            self.check(source)
            self.check(source, "--mmap")
            self.check(source, "--chunk-size", "64KiB")

    def test_odd_names(self) -> None:
        tensors = {name: util.Tensor("F32", [3], rng=random.Random(i))
                   for i, name in enumerate(["ü/模型", 'a "quoted"\\ name', "a b", "x" * 4000, "😀", "%41?&#"])}  # fmt: skip
        with rfork_program.scratch() as folder:
            self.check(Path(util.write_model(folder / "model", tensors)))

    def test_a_real_model(self) -> None:
        try:
            source = rfork_program.model("minilm")
        except SystemExit:
            self.skipTest("the model cannot be had")
        self.check(source)

    def test_single_tensors_are_the_slices_of_the_file(self) -> None:
        with rfork_program.scratch() as folder:
            source = Path(util.write_model(folder / "model", util.random_tensors(4), shards=2))
            with rfork_program.seed("--model-path", source) as url:
                for name, tensor in tensors_of(source).items():
                    with OPENER.open(f"{url}/v1/tensors/{quote(name, safe='')}", timeout=rfork_program.SECONDS) as answer:
                        self.assertEqual(answer.headers["X-Rfork-Dtype"], tensor.dtype)
                        self.assertEqual(json.loads(answer.headers["X-Rfork-Shape"]), tensor.shape)
                        self.assertTrue(answer.read() == tensor.data, name)


if __name__ == "__main__":
    unittest.main()
