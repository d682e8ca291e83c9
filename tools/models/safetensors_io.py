"""Writes safetensors files and Hugging Face model folders with the standard library alone.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, the header's length as a little-endian
unsigned integer; the header, a JSON object from tensor name to {"dtype", "shape", "data_offsets": [begin, end]}, padded
with spaces to a multiple of 8; then the tensors' bytes, end to end and without holes, little-endian, row-major. Offsets
count from the end of the header. The reserved name "__metadata__" holds an object of strings.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Bits per element, for every dtype of safetensors 0.8.0. F4 and F6 are packed: the whole tensor ends at a byte.
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

# What transformers writes; it refuses a file whose "format" it does not know.
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Tensor:
    """What the header says of a tensor: its shape counts elements, also for the packed dtypes."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in bytes. ValueError when a packed dtype does not end at a byte."""
        bits = math.prod(self.shape) * DTYPE_BITS[self.dtype]
        if bits % 8:
            raise ValueError(f"{self.name}: {self.dtype} {list(self.shape)} is {bits} bits, not whole bytes")
        return bits // 8


def header(tensors: Sequence[Tensor]) -> bytes:
    """Returns length and header of a file that holds `tensors` in this order."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    at = 0
    for tensor in tensors:
        end = at + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    if len(entries) != len(tensors) + 1:
        raise ValueError("two tensors have the same name")
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def split(tensors: Sequence[Tensor], shards: int) -> list[list[Tensor]]:
    """Cuts `tensors` into `shards` runs of about equal bytes, none empty; keeps the order.

    ValueError when there are fewer tensors than shards.
    """
    if not 1 <= shards <= max(1, len(tensors)):
        raise ValueError(f"{len(tensors)} tensors cannot fill {shards} shards")
    total = sum(tensor.bytes for tensor in tensors)
    runs: list[list[Tensor]] = [[] for _ in range(shards)]
    shard = 0
    done = 0
    for i, tensor in enumerate(tensors):
        left = len(tensors) - i
        full = shard + 1 < shards and runs[shard] and done + tensor.bytes // 2 >= total * (shard + 1) // shards
        if full or left == shards - shard - 1:
            shard += 1
        runs[shard].append(tensor)
        done += tensor.bytes
    return runs


def shard_names(shards: int) -> list[str]:
    """Returns the file names Hugging Face gives to a model of so many shards."""
    if shards == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]


def write_index(folder: Path, files: Sequence[str], runs: Sequence[Sequence[Tensor]]) -> None:
    """Writes model.safetensors.index.json, which says which file holds which tensor; total_size is in bytes."""
    weight_map = {tensor.name: file for file, run in zip(files, runs, strict=True) for tensor in run}
    total = sum(tensor.bytes for run in runs for tensor in run)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as Hugging Face's own tools do: two spaces, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Sequence[Tensor], pieces: Iterable[memoryview | bytes]) -> None:
    """Writes one file: the header, then `pieces`, which are the bytes of `tensors` end to end, cut anywhere.

    ValueError when the pieces do not add up; OSError (with the path) from the file system.
    """
    head = header(tensors)
    want = len(head) + sum(tensor.bytes for tensor in tensors)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        batch: list[memoryview | bytes] = [head]
        pending = len(head)
        done = 0
        for piece in pieces:
            batch.append(piece)
            pending += len(piece)
            # 512 is well under IOV_MAX; 60,000 small tensors would otherwise be as many system calls.
            if len(batch) == 512 or pending >= 8 << 20:
                done += _write_all(fd, batch)
                batch = []
                pending = 0
        done += _write_all(fd, batch)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)
    if done != want:
        raise ValueError(f"{path}: {done} bytes written, {want} announced")


def _write_all(fd: int, batch: list[memoryview | bytes]) -> int:
    """Writes every piece of `batch`, going on after short writes; returns the bytes written."""
    total = sum(len(piece) for piece in batch)
    at = 0
    while at < total:
        wrote = os.writev(fd, batch)
        at += wrote
        if at == total:
            break
        while wrote >= len(batch[0]):
            wrote -= len(batch.pop(0))
        batch[0] = memoryview(batch[0])[wrote:]
    return total
