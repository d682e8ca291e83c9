#!/usr/bin/env python3
"""New instances that are cut differently from their seed, or whole again: the same bytes as if the checkpoint had been
cut for them, over tcp and from the seed's own pages.

ctest: timeout=600"""

import signal
import time
import unittest

import util

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 4,
    "head_dim": 8, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 336, "torch_dtype": "bfloat16",
}
PATHS = ("tcp", "map")


def llama(**more):
    """{name: Tensor} of a small Llama, and its config."""
    config = {**LLAMA, **more}
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head, inner, vocab = config["head_dim"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes.update({
            at + "input_layernorm.weight": [hidden], at + "post_attention_layernorm.weight": [hidden],
            at + "self_attn.q_proj.weight": [heads * head, hidden], at + "self_attn.k_proj.weight": [kv * head, hidden],
            at + "self_attn.v_proj.weight": [kv * head, hidden], at + "self_attn.o_proj.weight": [hidden, heads * head],
            at + "mlp.gate_proj.weight": [inner, hidden], at + "mlp.up_proj.weight": [inner, hidden],
            at + "mlp.down_proj.weight": [hidden, inner],
        })
    return {name: util.Tensor("BF16", shape) for name, shape in shapes.items()}, config


def moe_fp8(experts=8):
    """{name: Tensor} of a small Qwen3-MoE in block-FP8, and its config."""
    hidden, heads, kv, head, inner, vocab, block = 128, 8, 4, 32, 512, 200, 16
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": hidden, "num_attention_heads": heads, "head_dim": head,
        "num_key_value_heads": kv, "moe_intermediate_size": inner, "intermediate_size": inner, "num_experts": experts,
        "num_hidden_layers": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": vocab,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [block, block]},
    }
    tensors = {name: util.Tensor("BF16", shape) for name, shape in (
        ("model.embed_tokens.weight", [vocab, hidden]), ("model.norm.weight", [hidden]), ("lm_head.weight", [vocab, hidden]))}

    def quantised(name, rows, columns):
        tensors[name + ".weight"] = util.Tensor("F8_E4M3", [rows, columns])
        tensors[name + ".weight_scale_inv"] = util.Tensor("F32", [-(-rows // block), -(-columns // block)])

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, size in (("input_layernorm", hidden), ("post_attention_layernorm", hidden), ("self_attn.q_norm", head),
                           ("self_attn.k_norm", head)):
            tensors[f"{at}{name}.weight"] = util.Tensor("BF16", [size])
        quantised(at + "self_attn.q_proj", heads * head, hidden)
        quantised(at + "self_attn.k_proj", kv * head, hidden)
        quantised(at + "self_attn.v_proj", kv * head, hidden)
        quantised(at + "self_attn.o_proj", hidden, heads * head)
        tensors[at + "mlp.gate.weight"] = util.Tensor("BF16", [experts, hidden])
        for expert in range(experts):
            quantised(f"{at}mlp.experts.{expert}.gate_proj", inner, hidden)
            quantised(f"{at}mlp.experts.{expert}.up_proj", inner, hidden)
            quantised(f"{at}mlp.experts.{expert}.down_proj", hidden, inner)
    return tensors, config


class Reshard(util.Case):
    def llama(self, name="llama", shards=2, **more):
        tensors, config = llama(**more)
        side = {"tokenizer.json": b'{"a": 1}', "merges.txt": b"x y\n"}
        return self.model(name, tensors, shards=shards, config=config, side_files=side)

    def ranks_of(self, seed):
        """{number of the rank: its bytes as a safetensors file}."""
        count = len(seed.json("/v1/manifest?format=json")["ranks"])
        return [seed.get(f"/v1/ranks/{rank}.safetensors")[2] for rank in range(count)]

    def assert_same_ranks(self, one, other):
        ours, theirs = self.ranks_of(one), self.ranks_of(other)
        self.assertEqual(len(ours), len(theirs))
        for rank, (mine, expected) in enumerate(zip(ours, theirs)):
            self.assertEqual(mine, expected, f"rank {rank} differs")

    def cut(self, model, tp, *more):
        return self.seed("--model-path", model, "--tp", tp, *more)


class OtherSizes(Reshard):
    """A tp the seed has not: equal to the checkpoint cut for it."""

    def pairs(self, pairs, layout, **more):
        model = self.llama(**more)
        for have, want in pairs:
            with self.cut(model, have, "--layout", layout) as seed, self.cut(model, want, "--layout", layout) as direct:
                for path in PATHS:
                    with self.subTest(have=have, want=want, path=path, layout=layout):
                        with self.seed("--from", seed.url, "--tp", want, "--transport", path) as fork:
                            self.assert_same_ranks(fork, direct)
                            self.assertEqual(fork.root_digest(), direct.root_digest())

    def test_checkpoint_layout(self):
        self.pairs([(1, 2), (2, 4), (4, 2), (4, 1)], "checkpoint")

    def test_sglang_layout(self):
        self.pairs([(1, 2), (2, 4), (4, 2), (4, 1), (2, 16)], "sglang", vocab_size=330)

    def test_from_one_layout_to_the_other(self):
        model = self.llama()
        with self.cut(model, 4) as seed, self.cut(model, 2, "--layout", "sglang") as direct:
            for path in PATHS:
                with self.seed("--from", seed.url, "--tp", 2, "--layout", "sglang", "--transport", path) as fork:
                    self.assert_same_ranks(fork, direct)

    def test_tied_embeddings_and_changed_dtypes(self):
        tensors, config = llama(tie_word_embeddings=True)
        del tensors["lm_head.weight"]
        tensors["model.norm.weight"] = util.Tensor("F32", [128])
        model = self.model("tied", tensors, config={**config, "tie_word_embeddings": True})
        with self.cut(model, 2) as seed, self.cut(model, 4) as direct:
            for path in PATHS:
                with self.seed("--from", seed.url, "--tp", 4, "--transport", path) as fork:
                    self.assert_same_ranks(fork, direct)

    def test_a_fork_of_a_fork_of_a_fork(self):
        model = self.llama()
        with self.cut(model, 2) as first, self.cut(model, 2) as direct:
            with self.seed("--from", first.url, "--tp", 4, "--transport", "map") as second:
                with self.seed("--from", second.url, "--tp", 1, "--transport", "tcp") as third:
                    with self.seed("--from", third.url, "--tp", 2, "--transport", "map") as last:
                        self.assert_same_ranks(last, direct)

    def test_some_ranks_only(self):
        model = self.llama()
        with self.cut(model, 4) as seed, self.cut(model, 2, "--ranks", "1") as direct:
            for path in PATHS:
                with self.seed("--from", seed.url, "--tp", 2, "--ranks", "1", "--transport", path) as fork:
                    self.assert_same_ranks(fork, direct)

    def test_the_same_shape_goes_by_chunks(self):
        model = self.llama()
        with self.cut(model, 4) as seed:
            with self.seed("--from", seed.url, "--tp", 4, "--transport", "tcp") as fork:
                self.assert_same_ranks(fork, seed)
                self.assertEqual(fork.root_digest(), seed.root_digest())
            for shape in ([], ["--tp", 4]):
                done = self.rfork_json("fork", seed.url, "--transport", "tcp", *shape)
                self.assertTrue(done["verified"])
                self.assertEqual(done["ranks"], 4)
                self.assertEqual(done["root_digest"], seed.root_digest())

    def test_traffic_is_what_the_new_ranks_hold(self):
        with self.cut(self.llama(), 4) as seed:
            for arguments in (["--tp", 2], ["--tp", 2, "--ranks", 0], ["--tp", 16, "--ranks", "3,9"], ["--tp", 1]):
                done = self.rfork_json("fork", seed.url, "--transport", "tcp", *arguments)
                self.assertTrue(done["verified"])
                self.assertLessEqual(done["wire_bytes"], done["bytes"] * 1.01)

    def test_sizes_that_do_not_divide_are_refused(self):
        with self.cut(self.llama(), 8, "--layout", "sglang") as seed:
            self.rfork_fails(util.INVAL, "fork", seed.url, "--tp", 3, says="heads|divide|multiple")

    def test_ranks_need_to_exist(self):
        with self.cut(self.llama(), 4) as seed:
            self.rfork_fails(util.INVAL, "fork", seed.url, "--tp", 2, "--ranks", "2", says="--ranks: rank 2 does not exist")
            self.rfork_fails(util.INVAL, "fork", seed.url, "--ranks", "1", says="--tp")


class Experts(Reshard):
    """Block-FP8 with its scales, and experts divided over groups of ranks."""

    def moe(self):
        tensors, config = moe_fp8()
        return self.model("moe", tensors, shards=2, config=config)

    def test_block_fp8_from_size_to_size_to_the_folder(self):
        model = self.moe()
        for layout in ("checkpoint", "sglang"):
            with self.subTest(layout), self.cut(model, 1, "--layout", layout) as one:
                with self.seed("--from", one.url, "--tp", 2, "--transport", "tcp") as two:
                    with self.seed("--from", two.url, "--tp", 4, "--transport", "map") as four:
                        with self.cut(model, 4, "--layout", layout) as direct:
                            self.assert_same_ranks(four, direct)
                            self.assertEqual(four.root_digest(), direct.root_digest())
                        self.rfork_ok("fork", four.url, "-o", self.path(layout), "--transport", "tcp")
                        self.assert_same_files(model, self.path(layout))

    def test_experts_are_divided_and_put_together(self):
        model = self.moe()
        for layout in ("checkpoint", "sglang"):
            for have, want in (((1, 1), (4, 2)), ((2, 1), (2, 2)), ((2, 2), (4, 1)), ((4, 4), (2, 1)), ((4, 2), (4, 4)),
                               ((4, 4), (1, 1))):
                with self.cut(model, have[0], "--ep", have[1], "--layout", layout) as seed:
                    with self.cut(model, want[0], "--ep", want[1], "--layout", layout) as direct:
                        for path in PATHS:
                            with self.subTest(have=have, want=want, path=path, layout=layout):
                                with self.seed("--from", seed.url, "--tp", want[0], "--ep", want[1], "--transport", path) as fork:
                                    self.assert_same_ranks(fork, direct)
                                    self.assertEqual(fork.root_digest(), direct.root_digest())

    def test_a_folder_from_experts_that_are_divided(self):
        model = self.moe()
        with self.cut(model, 4, "--ep", 4, "--layout", "sglang") as seed:
            self.rfork_ok("fork", seed.url, "-o", self.path("copy"))
            self.assert_same_files(model, self.path("copy"))

    def test_a_rank_that_nobody_has_is_named_with_its_group(self):
        with self.cut(self.moe(), 4, "--ep", 2, "--ranks", "0,1") as seed:
            self.rfork_fails(util.MISMATCH, "fork", seed.url, "--tp", 1, says=r"it would be in tp2/4,ep1/2")

    def test_groups_that_do_not_divide_are_refused(self):
        with self.cut(self.moe(), 2, "--layout", "sglang") as seed:
            self.rfork_fails(util.INVAL, "fork", seed.url, "--tp", 4, "--ep", 3, says="ep 3: does not divide tp 4")
            self.rfork_fails(util.INVAL, "fork", seed.url, "--tp", 16, says="heads")


class OwnPages(Reshard):
    """What lies in pieces of a fair size in the seed's pages stays there, however a tensor is put together of them."""

    LARGE = {"hidden_size": 1024, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 512, "num_hidden_layers": 4}

    def test_only_what_is_cut_into_rows_is_copied_and_right(self):
        model = self.llama(**self.LARGE)
        rows = 4 * 2 * 1024 * (1024 + 8192)  # o_proj and down_proj: what no rank has in one piece
        self.assertGreater(rows, 64 << 20)  # enough to be written past the caches
        for layout in ("checkpoint", "sglang"):
            with self.subTest(layout), self.cut(model, 2, "--layout", layout) as seed:
                done = self.rfork_json("fork", seed.url, "--tp", 4, "--transport", "map")
                self.assertTrue(done["mapped"])
                self.assertGreaterEqual(done["copied_bytes"], rows)
                self.assertLess(done["copied_bytes"], rows * 1.01)  # and the norms, which are small
                with self.seed("--from", seed.url, "--tp", 4, "--transport", "map") as fork:
                    with self.cut(model, 4, "--layout", layout) as direct:
                        self.assertEqual(fork.root_digest(60), direct.root_digest(60))


class Whole(Reshard):
    """The checkpoint back from its slices."""

    def test_the_folder_is_the_original(self):
        model = self.llama(shards=3)
        for tp, layout in ((2, "checkpoint"), (4, "checkpoint"), (2, "sglang"), (8, "sglang")):
            with self.cut(model, tp, "--layout", layout) as seed:
                for path in PATHS:
                    with self.subTest(tp=tp, layout=layout, path=path):
                        copy = self.path(f"copy-{tp}-{layout}-{path}")
                        self.rfork_ok("fork", seed.url, "-o", copy, "--transport", path)
                        self.assert_same_files(model, copy)

    def test_a_folder_from_a_fork_that_has_no_files_itself(self):
        model = self.llama()
        with self.cut(model, 2) as seed:
            with self.seed("--from", seed.url, "--tp", 4, "--transport", "tcp") as fork:
                self.rfork_ok("fork", fork.url, "-o", self.path("copy"))
                self.assert_same_files(model, self.path("copy"))

    def test_what_a_layout_leaves_out_cannot_be_had_back(self):
        tensors, config = llama(tie_word_embeddings=True)
        model = self.model("tied", tensors, config=config)
        with self.cut(model, 2, "--layout", "sglang") as seed:
            self.rfork_fails(util.MISMATCH, "fork", seed.url, "-o", self.path("never-written"),
                             says="lm_head.weight, which none of the 2 ranks .*: layout sglang leaves it out.*--layout checkpoint")
            self.assert_nothing_left(self.path("never-written"))
            # All that the engine has can be cut again.
            with self.cut(model, 4, "--layout", "sglang") as direct:
                with self.seed("--from", seed.url, "--tp", 4) as fork:
                    self.assert_same_ranks(fork, direct)

    def test_shape_and_folder_exclude_each_other(self):
        self.rfork_fails(util.INVAL, "fork", "http://127.0.0.1:1", "-o", self.path("x"), "--tp", 2, says="--tp")


class Plans(Reshard):
    """What would happen is said before it does."""

    def test_dry_run_says_where_bytes_would_come_from(self):
        with self.cut(self.llama(), 4) as seed:
            done = self.rfork_json("fork", "--dry-run", seed.url, "--tp", 2, "--transport", "tcp")
            self.assertEqual([rank["rank"] for rank in done["plan"]], ["tp0/2", "tp1/2"])
            for rank in done["plan"]:
                self.assertEqual(rank["bytes"], rank["copied_bytes"] + rank["mapped_bytes"] + rank["filled_bytes"])
                self.assertEqual(sum(source["bytes"] for source in rank["from"]), rank["copied_bytes"])
            own = {source["rank"] for source in done["plan"][0]["from"]}
            self.assertLessEqual({"tp0/4", "tp1/4"}, own)
            text = self.rfork_ok("fork", "--dry-run", seed.url, "--tp", 2).stdout
            self.assertRegex(text, r"rank tp0/2: .*from tp0/4")

    def test_a_folder_can_be_asked_about_too(self):
        with self.cut(self.llama(), 4) as seed:
            done = self.rfork_json("fork", "--dry-run", seed.url, "-o", self.path("x"), "--transport", "tcp")
            self.assertEqual(len(done["plan"]), 1)
            self.assertEqual(done["move_bytes"], done["bytes"])


class SeveralSeeds(Reshard):
    """Ranks of one model at several places."""

    def test_each_gives_what_it_has(self):
        model = self.llama()
        with self.cut(model, 4, "--ranks", "0,1") as one, self.cut(model, 4, "--ranks", "2-3") as other:
            with self.cut(model, 2) as direct:
                for path in PATHS:
                    urls = f"{one.url},{other.url}"
                    with self.seed("--from", urls, "--tp", 2, "--transport", path) as fork:
                        self.assert_same_ranks(fork, direct)
                done = self.rfork_json("fork", one.url, other.url, "--tp", 1, "--transport", "tcp")
                self.assertTrue(done["verified"])
                self.rfork_ok("fork", one.url, other.url, "-o", self.path("copy"))
                self.assert_same_files(model, self.path("copy"))

    def test_a_rank_that_nobody_has_is_named(self):
        with self.cut(self.llama(), 2, "--ranks", "0") as seed:
            self.rfork_fails(util.MISMATCH, "fork", seed.url, "--tp", 4, says=r"tp1/2|rank")
            self.rfork_fails(util.MISMATCH, "fork", seed.url, "-o", self.path("never-written"))
            self.assert_nothing_left(self.path("never-written"))

    def test_another_model_is_refused_before_bytes_move(self):
        model = self.llama()
        for name, more, says in (
            ("other", {}, 'llama.*other'),
            ("llama", {"hidden_size": 256}, r"\[\d+, \d+\]"),
            ("llama", {"num_hidden_layers": 4}, "layers.3"),
        ):
            other = self.llama(f"{name}-{len(more)}-{says[:3]}", **more)
            with self.cut(model, 2, "--ranks", "0") as one:
                with self.cut(other, 2, "--ranks", "1", "--model-name", name) as wrong:
                    start = time.monotonic()
                    self.rfork_fails(util.MISMATCH, "fork", one.url, wrong.url, "--tp", 1, says=says)
                    self.assertLess(time.monotonic() - start, 1 * util.SLOW)
                    for seed in (one, wrong):
                        sent = [value for key, value in seed.metrics().items() if key.startswith("rfork_sent_bytes")]
                        self.assertEqual(sum(sent), 0)


    def test_versions_of_one_model_do_not_mix(self):
        """The same names, shapes and config; other bytes. Every chunk would be just what its seed says."""
        (model, newer) = (self.llama(name) for name in ("one/llama", "two/llama"))
        with self.cut(model, 2, "--ranks", "0") as one, self.cut(newer, 2, "--ranks", "1") as other:
            for more in (["--tp", 1], ["--tp", 2], ["--tp", 2, "--dry-run"], ["-o", self.path("never-written")]):
                self.rfork_fails(util.MISMATCH, "fork", one.url, other.url, *more, says="norm.*two versions of the model")
            self.assert_nothing_left(self.path("never-written"))
            urls = f"{one.url},{other.url}"
            self.rfork_fails(util.MISMATCH, "serve", "--port", 0, "--from", urls, "--tp", 4, says="two versions")

    def test_another_config_is_another_model(self):
        tensors, config = llama()
        model = self.model("one/llama", tensors, config=config)
        other = self.model("two/llama", tensors, config={**config, "rope_theta": 1.0})
        with self.cut(model, 2, "--ranks", "0") as one, self.cut(other, 2, "--ranks", "1") as wrong:
            self.rfork_fails(util.MISMATCH, "fork", one.url, wrong.url, "--tp", 1, says="config.json")


class BadDays(Reshard):
    """What goes wrong under way."""

    def test_corruption_is_read_again_or_found_out(self):
        with self.cut(self.llama(), 2) as seed:
            done = self.rfork_json("fork", seed.url, "--tp", 4, "--ranks", 1, "--transport", "fault:7,kind=corrupt,times=1:tcp")
            self.assertTrue(done["verified"])
            self.assertGreaterEqual(done["chunks_retried"], 1)
            self.rfork_fails(util.CORRUPT, "fork", seed.url, "--tp", 4, "--ranks", 1, "--transport",
                             "fault:7,kind=corrupt:tcp", says=r"rank tp\d/2.*tensors")
            self.rfork_fails(util.CORRUPT, "fork", seed.url, "--tp", 4, "--ranks", 1, "--transport", "fault:5,kind=lie:tcp")

    def test_a_seed_that_is_killed_ends_the_fork_with_its_rank(self):
        model = self.llama(hidden_size=1024, intermediate_size=4096, head_dim=64, vocab_size=4096)
        seed = self.cut(model, 2, "--chunk-size", "64KiB")
        # Hundreds of reads, an eighth of which are late by some milliseconds.
        fork = self.start("fork", seed.url, "--tp", 4, "--timeout", "2s", "--retries", 1, "--transport",
                          "fault:3,kind=delay:tcp", "--connections", 1)

        def sent():
            return sum(value for key, value in seed.metrics().items() if key.startswith("rfork_sent_bytes"))

        util.wait_until(lambda: sent() > 0, what="bytes sent")
        seed.send(signal.SIGKILL)
        self.assertIn(fork.wait(30), (util.UNREACHABLE, util.TIMEOUT))
        self.assertIn("127.0.0.1", fork.stderr)

    def test_a_seed_that_does_not_say_what_its_ranks_are_is_refused(self):
        config = {"architectures": ["UnheardOfForCausalLM"]}
        with self.seed("--model-path", self.model(config=config)) as seed:
            self.rfork_fails(util.UNSUPPORTED, "fork", seed.url, "--tp", 2, says="UnheardOfForCausalLM")


if __name__ == "__main__":
    unittest.main()
