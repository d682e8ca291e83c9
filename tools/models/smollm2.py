"""Turns the GGUF of SmolLM2-135M-Instruct into the Hugging Face folder it once was.

smollm2.py GGUF FOLDER; run by fetch.py in the environment it made (packages gguf and numpy). FOLDER must exist.

What the quantised file lost stays lost: the weights are near those Hugging Face publishes, not equal to them. Names,
shapes, dtype (BF16), tied embeddings, configuration and tokenizer are those of the original. Every step is exact or
IEEE arithmetic on float32, so that the result is the same, byte by byte, on every machine.

Formats: GGUF by the `gguf` package; the llama layout in GGUF by llama.cpp's convert_hf_to_gguf.py; the target by
transformers' Llama configuration and the tokenizers library's tokenizer.json.
"""

import sys
from pathlib import Path

import numpy
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize

from safetensors_io import Tensor, shard_names, split, write_file, write_index, write_json

SHARDS = 3

# GGUF name in block N -> (name below model.layers.N, what permuted its rows in GGUF: the head count under this key)
LAYER_TENSORS = {
    "attn_norm": ("input_layernorm", None),
    "attn_q": ("self_attn.q_proj", "attention.head_count"),
    "attn_k": ("self_attn.k_proj", "attention.head_count_kv"),
    "attn_v": ("self_attn.v_proj", None),
    "attn_output": ("self_attn.o_proj", None),
    "ffn_norm": ("post_attention_layernorm", None),
    "ffn_gate": ("mlp.gate_proj", None),
    "ffn_up": ("mlp.up_proj", None),
    "ffn_down": ("mlp.down_proj", None),
}
OTHER_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def bf16(values: numpy.ndarray) -> numpy.ndarray:
    """float32 of any shape -> uint16 of that shape, the bits of bfloat16 rounded to nearest, ties to even. No NaNs."""
    bits = values.astype(numpy.float32, copy=False).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def unpermute(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """[heads * D, in] from GGUF's row order to Hugging Face's, same shape and dtype.

    llama.cpp rotates neighbouring rows of a head (0 1, 2 3, ...), Hugging Face the two halves (0 D/2, 1 D/2+1, ...);
    the converter interleaves the halves of each head, and this takes them apart.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def weights(reader: GGUFReader, field) -> dict[str, numpy.ndarray]:
    """Returns all tensors under their Hugging Face names: C-contiguous uint16 arrays, bits of bfloat16."""
    result = {}
    for tensor in reader.tensors:
        heads = None
        if tensor.name in OTHER_TENSORS:
            name = OTHER_TENSORS[tensor.name]
        else:
            _, layer, kind, _ = tensor.name.split(".")  # blk.N.KIND.weight
            short, heads_key = LAYER_TENSORS[kind]
            name = f"model.layers.{layer}.{short}.weight"
            heads = field(f"llama.{heads_key}") if heads_key else None
        # GGUF counts dimensions from the innermost; dequantize gives rows in C order already.
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        if heads:
            values = unpermute(values, heads)
        result[name] = numpy.ascontiguousarray(bf16(values))
    return result


def config(field) -> dict[str, object]:
    """config.json of a LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": field("llama.attention.head_count"),
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,  # GGUF has it as float32: 9.999999747378752e-06
        "rope_scaling": None,
        "rope_theta": int(field("llama.rope.freq_base")),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": field("llama.vocab_size"),
    }


def generation_config(field) -> dict[str, object]:
    """generation_config.json: the special tokens."""
    return {
        "_from_model_config": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
    }


def added_tokens(field) -> list[dict[str, object]]:
    """The control tokens, as tokenizer.json lists them."""
    tokens = zip(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type"), strict=True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": text, **flags} for i, (text, kind) in enumerate(tokens) if kind == TokenType.CONTROL]


def tokenizer(field) -> dict[str, object]:
    """tokenizer.json: byte-level BPE; GGUF's `smollm` means that GPT-2's regex follows a split into single digits."""
    if (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        raise ValueError("the GGUF's tokenizer is not the one this tool knows")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(field),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(field("tokenizer.ggml.tokens"))},
            "merges": field("tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(field) -> dict[str, object]:
    """tokenizer_config.json: which tokens are special, and how a chat becomes a prompt."""
    tokens = field("tokenizer.ggml.tokens")
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added_tokens(field)
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": tokens[field("tokenizer.ggml.bos_token_id")],
        "chat_template": field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "model_max_length": field("llama.context_length"),
        "pad_token": tokens[field("tokenizer.ggml.padding_token_id")],
        # Takes tokenizer.json as it is; GPT2Tokenizer would put its own regex in place of the digits rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
    }


def convert(gguf: Path, folder: Path) -> None:
    """Writes the whole model folder. ValueError or KeyError when the GGUF is not the one this tool knows."""
    reader = GGUFReader(gguf)

    def field(key: str):
        return reader.fields[key].contents()

    arrays = weights(reader, field)
    tensors = [Tensor(name, "BF16", array.shape) for name, array in sorted(arrays.items())]
    runs = split(tensors, SHARDS)
    files = shard_names(SHARDS)
    for file, run in zip(files, runs, strict=True):
        write_file(folder / file, run, (memoryview(arrays[tensor.name]).cast("B") for tensor in run))
    write_index(folder, files, runs)
    write_json(folder / "config.json", config(field))
    write_json(folder / "generation_config.json", generation_config(field))
    write_json(folder / "tokenizer.json", tokenizer(field))
    write_json(folder / "tokenizer_config.json", tokenizer_config(field))


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"smollm2: {error}")
