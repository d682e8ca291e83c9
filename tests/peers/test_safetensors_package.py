"""rfork and the safetensors package read each other's files, and accept and refuse the same ones.

ctest: timeout=600
"""

import ctypes
import json
import os
import random
import subprocess
import sys
import unittest
from collections.abc import Iterable
from pathlib import Path

import rfork_program
import st_mutants

try:
    import safetensors
except ImportError as error:
    rfork_program.skip(f"the safetensors package cannot be loaded: {error}")

sys.path.insert(0, str(rfork_program.SOURCE / "tools/models"))
import safetensors_io  # noqa: E402

ST_CHECK = rfork_program.BUILD / "tests/tools/st_check"
CASES = int(os.environ.get("RFORK_PARITY_CASES", "20000"))
SEED = int(os.environ.get("RFORK_PARITY_SEED", "1"))

# The package's writer takes the frameworks' names of dtypes. It has none for F6: its reader knows those alone.
WRITER_DTYPES = {
    "BOOL": "bool", "F4": "float4_e2m1fn_x2", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64",
    "U64": "uint64",
}  # fmt: skip

# A tensor, from either side: (dtype, shape in elements, bytes).
Contents = dict[str, tuple[str, tuple[int, ...], bytes]]


def random_contents(rng: random.Random, dtypes: Iterable[str]) -> Contents:
    """At least one tensor of each dtype: scalars, empty ones, many dimensions, odd names and sizes."""
    contents: Contents = {}
    for dtype in dtypes:
        for _ in range(rng.randint(1, 4)):
            shape = [rng.choice([0, 1, 2, 3, 5, 8, 17, 64]) for _ in range(rng.choice([0, 1, 2, 2, 3, 6]))]
            if safetensors_io.DTYPE_BITS[dtype] % 8:
                shape.append(8)
            tensor = safetensors_io.Tensor("", dtype, tuple(shape))
            if tensor.bytes > 1 << 20:
                continue
            name = rng.choice(["layers.{}.weight", "é.{}", "a/b {}", 'quote " {}', "back\\slash {}", "😀{}"])
            contents[name.format(len(contents))] = (dtype, tuple(shape), rng.randbytes(tensor.bytes))
    return contents


def package_writes(path: Path, contents: Contents, metadata: dict[str, str] | None) -> None:
    """Writes a file with the package."""
    specs = {}
    buffers = []
    for name, (dtype, shape, data) in contents.items():
        buffer = ctypes.create_string_buffer(data, max(1, len(data)))
        buffers.append(buffer)
        # It takes F4 in pairs and doubles the last dimension, as the frameworks do.
        shape = (*shape[:-1], shape[-1] // 2) if dtype == "F4" else shape
        specs[name] = safetensors.TensorSpec(
            dtype=WRITER_DTYPES[dtype], shape=shape, data_ptr=ctypes.addressof(buffer), data_len=len(data)
        )
    safetensors.serialize_file(specs, path, metadata)


def package_reads(path: Path) -> Contents:
    """Reads a file with the package. safetensors.SafetensorError when it refuses."""
    tensors = safetensors.deserialize(path.read_bytes())
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in tensors}


def package_reads_folder(folder: Path) -> Contents:
    """All tensors of a model folder."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in package_reads(path).items()}


def metadata_of(path: Path) -> dict[str, str] | None:
    """The metadata of a file, read with the package."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


def make_model(folder: Path, rng: random.Random, shards: int) -> Contents:
    """Writes a model folder with the package; returns what is in it."""
    contents = random_contents(rng, WRITER_DTYPES)
    folder.mkdir()
    safetensors_io.write_json(folder / "config.json", {"architectures": ["None"]})
    names = list(contents)
    rng.shuffle(names)
    files = safetensors_io.shard_names(shards)
    parts = [names[i::shards] for i in range(shards)]
    for file, part in zip(files, parts, strict=True):
        package_writes(folder / file, {name: contents[name] for name in part}, {"format": "pt", "é": "\n"})
    if shards > 1:
        runs = [[safetensors_io.Tensor(name, *contents[name][:2]) for name in part] for part in parts]
        safetensors_io.write_index(folder, files, runs)
    return contents


class Models(unittest.TestCase):
    """Whole models, both ways."""

    def test_package_reads_what_rfork_wrote(self) -> None:
        for transport, shards in (("tcp", 1), ("tcp", 3), ("map", 1), ("map", 3)):
            with self.subTest(transport=transport, shards=shards), rfork_program.scratch() as scratch:
                source = scratch / "source"
                target = scratch / "target"
                contents = make_model(source, random.Random(f"{SEED} {transport} {shards}"), shards)
                rfork_program.forked(source, target, "--transport", transport)
                self.assertEqual(package_reads_folder(target), contents)
                self.assertEqual(
                    {path.name: metadata_of(path) for path in target.glob("*.safetensors")},
                    {path.name: metadata_of(path) for path in source.glob("*.safetensors")},
                )

    def test_rfork_reads_what_package_wrote(self) -> None:
        for shards in (1, 4):
            with self.subTest(shards=shards), rfork_program.scratch() as scratch:
                contents = make_model(scratch / "source", random.Random(f"{SEED} inspect {shards}"), shards)
                report = rfork_program.rfork_json("inspect", "--tensors", scratch / "source")
                self.assertEqual(
                    {t["name"]: (t["dtype"], tuple(t["shape"]), t["bytes"]) for t in tensors_in(report)},
                    {name: (dtype, shape, len(data)) for name, (dtype, shape, data) in contents.items()},
                )

    def test_dtypes_that_only_the_reader_knows(self) -> None:
        contents = random_contents(random.Random(SEED), ["F6_E2M3", "F6_E3M2"])
        tensors = [safetensors_io.Tensor(name, dtype, shape) for name, (dtype, shape, _) in contents.items()]
        with rfork_program.scratch() as scratch:
            source = scratch / "source"
            source.mkdir()
            safetensors_io.write_file(source / "model.safetensors", tensors, [data for _, _, data in contents.values()])
            self.assertEqual(package_reads_folder(source), contents)
            rfork_program.forked(source, scratch / "target")
            self.assertEqual(package_reads_folder(scratch / "target"), contents)


def tensors_in(report: dict) -> list[dict]:
    """The tensors that `rfork inspect --tensors --json` lists."""
    return [tensor for rank in report["manifest"]["ranks"] for tensor in rank["tensors"]]


# ---- which files are accepted ----


def header_of(data: bytes) -> list[tuple[str, object]]:
    """The members of the header of a file that the package accepts; JSON objects are lists of pairs."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")], object_pairs_hook=list)


def stricter(data: bytes) -> str | None:
    """Why our parser may refuse a file that the package accepts; nothing else is a reason."""
    pairs = header_of(data)
    names = [name for name, _ in pairs if name != "__metadata__"]
    if len(set(names)) < len(names):
        return "a name twice"
    if any("\0" in name for name in names):
        return "NUL in a name"
    if any(len(name.encode()) > 4096 for name in names):
        return "a long name"
    for _, value in pairs:
        shape = next((v for k, v in value or [] if k == "shape"), []) if is_object(value) else (value or [0, []])[1]
        if isinstance(shape, list) and len(shape) > 32:
            return "many dimensions"
    return None


def is_object(value: object) -> bool:
    """Whether this came from a JSON object, which object_pairs_hook made a list of pairs."""
    return isinstance(value, list) and all(isinstance(pair, tuple) for pair in value)


def parse_verdict(line: str, data: bytes) -> Contents | None:
    """One line of st_check -> what it found; None when it refused the file `data`."""
    if line.startswith("refused: "):
        return None
    words = line.split(" ")
    if words[0] != "ok":
        raise AssertionError(f"st_check said {line!r}")
    at = 8 + int.from_bytes(data[:8], "little")
    contents: Contents = {}
    for word in words[1:]:
        name, dtype, shape, offset, size = word.split(":")
        begin = at + int(offset)
        dimensions = tuple(int(number) for number in shape.split(",") if number)
        contents[bytes.fromhex(name).decode()] = (dtype, dimensions, data[begin : begin + int(size)])
    return contents


class Acceptance(unittest.TestCase):
    """Files one step away from valid ones: accepted by both, with the same contents, or by neither."""

    def setUp(self) -> None:
        self.scratch = self.enterContext(rfork_program.scratch())

    def st_check(self, paths: list[Path]) -> list[str]:
        """What our parser says of each file."""
        done = subprocess.run(
            [ST_CHECK], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, check=False
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), len(paths))
        return lines

    def test_same_verdict_as_the_package(self) -> None:
        cases = list(st_mutants.mutants(SEED, CASES))
        paths = [self.scratch / str(i) for i in range(len(cases))]
        for path, (_, data) in zip(paths, cases, strict=True):
            path.write_bytes(data)
        verdicts = {"both accept": 0, "both refuse": 0, "rfork is stricter": 0}
        differences = []
        for path, (done, data), line in zip(paths, cases, self.st_check(paths), strict=True):
            ours = parse_verdict(line, data)
            try:
                theirs: Contents | None = package_reads(path)
                reason = "accepts it"
            except safetensors.SafetensorError as error:
                theirs = None
                reason = f"refuses it: {error}"
            if ours == theirs:
                verdicts["both refuse" if ours is None else "both accept"] += 1
            elif ours is None and stricter(data):
                verdicts["rfork is stricter"] += 1
            else:
                differences.append(f"{done}: {data[:600]!r}\n  rfork: {line[:300]}\n  the package {reason}")
        print(f"seed {SEED}: {verdicts}")
        # Shortest first: that is the one to look at.
        differences.sort(key=len)
        self.assertFalse(differences, f"{len(differences)} differences\n" + "\n".join(differences[:10]))
        # A generator that no longer makes valid files, or only those, would prove nothing.
        self.assertGreater(min(verdicts["both accept"], verdicts["both refuse"]), CASES // 10)

    def test_safe_open_has_the_same_verdict(self) -> None:
        # safe_open maps the file, and refuses before it reads: another way in than deserialize.
        cases = list(st_mutants.mutants(SEED + 1, 2000))
        paths = [self.scratch / str(i) for i in range(len(cases))]
        for path, (_, data) in zip(paths, cases, strict=True):
            path.write_bytes(data)
        for path, (done, data), line in zip(paths, cases, self.st_check(paths), strict=True):
            try:
                with safetensors.safe_open(path, framework="numpy") as file:
                    theirs: set[str] | None = set(file.keys())
            except (safetensors.SafetensorError, OSError):
                theirs = None
            ours = parse_verdict(line, data)
            if theirs is None or not stricter(data):
                self.assertEqual(None if ours is None else set(ours), theirs, f"{done}: {data[:600]!r}\n{line[:300]}")

    def test_the_program_has_the_same_verdict(self) -> None:
        # Beyond the parser there is the manifest; and damaged files are told from other errors by the exit code.
        for i, (done, data) in enumerate(st_mutants.mutants(SEED + 2, 500)):
            path = self.scratch / f"{i}.safetensors"
            path.write_bytes(data)
            command = [rfork_program.RFORK, "inspect", path]
            code = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode
            try:
                package_reads(path)
                accepted = not (code and stricter(data))
            except safetensors.SafetensorError:
                accepted = False
            self.assertIn(code, (0, 2, 4), f"{done}: {data[:600]!r}")
            self.assertEqual(code == 0, accepted, f"{done}: {data[:600]!r}")

    def test_header_may_have_100_million_bytes_and_no_more(self) -> None:
        header = json.dumps({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        path = self.scratch / "large"
        for length, accepted in ((100_000_000, True), (100_000_001, False)):
            path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"x")
            try:
                package_reads(path)
                theirs = True
            except safetensors.SafetensorError:
                theirs = False
            self.assertEqual((theirs, self.st_check([path])[0].startswith("ok")), (accepted, accepted), length)


if __name__ == "__main__":
    unittest.main()
