"""`serve --tp`: what each rank holds, in both layouts, against slices cut here; what is viewed and made; refusals.

The model is a Qwen3 of tools/models/generate.py, small; the rules are written down here once more, on their own.
ctest: timeout=300
"""

import json
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import util
from util import Tensor

GENERATE = util.SOURCE / "tools/models/generate.py"
SHAPE = {"layers": 2, "hidden": 128, "intermediate": 384, "heads": 8, "kv-heads": 4, "head-dim": 32, "vocab": 500}


def generate(folder, **changes):
    shape = {**SHAPE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    flags = [f"--{name}={value}" for name, value in shape.items()]
    command = [sys.executable, str(GENERATE), "--out", str(folder), "--shards=2", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60 * util.SLOW)
    return str(folder)


def read_model(folder):
    """{name: Tensor} of all files, and the config."""
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(util.read_safetensors(path)[0])
    return tensors, json.loads((Path(folder) / "config.json").read_text())


# ---- the rules, once more ----


def rows(tensor, first, end):
    """tensor[first:end]; what is beyond its last row is zeros."""
    width = len(tensor.data) // tensor.shape[0]
    data = tensor.data[first * width : end * width]
    data += bytes((end - first) * width - len(data))
    return Tensor(tensor.dtype, [end - first, *tensor.shape[1:]], data)


def columns(tensor, first, end):
    """tensor[:, first:end]"""
    width = len(tensor.data) // tensor.shape[0]
    element = width // tensor.shape[1]
    data = b"".join(
        tensor.data[row * width + first * element : row * width + end * element] for row in range(tensor.shape[0])
    )
    return Tensor(tensor.dtype, [tensor.shape[0], end - first], data)


def share(tensor, tp, rank, cut):
    each = tensor.shape[0 if cut is rows else 1] // tp
    return cut(tensor, rank * each, (rank + 1) * each)


def kv_share(tensor, config, tp, rank):
    """Whole heads; with fewer heads than ranks, neighbours have the same one."""
    heads = config["num_key_value_heads"]
    if heads >= tp:
        return share(tensor, tp, rank, rows)
    return share(tensor, heads, rank * heads // tp, rows)


def checkpoint_rank(tensors, config, tp, rank):
    out = {}
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            out[name] = kv_share(tensor, config, tp, rank)
        elif any(part in name for part in (".q_proj.", ".gate_proj.", ".up_proj.", "embed_tokens", "lm_head")):
            out[name] = share(tensor, tp, rank, rows)
        elif ".o_proj." in name or ".down_proj." in name:
            out[name] = share(tensor, tp, rank, columns)
        else:
            out[name] = tensor
    return out


def stack(*parts):
    data = b"".join(part.data for part in parts)
    return Tensor(parts[0].dtype, [sum(part.shape[0] for part in parts), *parts[0].shape[1:]], data)


def sglang_rank(tensors, config, tp, rank):
    cut = checkpoint_rank({name: t for name, t in tensors.items() if "norm" not in name}, config, tp, rank)
    out = {name: tensor for name, tensor in tensors.items() if "norm" in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            each = -(-tensors[name].shape[0] // 64) * 64 // tp
            out[name] = rows(tensors[name], rank * each, (rank + 1) * each)
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        out[attention + "qkv_proj.weight"] = stack(*(cut[f"{attention}{x}_proj.weight"] for x in "qkv"))
        out[attention + "o_proj.weight"] = cut[attention + "o_proj.weight"]
        out[mlp + "gate_up_proj.weight"] = stack(cut[mlp + "gate_proj.weight"], cut[mlp + "up_proj.weight"])
        out[mlp + "down_proj.weight"] = cut[mlp + "down_proj.weight"]
    return out


RULES = {"checkpoint": checkpoint_rank, "sglang": sglang_rank}


# ---- tests ----


class WithModel(util.Case):
    """One model for all tests of a class."""

    @classmethod
    def setUpClass(cls):
        cls.home = Path(util.tempfile.mkdtemp(prefix="rfork-test-"))
        cls.addClassCleanup(shutil.rmtree, cls.home, ignore_errors=True)
        cls.plain = generate(cls.home / "plain")
        cls.tensors, cls.config = read_model(cls.plain)

    def rank_file(self, seed, index):
        status, _, body = seed.get(f"/v1/ranks/{index}.safetensors")
        self.assertEqual(status, 200, body[:300])
        path = self.folder / f"rank-{index}.safetensors"
        path.write_bytes(body)
        return util.read_safetensors(path)[0]

    def assert_same_tensors(self, found, wanted):
        self.assertEqual(sorted(found), sorted(wanted))
        for name, tensor in wanted.items():
            self.assertEqual((found[name].dtype, found[name].shape), (tensor.dtype, tensor.shape), name)
            self.assertTrue(found[name].data == tensor.data, name)

    def check(self, layout, tp, *more, tensors=None, config=None, model=None, ranks=None):
        """Every byte of every rank that is held; returns the ready line's fields."""
        ranks = range(tp) if ranks is None else ranks
        arguments = ["--model-path", model or self.plain, "--tp", tp, "--layout", layout, *more]
        with self.seed(*arguments) as seed:
            for index, rank in enumerate(ranks):
                wanted = RULES[layout](tensors or self.tensors, config or self.config, tp, rank)
                self.assert_same_tensors(self.rank_file(seed, index), wanted)
            self.assertEqual(seed.get(f"/v1/ranks/{len(ranks)}.safetensors")[0], 404)
            return seed.fields


class Ranks(WithModel):
    def test_every_byte_of_every_rank(self):
        for layout in RULES:
            for tp in (1, 2, 4):
                for more in ((), ("--mmap",)):
                    with self.subTest(layout=layout, tp=tp, more=more):
                        fields = self.check(layout, tp, *more)
                        self.assertEqual(fields["layout"], layout)
                        self.assertEqual(fields["ranks"], {1: "0/1", 2: "0,1/2", 4: "0-3/4"}[tp])

    def test_fewer_kv_heads_than_ranks_are_replicated(self):
        model = generate(self.folder / "model", vocab=512)
        tensors, config = read_model(model)
        for layout in RULES:
            with self.subTest(layout):
                self.check(layout, 8, model=model, tensors=tensors, config=config)

    def test_some_of_the_ranks(self):
        for text, ranks in (("1", [1]), ("0,3", [0, 3]), ("1-2", [1, 2])):
            with self.subTest(text):
                fields = self.check("sglang", 4, "--ranks", text, ranks=ranks)
                self.assertEqual(fields["ranks"], text.replace("1-2", "1,2") + "/4")

    def test_other_names_of_the_option(self):
        with self.seed("--model-path", self.plain, "--tp-size=2") as seed:
            self.assertEqual(seed.fields["ranks"], "0,1/2")
        with self.seed("--model-path", self.plain, "--tensor-parallel-size", "4", "--json") as seed:
            self.assertEqual(seed.fields["ranks"], [f"tp{rank}/4" for rank in range(4)])
            self.assertEqual(seed.fields["layout"], "checkpoint")
            self.assertGreater(seed.fields["viewed_bytes"], seed.fields["made_bytes"])

    def test_only_slices_of_rows_are_made(self):
        cut = sum(len(t.data) for name, t in self.tensors.items() if ".o_proj." in name or ".down_proj." in name)
        whole = sum(len(t.data) for t in self.tensors.values())
        fields = self.check("checkpoint", 4, "--mmap")
        self.assertEqual((int(fields["made"]), int(fields["viewed"])), (cut, whole - cut))
        fields = self.check("checkpoint", 1)
        self.assertEqual((int(fields["made"]), int(fields["viewed"])), (0, whole))
        # An SGLang engine pads the vocabulary: the longest run of zeros is made too, once.
        fields = self.check("sglang", 4, "--mmap")
        self.assertEqual(int(fields["made"]), cut + 12 * SHAPE["hidden"] * 2)

    def test_tied_embeddings(self):
        model = generate(self.folder / "tied", vocab=512)
        config = json.loads((Path(model) / "config.json").read_text())
        config["tie_word_embeddings"] = True
        tensors = read_model(model)[0]
        del tensors["lm_head.weight"]
        model = util.write_model(self.folder / "tied2", tensors, config=config)
        self.check("sglang", 2, model=model, tensors=tensors, config=config)

    def test_one_tensor_of_one_rank(self):
        name = "model.layers.1.self_attn.o_proj.weight"
        with self.seed("--model-path", self.plain, "--tp", "4", "--layout", "sglang") as seed:
            for rank in range(4):
                status, headers, body = seed.get(f"/v1/tensors/{name}?rank={rank}")
                wanted = sglang_rank(self.tensors, self.config, 4, rank)[name]
                self.assertEqual((status, headers["X-Rfork-Shape"]), (200, "[128,64]"))
                self.assertTrue(body == wanted.data)
            self.assertEqual(seed.get(f"/v1/tensors/{name}?rank=4")[0], 400)
            seed.root_digest()

    def test_digests_do_not_depend_on_how_it_is_held(self):
        roots = set()
        for more in (("--mmap",), ("--no-direct",), ("--threads", "1")):
            with self.seed("--model-path", self.plain, "--tp", "4", "--layout", "sglang", *more) as seed:
                roots.add(seed.root_digest())
        done = self.rfork_json("inspect", "--digest", "--tp", "4", "--layout", "sglang", self.plain)
        self.assertEqual(roots, {done["root_digest"]})


class Files(WithModel):
    """The checkpoint's own files, from ranks."""

    def test_files_come_back_where_all_bytes_are_held(self):
        names = sorted(path.name for path in Path(self.plain).iterdir())
        for layout in RULES:
            with self.seed("--model-path", self.plain, "--tp", "4", "--layout", layout) as seed:
                for name in names:
                    status, _, body = seed.get(f"/v1/files/{name}")
                    self.assertEqual(status, 200, body[:300])
                    self.assertTrue(body == (Path(self.plain) / name).read_bytes(), name)

    def test_of_some_ranks_only_what_they_hold(self):
        name = "model-00001-of-00002.safetensors"
        raw = (Path(self.plain) / name).read_bytes()
        head = 8 + int.from_bytes(raw[:8], "little")
        with self.seed("--model-path", self.plain, "--tp", "4", "--ranks", "0,2") as seed:
            status, _, body = seed.get(f"/v1/files/{name}")
            self.assertEqual(status, 404)
            error = json.loads(body)["error"]
            self.assertEqual(error["code"], "RF_E_UNSUPPORTED")
            self.assertIn("in no rank that is held here", error["message"])
            status, _, body = seed.get(f"/v1/files/{name}", headers={"Range": f"bytes=0-{head - 1}"})
            self.assertEqual((status, body), (206, raw[:head]))


class Refused(util.Case):
    def refused(self, code, says, *arguments, model=None, tp=2, layout="checkpoint"):
        common = ["--tp", tp, "--layout", layout, *arguments]
        line = self.rfork_fails(code, "serve", "--port", "0", "--model-path", model, *common, says=says)
        self.rfork_fails(code, "inspect", model, *common, says=says)
        return line

    def changed(self, change, **shape):
        """A copy of the model in one file, after change(tensors, config)."""
        tensors, config = read_model(generate(self.folder / "original", **shape))
        change(tensors, config)
        return util.write_model(self.folder / "changed", tensors, config=config)

    def test_heads_that_do_not_divide(self):
        model = generate(self.folder / "model", vocab=510)
        self.refused(util.INVAL, "4 num_key_value_heads cannot be divided by tp 3", model=model, tp=3)
        model = generate(self.folder / "kv", heads=16, kv_heads=8, head_dim=16, vocab=480)
        self.refused(util.INVAL, "8 num_key_value_heads cannot be divided by tp 3", model=model, tp=3)
        model = generate(self.folder / "q", heads=9, kv_heads=3, head_dim=16, vocab=480)
        self.refused(util.INVAL, "9 num_attention_heads cannot be divided by tp 6", model=model, tp=6)
        model = generate(self.folder / "less", heads=24, kv_heads=4, head_dim=16, vocab=480)
        self.refused(util.INVAL, "tp 6 is no multiple of its 4 KV heads", model=model, tp=6)

    def test_a_vocabulary_that_does_not_divide(self):
        model = generate(self.folder / "model", vocab=501)
        self.refused(util.INVAL, r"embed_tokens.*501|lm_head.*501|vocab_size.*501", model=model)
        self.rfork_ok("inspect", "--tp", "2", "--layout", "sglang", model)

    def test_a_missing_tensor(self):
        def change(tensors, config):
            del tensors["model.layers.1.mlp.up_proj.weight"]

        self.refused(util.FORMAT, r"model\.layers\.1\.mlp\.up_proj\.weight", model=self.changed(change))

    def test_a_tensor_that_no_rule_knows(self):
        def change(tensors, config):
            tensors["model.layers.1.mlp.side_proj.weight"] = Tensor("BF16", [4, 4])

        self.refused(util.FORMAT, r"model\.layers\.1\.mlp\.side_proj\.weight", model=self.changed(change))

    def test_a_wrong_shape(self):
        def change(tensors, config):
            tensors["model.layers.0.self_attn.o_proj.weight"] = Tensor("BF16", [128, 128])

        self.refused(util.FORMAT, r"o_proj\.weight.*\[128, ?128\].*\[128, ?256\]|o_proj\.weight.*256.*128",
                     model=self.changed(change))

    def test_a_config_that_lacks_something(self):
        def change(tensors, config):
            del config["num_attention_heads"]

        self.refused(util.FORMAT, "num_attention_heads", model=self.changed(change))

    def test_an_architecture_without_a_plan(self):
        def change(tensors, config):
            config["architectures"] = ["FrobnicateForCausalLM"]

        model = self.changed(change)
        line = self.refused(util.UNSUPPORTED, "FrobnicateForCausalLM", model=model)
        self.assertIn("--plan", line)
        # As it is, it can be served.
        with self.seed("--model-path", model, "--tp", "1") as seed:
            self.assertEqual(seed.fields["ranks"], "0/1")

    def test_no_config(self):
        model = generate(self.folder / "model")
        (Path(model) / "config.json").unlink()
        self.refused(util.FORMAT, "no config.json", model=model)
        (Path(model) / "config.json").write_text("{")
        self.refused(util.FORMAT, "config.json", model=model)

    def test_a_bad_plan_file(self):
        model = generate(self.folder / "model")
        self.refused(util.SYS, r"--plan: open .*nothing\.plan", "--plan", self.path("nothing.plan"), model=model)
        self.refused(util.SYS, r"--plan: read .*: Is a directory", "--plan", str(self.folder), model=model)
        plan = self.folder / "bad.plan"
        for text in ("", "what is this\n", "plan x\nbogus line here\n", "\0\1\2", "x" * (2 << 20)):
            plan.write_text(text)
            self.refused(util.FORMAT, r"bad\.plan", "--plan", plan, model=model)

    def test_a_plan_for_another_architecture(self):
        model = generate(self.folder / "model")
        plan = self.folder / "other.plan"
        plan.write_text("plan other\narchitecture XForCausalLM YForCausalLM\ntensor * replicated\n")
        self.refused(util.FORMAT, "plan other is for XForCausalLM, YForCausalLM, the model is a Qwen3ForCausalLM",
                     "--plan", plan, model=model)
        plan.write_text("plan other\ntensor * replicated\n")
        self.rfork_ok("inspect", "--tp", "2", "--plan", plan, model)

    def test_a_plan_of_ones_own(self):
        def change(tensors, config):
            config["architectures"] = ["FrobnicateForCausalLM"]
            tensors.clear()
            tensors["a.weight"] = Tensor("F32", [8, 6])
            tensors["b.weight"] = Tensor("F32", [8, 6])

        plan = self.folder / "own.plan"
        plan.write_text("plan own\narchitecture FrobnicateForCausalLM\ntensor a.weight column [8,6]\n"
                        "tensor b.weight row [8,6]\n")
        model = self.changed(change)
        tensors = util.read_safetensors(Path(model) / "model.safetensors")[0]
        with self.seed("--model-path", model, "--tp", "2", "--plan", plan) as seed:
            for rank in range(2):
                body = seed.get(f"/v1/tensors/a.weight?rank={rank}")[2]
                self.assertEqual(body, rows(tensors["a.weight"], 4 * rank, 4 * rank + 4).data)
                body = seed.get(f"/v1/tensors/b.weight?rank={rank}")[2]
                self.assertEqual(body, columns(tensors["b.weight"], 3 * rank, 3 * rank + 3).data)

    def test_the_command_line(self):
        model = generate(self.folder / "model")
        for says, *arguments in (
            ("--ranks: rank 2 does not exist", "--tp", "2", "--ranks", "0-2"),
            ("--ranks: rank 0 is in the list twice", "--tp", "2", "--ranks", "0,0"),
            ("--ranks: .*no list of ranks", "--tp", "2", "--ranks", "x"),
            ("--ranks: rank 1 does not exist", "--ranks", "1"),
            ("0 is not in 1 ... 4096", "--tp", "0"),
            ("4097 is not in 1 ... 4096", "--tensor-parallel-size", "4097"),
        ):
            with self.subTest(arguments):
                self.rfork_fails(util.INVAL, "serve", "--model-path", model, *arguments, says=says)
                self.rfork_fails(util.INVAL, "inspect", model, *arguments, says=says)
        self.rfork_fails(util.INVAL, "inspect", "http://127.0.0.1:9", "--tp", "2", says="about a folder")

    def test_a_layout_that_the_plan_has_not(self):
        model = generate(self.folder / "model")
        line = self.refused(util.INVAL, r"(?i)layout.*vllm|vllm.*layout", model=model, layout="vllm")
        self.assertIn("sglang", line)

    def test_a_tp_that_no_model_has(self):
        model = generate(self.folder / "model")
        self.refused(util.INVAL, "4096", model=model, tp=4096)


class Inspect(util.Case):
    def test_ranks_slices_and_layout(self):
        model = generate(self.folder / "model")
        lines = self.rfork_ok("inspect", "--tp", "4", "--layout", "sglang", "--tensors", model).stdout
        self.assertIn("stage          fused, layout sglang,", lines)
        self.assertRegex(lines, r"(?m)^rank           tp3/4: 1\d tensors \(\d+ slices\), ")
        self.assertRegex(lines, r"(?m)^would hold     .* shown where it is in the files, .* made$")
        self.assertIn("tensors of     tp2/4\n", lines)
        self.assertIn("o_proj.weight BF16 [128, 64] 16384 of [128, 256] at [0, 128]\n"
                      "  part         model.layers.0.self_attn.o_proj.weight[:, 128:192], 16384 bytes\n", lines)
        self.assertRegex(lines, r"qkv_proj\.weight BF16 \[128, 128\] .*\n  part .*q_proj\.weight\[64:128\], 16384 bytes\n"
                                r"  part .*k_proj\.weight\[32:64\], 8192 bytes\n  part .*v_proj\.weight\[32:64\], 8192")
        self.assertIn("  part         zeros, 3072 bytes\n", lines)

    def test_what_differs_is_named_with_its_rank(self):
        model = generate(self.folder / "model")
        tensors, config = read_model(model)
        name = "model.layers.1.mlp.up_proj.weight"
        data = bytearray(tensors[name].data)
        data[-1] ^= 1 # of the last rows: the last rank's
        tensors[name] = Tensor("BF16", tensors[name].shape, bytes(data))
        other = util.write_model(self.folder / "other", tensors, config=config)
        with self.seed("--model-path", model, "--tp", "4") as one, self.seed("--model-path", other, "--tp", "4") as two:
            done = self.rfork("diff", one.url, two.url)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertEqual(done.stdout.splitlines()[2:], [f"rank tp3/4: {name}: other bytes in B than in A", "1 difference: 1 content"])
            done = json.loads(self.rfork("diff", "--json", one.url, two.url).stdout)
            self.assertEqual([found["rank"] for found in done["differences"]], ["tp3/4"])
            self.rfork_fails(util.MISMATCH, "diff", one.url, model, says="sharded differently.*inspect --digest --tp")

    def test_a_seed_says_the_same_of_itself(self):
        model = generate(self.folder / "model")
        arguments = ["--tp", "4", "--layout", "sglang"]
        mine = self.rfork_json("inspect", *arguments, "--tensors", model)
        with self.seed("--model-path", model, *arguments) as seed:
            theirs = self.rfork_json("inspect", "--tensors", seed.url)
            self.assertEqual(mine["manifest"], theirs["manifest"])
            self.assertEqual(mine["rank_list"], theirs["rank_list"])
            self.assertEqual((mine["layout"], theirs["layout"]), ("sglang", "sglang"))
            self.assertEqual(int(seed.fields["made"]), mine["made_bytes"])
            self.assertEqual(int(seed.fields["viewed"]), mine["viewed_bytes"])


if __name__ == "__main__":
    unittest.main()
