"""What SGLang's own model classes and weight loaders make of a checkpoint, for one tensor-parallel rank, on a CPU.

The classes of sglang.srt.models are built as SGLang's loader builds them (ModelConfig, the quantisation's config, then
the loader's _initialize_model), in one process without a process group, and filled by their own load_weights from the
safetensors files. No forward pass. Source: the package sglang 0.5.23; sglang/srt/model_loader/loader.py, models/*.py.

Replaced: the registry that finds the class of an architecture and imports all model modules to do so, by MODULES.

Stand-ins: packages that are not installed here because they need a GPU or are large are answered by modules whose every
attribute is a placeholder that accepts any call. They are STAND_INS below: GPU kernels and their compilers (sgl_kernel,
triton, tvm_ffi, vllm), and packages for images, notebooks, HTTP and file formats that loading weights does not touch.
Nothing is computed with them: a placeholder that reached a weight would not be a tensor.

SGLang remembers the config of a folder it has seen: what is in a folder must not change while this process lives.

  sglang_oracle.py DIR --tp 4 [--rank 1] [--ep 2]     prints order, name, dtype, shape and a digest of each parameter
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STAND_INS = frozenset({
    "sgl_kernel", "triton", "tvm_ffi", "vllm",
    "IPython", "aiohttp", "gguf", "httpx", "loguru", "sentencepiece", "torchvision",
})  # fmt: skip

# Which module of sglang.srt.models has the class of an architecture; the class is named as the architecture.
MODULES = {
    "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe", "DeepseekV3ForCausalLM": "deepseek_v2",
}  # fmt: skip

# Written before load_weights into every byte of a parameter: what a loader leaves alone is found again.
POISON = 0xA5


class Placeholder(type):
    """Type of what a stand-in module hands out: a class, so that it can also be a base class, a decorator, a type."""

    def __getattr__(cls, name: str) -> "Placeholder":
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{cls.__name__}.{name}")

    def __call__(cls, *arguments: object, **options: object) -> object:
        return cls if "is_placeholder" in vars(cls) else super().__call__(*arguments, **options)

    def __getitem__(cls, _: object) -> "Placeholder":
        return cls

    def __iter__(cls) -> Iterator[object]:
        return iter(())

    def __len__(cls) -> int:
        return 0

    def __bool__(cls) -> bool:
        return False


def placeholder(name: str) -> Placeholder:
    """Returns one; `name` is for messages."""
    return Placeholder(name, (), {"is_placeholder": True})


class StandInModule(types.ModuleType):
    """A module that has every attribute."""

    __version__ = "0"

    def __getattr__(self, name: str) -> Placeholder:
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{self.__name__}.{name}")


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of STAND_INS; comes last, so that an installed package wins."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        # PyTorch probes private modules of triton to learn which one it has, and then expects values of them.
        if name.partition(".")[0] not in STAND_INS or name.startswith("triton._"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


# What SGLang would ask the hub or the machine for, and would otherwise print.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["SGLANG_USE_CPU_ENGINE"] = "0"  # 1 is another engine, with weights packed for AMX
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
# The packages are installed without bytecode; without it every import takes several seconds longer.
sys.dont_write_bytecode = False
sys.meta_path.append(StandInFinder())

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from sglang.srt.configs.load_config import LoadConfig  # noqa: E402
from sglang.srt.configs.model_config import ModelConfig  # noqa: E402
from sglang.srt.model_loader import loader  # noqa: E402
from sglang.srt.runtime_context import get_context, get_parallel  # noqa: E402

DTYPES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip


def class_of(config: ModelConfig) -> tuple[type[torch.nn.Module], str]:
    """Stands for get_model_architecture: the class, and the architecture's name."""
    (architecture,) = config.hf_config.architectures
    module = importlib.import_module(f"sglang.srt.models.{MODULES[architecture]}")
    return getattr(module, architecture), architecture


loader.get_model_architecture = class_of


@dataclass(frozen=True)
class Parameter:
    """One of named_parameters(): dtype as safetensors names it, shape in elements, bytes row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    # Bytes that load_weights left alone: the engine has them from its constructor, or they are undefined.
    unwritten: int


@dataclass(frozen=True)
class Group:
    """Stands for a process group of SGLang: sizes and ranks, nobody to talk to."""

    world_size: int
    rank_in_group: int

    cpu_group = None
    device_group = None

    @property
    def ranks(self) -> list[int]:
        return list(range(self.world_size))

    @property
    def is_first_rank(self) -> bool:
        return self.rank_in_group == 0

    @property
    def is_last_rank(self) -> bool:
        return self.rank_in_group == self.world_size - 1


@dataclass(frozen=True)
class Place:
    """Which rank of how many; experts are divided among `ep_size` groups of these ranks.

    `fuse_shared` is SGLang's --enforce-shared-experts-fusion. Without a GPU it never fuses by itself, with one it does
    where the class allows it (DeepseekV2ForCausalLM.shared_experts_fusion_disable_reason).
    """

    rank: int
    size: int
    ep_size: int = 1
    fuse_shared: bool = False


@contextlib.contextmanager
def placed(folder: Path, place: Place, **arguments: object) -> Iterator[None]:
    """Makes this process that rank in SGLang's eyes; undone afterwards, so that another may follow.

    `arguments` are more of the server's arguments.
    """
    rank, size, ep_size = place.rank, place.size, place.ep_size
    group = Group(size, rank)
    alone = Group(1, 0)
    # As sglang.srt.runtime_context.derive_spawn_ranks() has it, which cannot be called without a launcher.
    moe_tp_size = size // ep_size
    moe_tp_rank, moe_ep_rank = rank % moe_tp_size, rank // moe_tp_size
    published = get_context().override_server_args(
        device="cpu", model_path=str(folder), tp_size=size, ep_size=ep_size,
        enforce_shared_experts_fusion=place.fuse_shared, **arguments,
    )  # fmt: skip
    with published:
        get_parallel().override_permanently(
            tp_size=size, tp_rank=rank, tp_group=group,
            attn_tp_size=size, attn_tp_rank=rank, attn_tp_group=group,
            moe_tp_size=moe_tp_size, moe_tp_rank=moe_tp_rank,
            moe_tp_group=group if ep_size == 1 else Group(moe_tp_size, moe_tp_rank),
            moe_ep_size=ep_size, moe_ep_rank=moe_ep_rank, moe_ep_group=Group(ep_size, moe_ep_rank),
            pp_size=1, pp_rank=0, pp_group=alone,
            moe_dp_size=1, attn_cp_size=1, attn_cp_rank=0, attn_dp_size=1, attn_dp_rank=0,
        )  # fmt: skip
        try:
            yield
        finally:
            get_parallel().clear_stamp()


def stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of all that the checkpoint has, file by file."""
    for path in sorted(folder.glob("*.safetensors")):
        yield from safetensors.torch.load_file(path).items()


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, uint8 [n], row-major; shared with it when it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def poison(model: torch.nn.Module) -> dict[str, bytes]:
    """Fills the parameters with POISON; returns what the constructor had put there."""
    before = {}
    for name, parameter in model.named_parameters():
        before[name] = raw(parameter.data).numpy().tobytes()
        raw(parameter.data).fill_(POISON)
    return before


def parameters(folder: Path, place: Place) -> list[Parameter]:
    """Returns the engine's parameters in the order of named_parameters(), as load_weights leaves them.

    The dtype is config.json's: of its own accord (--dtype auto) SGLang makes float16 of a float32 model, and this is
    its --dtype float32.
    Whatever SGLang raises for a model that it cannot split so is passed on: ValueError, AssertionError.
    """
    with placed(folder, place), torch.device("cpu"):
        config = ModelConfig(str(folder), dtype=json.loads((folder / "config.json").read_text())["torch_dtype"])
        default = torch.get_default_dtype()
        torch.set_default_dtype(config.dtype)
        try:
            load_config = LoadConfig()
            quantisation = loader._get_quantization_config(config, load_config)
            model = loader._initialize_model(config, load_config, quantisation)
            before = poison(model)
            model.load_weights(stored(folder))
        finally:
            torch.set_default_dtype(default)
        found = []
        for name, parameter in model.named_parameters():
            data = raw(parameter.data).numpy().tobytes()
            unwritten = 0
            if data == bytes([POISON]) * len(data):
                # Scalars that no checkpoint names keep what their constructor gave them.
                unwritten = len(data)
                data = before[name]
            found.append(Parameter(name, DTYPES[parameter.dtype], tuple(parameter.shape), data, unwritten))
        return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--tp", type=int, default=1, metavar="N")
    parser.add_argument("--rank", type=int, default=0, metavar="R")
    parser.add_argument("--ep", type=int, default=1, metavar="N")
    parser.add_argument("--fuse-shared-experts", action="store_true")
    options = parser.parse_args(arguments)
    place = Place(options.rank, options.tp, options.ep, options.fuse_shared_experts)
    found = parameters(options.folder, place)
    for order, parameter in enumerate(found):
        digest = hashlib.sha256(parameter.data).hexdigest()[:16]
        shape = "x".join(map(str, parameter.shape)) or "-"
        note = f" unwritten={parameter.unwritten}" if parameter.unwritten else ""
        print(f"{order} {parameter.name} {parameter.dtype} {shape} {digest}{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
