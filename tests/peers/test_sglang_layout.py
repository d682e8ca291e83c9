"""`rfork serve --layout sglang` holds what SGLang's own model classes and weight loaders make of the same checkpoint.

For each family, each tensor-parallel size and each rank: names, their order, dtypes, shapes and bytes, against
sglang_oracle.py, which runs SGLang on a CPU. Packages that are absent there are stand-ins: GPU kernels and their
compilers (sgl_kernel, triton, tvm_ffi, vllm), and some for images, notebooks, HTTP and file formats; all of them are in
sglang_oracle.STAND_INS. Nothing is computed with them, and no forward pass is run. What is compared is the state after
load_weights; what an engine does to its weights later, for a certain GPU, is not.

RFORK_ALL=1 tries RFORK_SGLANG_CASES (200) random models instead of a few; the first is number RFORK_SGLANG_SEED (0).

ctest: timeout=900
"""

import json
import os
import unittest
import urllib.request
from collections.abc import Callable
from pathlib import Path

import rfork_program

if "--tp" not in rfork_program.rfork("serve", "--help"):
    rfork_program.skip("this rfork serve knows no --tp")
try:
    import safetensors
    import sglang_oracle
except ImportError as error:
    rfork_program.skip(f"SGLang cannot be loaded: {error}")

import sglang_models

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
RANDOM_CASES = int(os.environ.get("RFORK_SGLANG_CASES", "200")) if os.environ.get("RFORK_ALL") == "1" else 8
RANDOM_SEED = int(os.environ.get("RFORK_SGLANG_SEED", "0"))

# The layout of an engine on a GPU that keeps a single shared expert as the last of the routed ones.
FUSED = "sglang-shared-fused"
LAYOUTS = {"deepseek-fused": FUSED, "deepseek-fused-fp8": FUSED}
# SGLang looks for these scales under another name than the checkpoint's, and leaves its own as they were.
WITHOUT_SCALES = {"llama-fp8"}

# (family, tp size, ep size)
EXPERT_PARALLEL = [("qwen3-moe", 2, 2), ("qwen3-moe", 4, 2), ("qwen3-moe", 4, 4), ("qwen3-moe-fp8", 4, 2),
                   ("deepseek", 4, 2), ("deepseek", 8, 8), ("deepseek-fp8", 2, 2)]  # fmt: skip

# Sizes that neither can split: heads, KV heads that neither divide nor are divided, blocks of scales.
REFUSED = [("llama", 3), ("llama", 16), ("llama-bias", 2), ("qwen2", 5), ("qwen3-moe", 3), ("deepseek", 3),
           ("deepseek-fp8", 8)]  # fmt: skip


def fetch(url: str) -> bytes:
    """The body of an answer with 200."""
    with OPENER.open(url, timeout=rfork_program.SECONDS) as answer:
        return answer.read()


class Case(unittest.TestCase):
    """One folder for all tests; models are written into it when first asked for."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.scratch = cls.enterClassContext(rfork_program.scratch())

    def folder(self, name: str, make: Callable[[], sglang_models.Model]) -> Path:
        """The model's folder."""
        folder = self.scratch / name
        if not folder.exists():
            make().write(folder)
        return folder

    def compare_rank(self, url: str, rank: dict, wanted: list[sglang_oracle.Parameter], unloaded: bool) -> None:
        """One rank of a manifest, and its bytes, with the parameters of SGLang's model for the same rank."""
        tensors = sorted(rank["tensors"], key=lambda tensor: tensor["order"])
        self.assertEqual([tensor["name"] for tensor in tensors], [parameter.name for parameter in wanted])
        self.assertEqual(len({tensor["order"] for tensor in tensors}), len(tensors))
        held = dict(safetensors.deserialize(fetch(f"{url}/v1/ranks/{rank['rank']}.safetensors")))
        self.assertEqual(set(held), {parameter.name for parameter in wanted})
        for tensor, parameter in zip(tensors, wanted, strict=True):
            kind = (parameter.dtype, parameter.shape)
            self.assertEqual((tensor["dtype"], tuple(tensor["shape"])), kind, parameter.name)
            found = held[parameter.name]
            self.assertEqual((found["dtype"], tuple(found["shape"])), kind, parameter.name)
            if parameter.unwritten and parameter.shape:
                self.assertTrue(unloaded, f"{parameter.name}: SGLang loaded nothing into it")
            else:
                self.assertTrue(bytes(found["data"]) == parameter.data, f"{parameter.name}: other bytes")

    def compare(
        self, folder: Path, size: int, *, ep_size: int = 1, layout: str = "sglang", unloaded: bool = False
    ) -> None:
        """All ranks of a folder's model."""
        how = ("--tp", str(size), "--ep", str(ep_size), "--layout", layout)
        with rfork_program.seed("--model-path", folder, *how) as url:
            manifest = json.loads(fetch(f"{url}/v1/manifest?format=json"))
            self.assertEqual(manifest["layout"], layout)
            self.assertEqual([rank["tp"] for rank in manifest["ranks"]], [[i, size] for i in range(size)])
            for rank in manifest["ranks"]:
                place = sglang_oracle.Place(rank["tp"][0], size, ep_size, fuse_shared=layout == FUSED)
                self.assertEqual(rank["ep"], [place.rank * ep_size // size, ep_size])
                with self.subTest(rank=rank["tp"]):
                    self.compare_rank(url, rank, sglang_oracle.parameters(folder, place), unloaded)

    def refusal(self, folder: Path, size: int, layout: str) -> str:
        """What rfork says when it does not serve a model; AssertionError when it does."""
        command = ("serve", "--model-path", folder, "--tp", str(size), "--layout", layout, "--host", "127.0.0.1",
                   "--port", "0")  # fmt: skip
        with self.assertRaises(AssertionError) as caught:
            rfork_program.rfork(*command)
        return str(caught.exception)


class Families(Case):
    """A test for each family and size; added below."""


def add_family(name: str, make: Callable[[], sglang_models.Model], size: int) -> None:
    """Gives Families the test of one model at one size."""

    def test(self: Case) -> None:
        layout = LAYOUTS.get(name, "sglang")
        self.compare(self.folder(name, make), size, layout=layout, unloaded=name in WITHOUT_SCALES)

    setattr(Families, f"test_{name.replace('-', '_')}_tp{size}", test)


for family, maker in sglang_models.FAMILIES.items():
    for tp_size in maker().sizes:
        add_family(family, maker, tp_size)


class Others(Case):
    def test_random_models(self) -> None:
        for seed in range(RANDOM_SEED, RANDOM_SEED + RANDOM_CASES):
            model = sglang_models.random_model(seed)
            (size,) = model.sizes
            with self.subTest(seed=seed, architecture=model.config["architectures"], size=size):
                self.compare(self.folder(f"random-{seed}", lambda model=model: model), size)

    def test_experts_divided_among_the_ranks(self) -> None:
        for name, size, ep_size in EXPERT_PARALLEL:
            with self.subTest(name=name, size=size, ep_size=ep_size):
                self.compare(self.folder(name, sglang_models.FAMILIES[name]), size, ep_size=ep_size)

    def test_sizes_that_sglang_refuses_are_refused(self) -> None:
        for name, size in REFUSED:
            with self.subTest(name=name, size=size):
                folder = self.folder(name, sglang_models.FAMILIES[name])
                with self.assertRaises((AssertionError, ValueError)):
                    sglang_oracle.parameters(folder, sglang_oracle.Place(0, size))
                self.assertIn(str(size), self.refusal(folder, size, "sglang"))

    def test_architecture_without_a_plan_is_refused_by_name(self) -> None:
        folder = self.folder("no-plan", sglang_models.llama)
        config = folder / "config.json"
        config.write_text(config.read_text().replace("LlamaForCausalLM", "NobodysForCausalLM"))
        self.assertIn("NobodysForCausalLM", self.refusal(folder, 2, "sglang"))

    def test_layout_that_nobody_has_is_refused_by_name(self) -> None:
        self.assertIn("sparkling", self.refusal(self.folder("llama", sglang_models.llama), 2, "sparkling"))


del Case

if __name__ == "__main__":
    unittest.main()
