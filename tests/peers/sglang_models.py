"""Small random checkpoints of the families that have a plan for SGLang's layout, of sizes that are awkward on purpose.

The vocabulary of 1000 needs padding whatever the tensor-parallel size, 2 KV heads are fewer than most sizes, layers are
dense and sparse in one model, and checkpoints carry what an engine must leave out: rotary frequencies, the layer for
multi-token prediction, an lm_head that is tied anyway. config.json has what SGLang and rfork read. Names and shapes are
those of the published checkpoints: meta-llama/Llama-3.2, Qwen/Qwen2.5, Qwen/Qwen3, Qwen/Qwen3-30B-A3B (and -FP8),
deepseek-ai/DeepSeek-V3, moonshotai/Moonlight-16B-A3B-Instruct.
"""

import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(os.environ.get("RFORK_SOURCE", Path(__file__).parents[2])) / "tools/models"))
import generate  # noqa: E402
import safetensors_io  # noqa: E402
from safetensors_io import Tensor  # noqa: E402

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What one folder holds."""

    config: dict[str, object]
    tensors: list[Tensor]
    shards: int = 2
    sizes: tuple[int, ...] = field(default=(1, 2, 4))  # tensor-parallel sizes worth testing

    def write(self, folder: Path) -> None:
        """Makes the folder: safetensors files, index, config.json. The bytes depend on names and dtypes alone."""
        folder.mkdir()
        files = safetensors_io.shard_names(self.shards)
        runs = safetensors_io.split(self.tensors, self.shards)
        noise = {dtype: generate.Noise(7, dtype) for dtype in {tensor.dtype for tensor in self.tensors}}
        for file, run in zip(files, runs, strict=True):
            pieces = (piece for t in run for piece in noise[t.dtype].tensor(t.name, t.bytes))
            safetensors_io.write_file(folder / file, run, pieces)
        if self.shards > 1:
            safetensors_io.write_index(folder, files, runs)
        safetensors_io.write_json(folder / "config.json", self.config)


def common(architecture: str, model_type: str, dtype: str, **more: object) -> dict[str, object]:
    """The part of config.json that all families have."""
    return {
        "architectures": [architecture], "model_type": model_type, "torch_dtype": DTYPES[dtype], "vocab_size": 1000,
        "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "max_position_embeddings": 8192,
        "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02, "use_cache": True, **more,
    }  # fmt: skip


def linear(name: str, dtype: str, rows: int, columns: int, bias: bool = False) -> Iterator[Tensor]:
    """A projection of the checkpoint: weight [rows, columns], perhaps bias [rows]."""
    yield Tensor(f"{name}.weight", dtype, (rows, columns))
    if bias:
        yield Tensor(f"{name}.bias", dtype, (rows,))


def norm(name: str, dtype: str, size: int) -> Tensor:
    """Weight [size] of an RMSNorm."""
    return Tensor(f"{name}.weight", dtype, (size,))


def gated(prefix: str, dtype: str, hidden: int, intermediate: int) -> Iterator[Tensor]:
    """gate, up and down projection of an MLP or of one expert."""
    yield from linear(f"{prefix}.gate_proj", dtype, intermediate, hidden)
    yield from linear(f"{prefix}.up_proj", dtype, intermediate, hidden)
    yield from linear(f"{prefix}.down_proj", dtype, hidden, intermediate)


def attention(
    prefix: str, dtype: str, config: dict, bias: str = "", qk_norm: bool = False, inv_freq: bool = False
) -> Iterator[Tensor]:
    """q, k, v and o; `bias` names those of "qkvo" that have one."""
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    for which, rows in (("q", q), ("k", kv), ("v", kv)):
        yield from linear(f"{prefix}.{which}_proj", dtype, rows, hidden, which in bias)
    yield from linear(f"{prefix}.o_proj", dtype, hidden, q, "o" in bias)
    if qk_norm:
        yield norm(f"{prefix}.q_norm", dtype, head_dim)
        yield norm(f"{prefix}.k_norm", dtype, head_dim)
    if inv_freq:
        yield Tensor(f"{prefix}.rotary_emb.inv_freq", "F32", (head_dim // 2,))


def outside(config: dict, dtype: str, layers: list[Tensor], lm_head: bool) -> list[Tensor]:
    """Embedding, the layers, the last norm, and lm_head if the checkpoint stores one."""
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    tensors = [Tensor("model.embed_tokens.weight", dtype, (vocab, hidden)), *layers, norm("model.norm", dtype, hidden)]
    return [*tensors, Tensor("lm_head.weight", dtype, (vocab, hidden))] if lm_head else tensors


def dense(config: dict, dtype: str, lm_head: bool, **of_attention: object) -> list[Tensor]:
    """A model of dense layers: Llama, Qwen2, Qwen3."""
    hidden = config["hidden_size"]
    layers: list[Tensor] = []
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}"
        layers += [norm(f"{prefix}.input_layernorm", dtype, hidden)]
        layers += attention(f"{prefix}.self_attn", dtype, config, **of_attention)
        layers += [norm(f"{prefix}.post_attention_layernorm", dtype, hidden)]
        layers += gated(f"{prefix}.mlp", dtype, hidden, config["intermediate_size"])
    return outside(config, dtype, layers, lm_head)


def quantised(model: Model, block: int, apart: tuple[str, ...] = ()) -> Model:
    """The same in block-FP8: projections of the layers become F8_E4M3 with an F32 scale for block x block elements.

    As in the published FP8 checkpoints, norms, embeddings, lm_head, routers and eh_proj stay as they are, and the
    correction bias of a router is F32. `apart` are modules that stay as they are, too, as the config says.
    """
    tensors: list[Tensor] = []
    for tensor in model.tensors:
        if tensor.name.endswith("e_score_correction_bias"):
            tensors.append(Tensor(tensor.name, "F32", tensor.shape))
        elif tensor.name.removesuffix(".weight") in apart:
            tensors.append(tensor)
        elif tensor.name.endswith(("_proj.weight", "_with_mqa.weight")) and "eh_proj" not in tensor.name:
            tensors.append(Tensor(tensor.name, "F8_E4M3", tensor.shape))
            tensors.append(Tensor(f"{tensor.name}_scale_inv", "F32", tuple(-(-n // block) for n in tensor.shape)))
        else:
            tensors.append(tensor)
    how = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [block, block]}
    if apart:
        how["modules_to_not_convert"] = ["lm_head", *apart]
    return Model({**model.config, "quantization_config": how}, tensors, model.shards, model.sizes)


# ---- families ----


def llama() -> Model:
    """Untied, with the rotary frequencies that old checkpoints carry; tp 8 has 4 ranks for each KV head."""
    config = common(
        "LlamaForCausalLM", "llama", "BF16", hidden_size=96, intermediate_size=208, num_hidden_layers=2, head_dim=16,
        num_attention_heads=8, num_key_value_heads=2, attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
    )  # fmt: skip
    return Model(config, dense(config, "BF16", True, inv_freq=True), sizes=(1, 2, 4, 8))


def llama_bias() -> Model:
    """F16, biases in the whole attention, 3 KV heads: sizes that are no powers of two pad the vocabulary further."""
    config = common(
        "LlamaForCausalLM", "llama", "F16", hidden_size=96, intermediate_size=150, num_hidden_layers=2, head_dim=16,
        num_attention_heads=6, num_key_value_heads=3, attention_bias=True, mlp_bias=False, tie_word_embeddings=False,
    )  # fmt: skip
    return Model(config, dense(config, "F16", True, bias="qkvo"), shards=1, sizes=(1, 3, 6))


def llama_tied() -> Model:
    """Tied, no head_dim in the config, many layers: 10 comes after 9, and 2 after 1."""
    config = common(
        "LlamaForCausalLM", "llama", "BF16", hidden_size=64, intermediate_size=96, num_hidden_layers=12,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    tensors = dense({**config, "head_dim": 16}, "BF16", False)
    return Model(config, tensors, shards=3, sizes=(1, 2, 4))


def qwen2() -> Model:
    """Biases in q, k and v; untied."""
    config = common(
        "Qwen2ForCausalLM", "qwen2", "BF16", hidden_size=112, intermediate_size=176, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False, use_sliding_window=False,
    )  # fmt: skip
    return Model(config, dense({**config, "head_dim": 14}, "BF16", True, bias="qkv"), sizes=(1, 2, 4))


def qwen2_tied() -> Model:
    """Tied, although the checkpoint stores lm_head; F32."""
    config = common(
        "Qwen2ForCausalLM", "qwen2", "F32", hidden_size=64, intermediate_size=104, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, use_sliding_window=False,
    )  # fmt: skip
    return Model(config, dense({**config, "head_dim": 16}, "F32", True, bias="qkv"), shards=1, sizes=(1, 2, 4))


def qwen3() -> Model:
    """Norms of q and k; untied; the heads are wider than the hidden size."""
    config = common(
        "Qwen3ForCausalLM", "qwen3", "BF16", hidden_size=80, intermediate_size=200, num_hidden_layers=3, head_dim=32,
        num_attention_heads=8, num_key_value_heads=2, attention_bias=False, tie_word_embeddings=False,
        use_sliding_window=False,
    )  # fmt: skip
    return Model(config, dense(config, "BF16", True, qk_norm=True), sizes=(1, 2, 4))


def qwen3_tied() -> Model:
    """Tied."""
    model = qwen3()
    config = {**model.config, "tie_word_embeddings": True}
    return Model(config, dense(config, "BF16", False, qk_norm=True), shards=1, sizes=(1, 4))


def dense_fp8(architecture: str, model_type: str, apart: tuple[str, ...] = (), **of_attention: object) -> Model:
    """Block-FP8 of a dense family: every slice is whole blocks, or SGLang refuses; the hidden size is not."""
    config = common(
        architecture, model_type, "BF16", hidden_size=448, intermediate_size=512, num_hidden_layers=2, head_dim=128,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=False, tie_word_embeddings=True,
        use_sliding_window=False,
    )  # fmt: skip
    if model_type == "qwen2":  # knows no head_dim: it is the hidden size by the heads
        config = {**config, "hidden_size": 512}
    return quantised(Model(config, dense(config, "BF16", False, **of_attention)), 128, apart)


def llama_fp8() -> Model:
    """Block-FP8. SGLang 0.5.23 looks for the scales of a Llama under another name, finds none and leaves them out."""
    return dense_fp8("LlamaForCausalLM", "llama")


def qwen2_fp8() -> Model:
    """Block-FP8: the biases of q, k and v stay as they are."""
    return dense_fp8("Qwen2ForCausalLM", "qwen2", bias="qkv")


def qwen3_fp8() -> Model:
    """Block-FP8, but for two modules of the second layer."""
    apart = ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj")
    return dense_fp8("Qwen3ForCausalLM", "qwen3", apart, qk_norm=True)


def moe_layers(config: dict, dtype: str) -> list[Tensor]:
    """Qwen3-MoE: experts in every layer."""
    hidden = config["hidden_size"]
    layers: list[Tensor] = []
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}"
        layers += [norm(f"{prefix}.input_layernorm", dtype, hidden)]
        layers += attention(f"{prefix}.self_attn", dtype, config, qk_norm=True)
        layers += [norm(f"{prefix}.post_attention_layernorm", dtype, hidden)]
        layers += linear(f"{prefix}.mlp.gate", dtype, config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            layers += gated(f"{prefix}.mlp.experts.{expert}", dtype, hidden, config["moe_intermediate_size"])
    return layers


def qwen3_moe() -> Model:
    """12 experts: 10 comes after 9. SGLang 0.5.23 takes every layer for a sparse one, whatever mlp_only_layers says."""
    config = common(
        "Qwen3MoeForCausalLM", "qwen3_moe", "BF16", hidden_size=96, intermediate_size=160, moe_intermediate_size=56,
        num_hidden_layers=3, head_dim=16, num_attention_heads=8, num_key_value_heads=2, num_experts=12,
        num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False,
        tie_word_embeddings=False, use_sliding_window=False,
    )  # fmt: skip
    return Model(config, outside(config, "BF16", moe_layers(config, "BF16"), True), sizes=(1, 2, 4, 8))


def qwen3_moe_fp8() -> Model:
    """Block-FP8; scales of the experts are stacked as the experts are."""
    config = common(
        "Qwen3MoeForCausalLM", "qwen3_moe", "BF16", hidden_size=320, intermediate_size=512, moe_intermediate_size=512,
        num_hidden_layers=2, head_dim=128, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False,
        tie_word_embeddings=False, use_sliding_window=False,
    )  # fmt: skip
    return quantised(Model(config, outside(config, "BF16", moe_layers(config, "BF16"), True)), 128)


def deepseek_layer(config: dict, dtype: str, prefix: str, sparse: bool) -> Iterator[Tensor]:
    """One layer: multi-head latent attention, then a dense MLP or experts with shared ones."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_lora, kv_lora = config["q_lora_rank"], config["kv_lora_rank"]
    yield norm(f"{prefix}.input_layernorm", dtype, hidden)
    if q_lora is None:
        yield from linear(f"{prefix}.self_attn.q_proj", dtype, heads * (nope + rope), hidden)
    else:
        yield from linear(f"{prefix}.self_attn.q_a_proj", dtype, q_lora, hidden)
        yield norm(f"{prefix}.self_attn.q_a_layernorm", dtype, q_lora)
        yield from linear(f"{prefix}.self_attn.q_b_proj", dtype, heads * (nope + rope), q_lora)
    yield from linear(f"{prefix}.self_attn.kv_a_proj_with_mqa", dtype, kv_lora + rope, hidden)
    yield norm(f"{prefix}.self_attn.kv_a_layernorm", dtype, kv_lora)
    yield from linear(f"{prefix}.self_attn.kv_b_proj", dtype, heads * (nope + value), kv_lora)
    yield from linear(f"{prefix}.self_attn.o_proj", dtype, hidden, heads * value)
    yield norm(f"{prefix}.post_attention_layernorm", dtype, hidden)
    if not sparse:
        yield from gated(f"{prefix}.mlp", dtype, hidden, config["intermediate_size"])
        return
    intermediate = config["moe_intermediate_size"]
    yield from linear(f"{prefix}.mlp.gate", dtype, config["n_routed_experts"], hidden)
    yield Tensor(f"{prefix}.mlp.gate.e_score_correction_bias", dtype, (config["n_routed_experts"],))
    for expert in range(config["n_routed_experts"]):
        yield from gated(f"{prefix}.mlp.experts.{expert}", dtype, hidden, intermediate)
    yield from gated(f"{prefix}.mlp.shared_experts", dtype, hidden, intermediate * config["n_shared_experts"])


def deepseek_tensors(config: dict, dtype: str) -> list[Tensor]:
    """The whole checkpoint, with the layer for multi-token prediction after the last."""
    hidden, count = config["hidden_size"], config["num_hidden_layers"]
    layers: list[Tensor] = []
    for i in range(count):
        layers += deepseek_layer(config, dtype, f"model.layers.{i}", i >= config["first_k_dense_replace"])
    if config["num_nextn_predict_layers"]:
        prefix = f"model.layers.{count}"
        vocab = (config["vocab_size"], hidden)
        layers += [Tensor(f"{prefix}.embed_tokens.weight", dtype, vocab)]
        layers += [norm(f"{prefix}.enorm", dtype, hidden), norm(f"{prefix}.hnorm", dtype, hidden)]
        layers += linear(f"{prefix}.eh_proj", dtype, hidden, 2 * hidden)
        layers += deepseek_layer(config, dtype, prefix, True)
        layers += [norm(f"{prefix}.shared_head.norm", dtype, hidden)]
        layers += [Tensor(f"{prefix}.shared_head.head.weight", dtype, vocab)]
    return outside(config, dtype, layers, True)


def deepseek_config(**more: object) -> dict[str, object]:
    """What all DeepSeek-V3 models here have in common; `more` has the sizes."""
    fixed = {
        "num_hidden_layers": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_scaling": dict(YARN),
        "attention_bias": False, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
    }  # fmt: skip
    return common("DeepseekV3ForCausalLM", "deepseek_v3", "BF16", **{**fixed, **more})


def deepseek() -> Model:
    """One dense layer, two sparse ones with 2 shared experts, a layer for multi-token prediction."""
    config = deepseek_config(
        hidden_size=96, intermediate_size=208, moe_intermediate_size=40, num_attention_heads=8, num_key_value_heads=8,
        q_lora_rank=48, kv_lora_rank=36, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=20, n_routed_experts=8,
        n_shared_experts=2, num_experts_per_tok=2, n_group=4, topk_group=2, num_nextn_predict_layers=1,
    )  # fmt: skip
    return Model(config, deepseek_tensors(config, "BF16"), sizes=(1, 2, 4, 8))


def moonlight() -> Model:
    """The model of the seed document, which 16 ranks hold there: queries of one projection, no groups of experts."""
    config = deepseek_config(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_attention_heads=16, num_key_value_heads=16,
        q_lora_rank=None, kv_lora_rank=36, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=20, n_routed_experts=16,
        n_shared_experts=2, num_experts_per_tok=6, n_group=1, topk_group=1, routed_scaling_factor=2.446,
    )  # fmt: skip
    return Model(config, deepseek_tensors(config, "BF16"), sizes=(1, 16))


def deepseek_fused() -> Model:
    """256 experts and 1 shared, as in DeepSeek-V3: an engine on a GPU holds the shared expert as number 256."""
    config = deepseek_config(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=8, num_attention_heads=4, num_key_value_heads=4,
        q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=256,
        n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4, num_hidden_layers=2,
    )  # fmt: skip
    return Model(config, deepseek_tensors(config, "BF16"), sizes=(1, 2, 4))


def deepseek_fused_fp8() -> Model:
    """The same in block-FP8, which is how DeepSeek-V3 is published."""
    config = deepseek_config(
        hidden_size=128, intermediate_size=256, moe_intermediate_size=256, num_attention_heads=2, num_key_value_heads=2,
        q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=128, qk_rope_head_dim=128, v_head_dim=128,
        n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4, num_hidden_layers=2,
    )  # fmt: skip
    return quantised(Model(config, deepseek_tensors(config, "BF16"), sizes=(2,)), 128)


def deepseek_fp8() -> Model:
    """Block-FP8: kv_a has half a block more than whole ones, as in DeepSeek-V3."""
    config = deepseek_config(
        hidden_size=320, intermediate_size=512, moe_intermediate_size=512, num_attention_heads=8, num_key_value_heads=8,
        q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, num_hidden_layers=2,
        num_nextn_predict_layers=1,
    )  # fmt: skip
    return quantised(Model(config, deepseek_tensors(config, "BF16")), 128)


FAMILIES: dict[str, Callable[[], Model]] = {
    "llama": llama, "llama-bias": llama_bias, "llama-tied": llama_tied, "llama-fp8": llama_fp8,
    "qwen2": qwen2, "qwen2-tied": qwen2_tied, "qwen2-fp8": qwen2_fp8,
    "qwen3": qwen3, "qwen3-tied": qwen3_tied, "qwen3-fp8": qwen3_fp8,
    "qwen3-moe": qwen3_moe, "qwen3-moe-fp8": qwen3_moe_fp8,
    "deepseek": deepseek, "deepseek-fp8": deepseek_fp8, "moonlight": moonlight,
    "deepseek-fused": deepseek_fused, "deepseek-fused-fp8": deepseek_fused_fp8,
}  # fmt: skip


# ---- any shape ----


def random_dense(rng: random.Random, size: int, dtype: str) -> Model:
    """Llama, Qwen2 or Qwen3 that `size` ranks can hold."""
    kv_heads = size * rng.choice([1, 2]) if rng.random() < 0.5 else rng.choice(divisors(size))
    heads = math.lcm(size, kv_heads) * rng.choice([1, 2, 3])
    head_dim = 2 * rng.randint(4, 12)
    architecture, model_type = rng.choice(
        [("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"), ("Qwen3ForCausalLM", "qwen3")]
    )
    # Llama's config wants a multiple of the heads; Qwen2 knows no head_dim, and has it from the hidden size.
    hidden = heads * {"llama": rng.randint(4, 12), "qwen2": head_dim, "qwen3": rng.randint(4, 12)}[model_type]
    bias = model_type == "llama" and rng.random() < 0.3
    tied = rng.random() < 0.5
    config = common(
        architecture, model_type, dtype, vocab_size=rng.randint(100, 1500), hidden_size=hidden, head_dim=head_dim,
        intermediate_size=size * rng.randint(8, 40), num_hidden_layers=rng.randint(1, 3), num_attention_heads=heads,
        num_key_value_heads=kv_heads, attention_bias=bias, mlp_bias=False, tie_word_embeddings=tied,
        use_sliding_window=False,
    )  # fmt: skip
    with_bias = "qkvo" if bias else "qkv" if model_type == "qwen2" else ""
    tensors = dense(config, dtype, not tied or rng.random() < 0.3, bias=with_bias, qk_norm=model_type == "qwen3")
    return Model(config, tensors, rng.randint(1, 4), (size,))


def random_moe(rng: random.Random, size: int, dtype: str) -> Model:
    """Qwen3-MoE that `size` ranks can hold; SGLang wants at least as many experts as ranks."""
    kv_heads = rng.choice(divisors(size))
    config = common(
        "Qwen3MoeForCausalLM", "qwen3_moe", dtype, vocab_size=rng.randint(100, 1500), hidden_size=rng.randint(20, 100),
        intermediate_size=size * 8, moe_intermediate_size=size * rng.randint(1, 20), head_dim=2 * rng.randint(4, 12),
        num_hidden_layers=rng.randint(1, 3), num_attention_heads=math.lcm(size, kv_heads) * rng.choice([1, 2]),
        num_key_value_heads=kv_heads, num_experts=rng.randint(max(size, 2), 20), num_experts_per_tok=2,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False, tie_word_embeddings=False,
        use_sliding_window=False,
    )  # fmt: skip
    return Model(config, outside(config, dtype, moe_layers(config, dtype), True), rng.randint(1, 4), (size,))


def random_deepseek(rng: random.Random, size: int, _: str) -> Model:
    """DeepSeek-V3 that `size` ranks can hold, BF16."""
    heads = size * rng.choice([1, 2, 3])
    group = rng.choice([1, 2, 4])
    config = deepseek_config(
        vocab_size=rng.randint(100, 1500), hidden_size=rng.randint(20, 100), num_attention_heads=heads,
        intermediate_size=size * rng.randint(4, 20), moe_intermediate_size=size * rng.randint(1, 20),
        num_key_value_heads=heads,
        q_lora_rank=rng.randint(8, 40), kv_lora_rank=rng.randint(8, 40), qk_nope_head_dim=rng.randint(4, 16),
        qk_rope_head_dim=2 * rng.randint(2, 8), v_head_dim=rng.randint(4, 16), num_experts_per_tok=2, n_group=group,
        n_routed_experts=group * 2 * rng.randint(1, 3) * size, n_shared_experts=rng.randint(1, 3), topk_group=1,
        num_hidden_layers=rng.randint(1, 4), first_k_dense_replace=rng.randint(0, 2),
        num_nextn_predict_layers=rng.randint(0, 1),
    )  # fmt: skip
    return Model(config, deepseek_tensors(config, "BF16"), rng.randint(1, 4), (size,))


def divisors(number: int) -> list[int]:
    """All of them, from 1 on."""
    return [i for i in range(1, number + 1) if number % i == 0]


def random_model(seed: int) -> Model:
    """A model of any family and shape that SGLang takes for its one size."""
    rng = random.Random(f"model {seed}")
    make = rng.choice([random_dense, random_dense, random_moe, random_deepseek])
    return make(rng, rng.choice([1, 2, 3, 4, 5, 6, 8]), rng.choice(["BF16", "F16"]))


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: sglang_models.py DIR    makes DIR/{{{','.join(FAMILIES)}}}", file=sys.stderr)
        return 2
    for name, make in FAMILIES.items():
        model = make()
        model.write(Path(sys.argv[1]) / name)
        print(f"{name}: tensors={len(model.tensors)} bytes={sum(tensor.bytes for tensor in model.tensors)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
