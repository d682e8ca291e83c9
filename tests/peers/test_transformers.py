"""Transformers loads what rfork wrote: real models, served, forked into another folder, and run.

ctest: timeout=900
"""

import os
import unittest
from pathlib import Path

import rfork_program

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
try:
    import safetensors.torch
    import torch
    import transformers
except (ImportError, OSError) as error:
    rfork_program.skip(f"PyTorch or transformers cannot be loaded: {error}")

transformers.utils.logging.disable_progress_bar()

# Long enough that positions matter: weights in the wrong row order of q and k still say "Paris", but not this.
TEXT = (
    "The Amazon rainforest is a moist broadleaf tropical rainforest in the Amazon biome that covers most of the Amazon "
    "basin of South America. This basin encompasses seven million square kilometres, of which about five and a half "
    "million are covered by the rainforest. The majority of the forest is contained within Brazil, with 60% of the "
    "rainforest, followed by Peru with 13%, Colombia with 10%, and with minor amounts in Bolivia and Ecuador."
)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, read by the safetensors package: name -> tensor of the file's dtype and shape."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def side_files(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files in a folder and its sub-folders but the weights."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".safetensors")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Forked(unittest.TestCase):
    """Forks one real model for all tests of the class."""

    MODEL: str
    TRANSPORT: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.source = rfork_program.model(cls.MODEL)
        scratch = cls.enterClassContext(rfork_program.scratch())
        cls.folder = scratch / cls.source.name
        cls.report = rfork_program.forked(cls.source, cls.folder, "--transport", cls.TRANSPORT)

    def assert_fork_was_verified(self) -> None:
        """By the transport asked for, with every chunk verified."""
        self.assertIs(self.report["verified"], True)
        self.assertIn(self.TRANSPORT, ("auto", self.report["transport"]))

    def assert_side_files_came_along(self) -> None:
        """Configuration, tokenizer and the rest: the same names, the same bytes."""
        found = side_files(self.folder)
        wanted = side_files(self.source)
        self.assertIn("config.json", wanted)
        self.assertEqual(found.keys(), wanted.keys())
        for name in wanted:
            self.assertTrue(found[name] == wanted[name], f"{name}: other bytes")

    def assert_equal_tensors(self, found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
        """Same names, dtypes, shapes and bits."""
        self.assertEqual(found.keys(), wanted.keys())
        for name, tensor in wanted.items():
            self.assertEqual((found[name].dtype, found[name].shape), (tensor.dtype, tensor.shape), name)
            bits = [t.detach().contiguous().view(torch.uint8) for t in (found[name], tensor)]
            self.assertTrue(torch.equal(*bits), f"{name}: other bits")


class SmolLM2(Forked):
    MODEL = "smollm2"
    TRANSPORT = "tcp"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.tokenizer = transformers.AutoTokenizer.from_pretrained(cls.folder)
        cls.model, cls.loading = transformers.AutoModelForCausalLM.from_pretrained(
            cls.folder, dtype=torch.bfloat16, output_loading_info=True
        )

    def test_loads_without_a_missing_or_unexpected_tensor(self) -> None:
        self.assertEqual({problem: list(names) for problem, names in self.loading.items() if names}, {})
        self.assertIs(self.model.lm_head.weight, self.model.model.embed_tokens.weight)

    def test_the_capital_of_france_is_paris(self) -> None:
        prompt = self.tokenizer("The capital of France is", return_tensors="pt")
        output = self.model.generate(**prompt, max_new_tokens=1, do_sample=False)
        self.assertEqual(self.tokenizer.decode(output[0, -1:]), " Paris")

    def test_finds_english_likely(self) -> None:
        tokens = self.tokenizer(TEXT, return_tensors="pt").input_ids
        with torch.inference_mode():
            loss = self.model(tokens, labels=tokens).loss.item()
        # 2.3 nats per token as it is; 4.0 with q and k permuted, 10.8 by chance.
        self.assertLess(loss, 2.8)

    def test_tokenizer_splits_digits_and_gives_text_back(self) -> None:
        text = "I have 1234 apples, don't you?\n\n  naïve 東京 😀"
        tokens = self.tokenizer.tokenize(text)
        self.assertEqual([token for token in tokens if token.isdigit()], ["1", "2", "3", "4"])
        self.assertEqual(self.tokenizer.decode(self.tokenizer(text).input_ids), text)

    def test_parameters_are_those_of_the_source(self) -> None:
        self.assert_equal_tensors(dict(self.model.named_parameters()), tensors_of(self.source))

    def test_fork_was_verified(self) -> None:
        self.assert_fork_was_verified()

    def test_side_files_came_along(self) -> None:
        self.assert_side_files_came_along()


class MiniLM(Forked):
    MODEL = "minilm"
    TRANSPORT = "auto"

    def test_parameters_are_those_of_the_source(self) -> None:
        model, loading = transformers.BertModel.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True
        )
        wanted = tensors_of(self.source)
        # A buffer that transformers computes itself, and a checkpoint of 2021 still carries.
        del wanted["embeddings.position_ids"]
        self.assertFalse(loading["missing_keys"])
        self.assertEqual(len(wanted), 103)
        self.assert_equal_tensors(dict(model.named_parameters()), wanted)

    def test_tensors_are_those_of_the_source(self) -> None:
        self.assert_equal_tensors(tensors_of(self.folder), tensors_of(self.source))

    def test_fork_was_verified(self) -> None:
        self.assert_fork_was_verified()

    def test_side_files_came_along(self) -> None:
        self.assert_side_files_came_along()


del Forked

if __name__ == "__main__":
    unittest.main()
