#!/usr/bin/env python3
"""Makes a model of any size in the shape of Qwen3, filled with random numbers: a Hugging Face folder.

  generate.py --out DIR --bytes 4GiB --shards 4
  generate.py --out DIR --layers 28 --hidden 1024
  generate.py --out DIR --tensors 60000 --bytes 256MiB

Names, shapes and config.json are those of Qwen3ForCausalLM. --bytes is the sum of all tensors; what is not given
(layers, hidden, vocabulary, ...) is chosen so that the sum is met, to half a percent where the vocabulary is free. The
bytes depend on the arguments alone, and are the same on every machine. Floating-point values are finite.
"""

import argparse
import errno
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors_io import DTYPE_BITS, Tensor, header, shard_names, split, write_file, write_index, write_json

# ---- the shape ----


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model, in elements; 0 means that it is still to be chosen."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False

    @property
    def per_layer(self) -> int:
        """Elements of one layer."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden + 2 * self.head_dim
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def per_token(self) -> int:
        """Elements that one more token in the vocabulary adds."""
        return self.hidden * (1 if self.tied else 2)

    @property
    def elements(self) -> int:
        """Elements of the whole model."""
        return self.layers * self.per_layer + self.vocab * self.per_token + self.hidden


# Published Qwen3 models and smaller ones of the same proportions, by size. Layers and vocabulary are then fitted.
FAMILY = (
    Shape(layers=2, hidden=64, intermediate=192, heads=4, kv_heads=2, head_dim=16, vocab=256),
    Shape(layers=4, hidden=256, intermediate=768, heads=4, kv_heads=2, head_dim=64, vocab=2048),
    Shape(layers=12, hidden=512, intermediate=1536, heads=8, kv_heads=4, head_dim=64, vocab=8192),
    Shape(layers=16, hidden=768, intermediate=2304, heads=8, kv_heads=4, head_dim=128, vocab=32768),
    Shape(layers=28, hidden=1024, intermediate=3072, heads=16, kv_heads=8, head_dim=128, vocab=151936),
    Shape(layers=28, hidden=2048, intermediate=6144, heads=16, kv_heads=8, head_dim=128, vocab=151936),
    Shape(layers=36, hidden=2560, intermediate=9728, heads=32, kv_heads=8, head_dim=128, vocab=151936),
    Shape(layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, head_dim=128, vocab=151936),
    Shape(layers=40, hidden=5120, intermediate=17408, heads=40, kv_heads=8, head_dim=128, vocab=151936),
    Shape(layers=64, hidden=5120, intermediate=25600, heads=64, kv_heads=8, head_dim=128, vocab=151936),
)

LAYER_TENSORS = 11  # tensors of one layer
MIN_VOCAB = 32


def scaled(hidden: int) -> Shape:
    """A shape of this hidden size in Qwen3's proportions; layers and vocabulary are 0."""
    for shape in FAMILY:
        if shape.hidden == hidden:
            return replace(shape, layers=0, vocab=0)
    head_dim = 128 if hidden >= 1024 else 64 if hidden >= 256 else 16 if hidden >= 32 else 2
    heads = max(2, 1 << (hidden // head_dim).bit_length() - 1)  # a power of two: it divides among any ranks
    return Shape(0, hidden, 3 * hidden, heads, heads // 2, head_dim, 0)


def override(shape: Shape, given: dict[str, int]) -> Shape:
    """`shape` with what the user gave."""
    return replace(shape, **{key: value for key, value in given.items() if value})


def fit_intermediate(shape: Shape, elements: int) -> Shape:
    """For a fixed number of layers: takes up what hidden, heads and vocabulary leave, in steps of 8."""
    rest = elements - replace(shape, intermediate=0).elements
    return replace(shape, intermediate=max(8, rest // (3 * shape.hidden * shape.layers) // 8 * 8))


def fit_vocab(shape: Shape, elements: int) -> Shape:
    """Makes the sum come out by the vocabulary: in steps that divide among 64 ranks, or of 1 where those are coarse."""
    step = 64 if 64 * shape.per_token * 500 < elements else 1
    rest = elements - shape.hidden - shape.layers * shape.per_layer
    return replace(shape, vocab=max(MIN_VOCAB, round(rest / shape.per_token / step) * step))


def candidate(base: Shape, elements: int, given: dict[str, int], tied: bool) -> tuple[Shape, float]:
    """Fits `base` to `elements`; returns it, and how far it is from the proportions of a published model."""
    shape = replace(override(base, given), tied=tied)
    if not given["vocab"] and (not shape.vocab or shape.vocab * shape.per_token > elements * 0.45):
        shape = replace(shape, vocab=max(MIN_VOCAB, elements // 8 // shape.per_token))
    wanted = shape
    if not given["layers"]:
        rest = elements - shape.hidden - shape.vocab * shape.per_token
        layers = rest // shape.per_layer if not given["vocab"] else round(rest / shape.per_layer)
        shape = replace(shape, layers=max(1, layers))
    elif not given["intermediate"]:
        shape = fit_intermediate(shape, elements)
    if not given["vocab"]:
        shape = fit_vocab(shape, elements)
    pairs = ((wanted.layers, shape.layers), (wanted.intermediate, shape.intermediate), (wanted.vocab, shape.vocab))
    return shape, sum(abs(math.log(want / got)) for want, got in pairs)


def choose(elements: int, given: dict[str, int], tied: bool) -> Shape:
    """Chooses what is not in `given` (0 there) so that the model has about `elements` elements."""
    bases: Sequence[Shape] = [shape for shape in FAMILY if given["hidden"] in (0, shape.hidden)]
    if given["layers"]:
        # The number of layers is fixed, the width is free, so any will do.
        widths = [given["hidden"]] if given["hidden"] else [4, 8, *range(16, 256, 16), *range(256, 16385, 64)]
        bases = [scaled(hidden) for hidden in widths]
    elif not bases:
        bases = [replace(scaled(given["hidden"]), layers=28)]
    best: tuple[tuple[bool, float], Shape] | None = None
    for base in bases:
        shape, odd = candidate(base, elements, given, tied)
        # Half a percent off is as good as none; among those the most natural one wins.
        miss = abs(shape.elements - elements) / elements
        key = (miss > 0.005, miss if miss > 0.005 else odd)
        if best is None or key < best[0]:
            best = (key, shape)
    assert best is not None
    return best[1]


# ---- tensors and configuration ----


def tensors_of(shape: Shape, dtype: str, count: int) -> list[Tensor]:
    """All tensors in the order of the model; `count` > 0 adds rotary frequencies until there are so many.

    Old checkpoints carry `rotary_emb.inv_freq`, and every loader ignores it: the way to any number of tensors.
    """
    q = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    layer = {
        "input_layernorm": (shape.hidden,),
        "self_attn.q_proj": (q, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, q),
        "self_attn.q_norm": (shape.head_dim,),
        "self_attn.k_norm": (shape.head_dim,),
        "post_attention_layernorm": (shape.hidden,),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    assert len(layer) == LAYER_TENSORS
    outside = 2 if shape.tied else 3
    extra = count - outside - LAYER_TENSORS * shape.layers if count else 0
    result = [Tensor("model.embed_tokens.weight", dtype, (shape.vocab, shape.hidden))]
    for i in range(shape.layers):
        result += [Tensor(f"model.layers.{i}.{name}.weight", dtype, size) for name, size in layer.items()]
        if i < extra:
            result.append(Tensor(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", dtype, (shape.head_dim // 2 * 2,)))
    result.append(Tensor("model.norm.weight", dtype, (shape.hidden,)))
    if not shape.tied:
        result.append(Tensor("lm_head.weight", dtype, (shape.vocab, shape.hidden)))
    return result


def config(shape: Shape, dtype: str, recipe: dict[str, object]) -> dict[str, object]:
    """config.json; `recipe` is kept under rfork_generate, so that --reuse can tell what a folder holds."""
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn",
             "F8_E5M2": "float8_e5m2"}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 40960,
        "max_window_layers": shape.layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rfork_generate": recipe,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": shape.tied,
        # The engines know only floating-point types; a model of another dtype is for copying, not for running.
        "torch_dtype": names.get(dtype, "bfloat16"),
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


# ---- bytes ----

# The most significant byte of a value has its sign and the top of its exponent. Here are each dtype's bytes per value
# and what that byte may be: nothing infinite or not a number; from 16 bits on, both signs and magnitudes below 2.
TOP_BYTES = {
    "BF16": (2, [0x3B, 0x3C, 0x3D, 0xBB, 0xBC, 0xBD]),
    "F16": (2, [0x14, 0x18, 0x1C, 0x20, 0x94, 0x98, 0x9C, 0xA0]),
    "F32": (4, [0x3B, 0x3C, 0x3D, 0xBB, 0xBC, 0xBD]),
    "C64": (4, [0x3B, 0x3C, 0x3D, 0xBB, 0xBC, 0xBD]),
    "F64": (8, [0x3F, 0xBF]),
    "F8_E4M3": (1, [byte for byte in range(256) if byte & 0x7F != 0x7F]),
    "F8_E5M2": (1, [byte for byte in range(256) if byte & 0x7C != 0x7C]),
    "F8_E4M3FNUZ": (1, [byte for byte in range(256) if byte != 0x80]),
    "F8_E5M2FNUZ": (1, [byte for byte in range(256) if byte != 0x80]),
    "F8_E8M0": (1, list(range(255))),
    "BOOL": (1, [0, 1]),
}


class Noise:
    """An endless, reproducible stream of valid values, as fast as memory.

    One block of random bytes is repeated, and every tensor starts somewhere else in it. The block's length is 8 (the
    largest value) times an odd number: chunks of 2^n bytes begin at 2 million different places of it before the first
    two are equal. In the packed dtypes every byte is valid, wherever it is cut.
    """

    BYTES = 8 * ((2 << 20) + 3)

    def __init__(self, seed: int, dtype: str) -> None:
        self.seed = seed
        block = bytearray(random.Random(f"rfork {seed}").randbytes(self.BYTES))
        if dtype in TOP_BYTES:
            width, allowed = TOP_BYTES[dtype]
            table = bytes(allowed[i % len(allowed)] for i in range(256))
            block[width - 1 :: width] = bytes(block[width - 1 :: width]).translate(table)
        self.block = memoryview(bytes(block))

    def tensor(self, name: str, size: int) -> Iterator[memoryview]:
        """Yields the `size` bytes of the tensor `name`, in pieces."""
        at = random.Random(f"{self.seed} {name}").randrange(self.BYTES // 8) * 8
        while size:
            take = min(size, self.BYTES - at)
            yield self.block[at : at + take]
            size -= take
            at = 0


# ---- arguments ----


def parse_bytes(text: str) -> int:
    """'4GiB', '500MB', '4096' -> bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B?|B)?", text, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write 4GiB, 500MB or 4096")
    unit = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper()) if match[2] else 0
    return round(float(match[1]) * unit**power)


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def parse_dtype(text: str) -> str:
    """A dtype of safetensors, in any case."""
    if text.upper() not in DTYPE_BITS:
        raise argparse.ArgumentTypeError(f"there is no dtype '{text}' (there are: {' '.join(DTYPE_BITS)})")
    return text.upper()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--bytes", type=parse_bytes, metavar="SIZE", help="all tensors together, as 4GiB, 500MB, 4096")
    parser.add_argument("--tensors", type=positive, metavar="N", help="exactly so many tensors (default size: 64 MiB)")
    shape = parser.add_argument_group("the shape, where it is not to be chosen")
    for name in ("layers", "hidden", "intermediate", "heads", "kv-heads", "head-dim", "vocab"):
        shape.add_argument(f"--{name}", type=positive, default=0, metavar="N")
    shape.add_argument("--tied", action="store_true", help="no lm_head: it is the embedding")
    parser.add_argument("--dtype", type=parse_dtype, default="BF16", help="any dtype of safetensors (BF16)")
    parser.add_argument("--shards", type=positive, default=1, metavar="N", help="files (1); with an index if more")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number, other bytes (0)")
    parser.add_argument("--force", action="store_true", help="replace DIR if it is there")
    parser.add_argument("--reuse", action="store_true", help="keep DIR if it was made by these very arguments")
    return parser.parse_args()


def shape_of(arguments: argparse.Namespace) -> Shape:
    """Decides the shape. ValueError, in words, where the arguments contradict each other."""
    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab")
    given = {name: getattr(arguments, name) for name in names}
    bits = DTYPE_BITS[arguments.dtype]
    if arguments.tensors:
        outside = 2 if arguments.tied else 3
        layers = (arguments.tensors - outside) // LAYER_TENSORS
        # What does not fit is one more tensor in as many layers.
        while layers > 0 and arguments.tensors - outside - LAYER_TENSORS * layers > layers:
            layers += 1
        if layers < 1 or arguments.tensors - outside - LAYER_TENSORS * layers < 0:
            raise ValueError(f"--tensors {arguments.tensors}: a model has at least {outside + LAYER_TENSORS}, "
                             f"and cannot have this number; from {outside + LAYER_TENSORS * 10} on any will do")
        if given["layers"] not in (0, layers):
            raise ValueError(f"--tensors {arguments.tensors} means {layers} layers, not {given['layers']}")
        given["layers"] = layers
    if arguments.bytes is None and not arguments.tensors:
        if not (given["layers"] and given["hidden"]):
            raise ValueError("say how large: --bytes, --tensors, or --layers and --hidden")
        base = scaled(given["hidden"])
        shape = override(replace(base, vocab=min(151936, 32 * given["hidden"])), given)
        shape = replace(shape, tied=arguments.tied)
    else:
        elements = (arguments.bytes if arguments.bytes is not None else 64 << 20) * 8 // bits
        if given["vocab"] and given["layers"] and given["hidden"]:
            raise ValueError("--bytes with --layers, --hidden and --vocab: leave one of them to be chosen")
        if elements == 0:
            raise ValueError("--bytes 0: a model has at least one element")
        shape = choose(elements, given, arguments.tied)
        if arguments.bytes is not None and shape.elements > elements * 1.03:
            raise ValueError(f"--bytes: the smallest model with these arguments has {shape.elements * bits // 8} bytes")
    if shape.heads % shape.kv_heads:
        raise ValueError(f"{shape.heads} heads cannot share {shape.kv_heads} KV heads evenly")
    return shape


# ---- all of it ----


def write_model(folder: Path, tensors: Sequence[Tensor], arguments: argparse.Namespace) -> None:
    """Writes the safetensors files and, for several, the index."""
    noise = Noise(arguments.seed, arguments.dtype)
    runs = split(tensors, arguments.shards)
    files = shard_names(arguments.shards)
    for file, run in zip(files, runs, strict=True):
        run.sort(key=lambda tensor: tensor.name)
        write_file(folder / file, run, (piece for t in run for piece in noise.tensor(t.name, t.bytes)))
    if arguments.shards > 1:
        write_index(folder, files, runs)


def holds(folder: Path, recipe: dict[str, object], tensors: Sequence[Tensor], shards: int) -> bool:
    """True when `folder` was made from this recipe and its files have the right sizes."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["rfork_generate"]
        if found != json.loads(json.dumps(recipe)):
            return False
        for file, run in zip(shard_names(shards), split(tensors, shards), strict=True):
            run.sort(key=lambda tensor: tensor.name)
            if (folder / file).stat().st_size != len(header(run)) + sum(tensor.bytes for tensor in run):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def check_disk(folder: Path, needed: int, *, whole: bool) -> None:
    """OSError unless `needed` bytes would go on the disk of `folder`, which need not exist yet: on what is free, or on
    the whole of it.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    room, word = (usage.total, "on the whole disk") if whole else (usage.free, "free")
    if room < needed + needed // 100:
        raise OSError(errno.ENOSPC, f"{needed} bytes needed, {room} {word}", str(folder))


def generate(arguments: argparse.Namespace) -> str:
    """Makes the folder; returns the line to print. ValueError or OSError when it cannot."""
    begin = time.monotonic()
    shape = shape_of(arguments)
    # Before a list of its tensors is made, which could take more memory than there is.
    check_disk(arguments.out.resolve().parent, shape.elements * DTYPE_BITS[arguments.dtype] // 8, whole=True)
    tensors = tensors_of(shape, arguments.dtype, arguments.tensors or 0)
    total = sum(tensor.bytes for tensor in tensors)
    out = arguments.out.resolve()
    recipe = {"version": 1, "seed": arguments.seed, "dtype": arguments.dtype, "shards": arguments.shards,
              "tensors": len(tensors), **asdict(shape)}
    what = f"{arguments.out}: tensors={len(tensors)} bytes={total} shards={arguments.shards} dtype={arguments.dtype} " \
           f"layers={shape.layers} hidden={shape.hidden} vocab={shape.vocab}"
    if arguments.reuse and holds(out, recipe, tensors, arguments.shards):
        return f"{what} reused"
    if out.exists() and not (arguments.force or arguments.reuse):
        raise ValueError(f"{arguments.out}: is there already; say --force to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_disk(out.parent, total, whole=False)
    work = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        work.mkdir()
        write_model(work, tensors, arguments)
        write_json(work / "config.json", config(shape, arguments.dtype, recipe))
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        os.rename(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - begin
    return f"{what} seconds={seconds:.2f} GB/s={total / seconds / 1e9:.2f}"


def main() -> int:
    # A SIGTERM must remove what is half done, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    try:
        print(generate(arguments))
    except ValueError as error:
        print(f"generate: {error}", file=sys.stderr)
    except OSError as error:
        print(f"generate: {error.filename}: {error.strerror}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
