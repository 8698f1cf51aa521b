"""A tiny GGUF file, made on the spot: two layers of Llama and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

END = "<|endoftext|>"
_MERGES = ("t h", "i n", "Ġ p", "Ġ n", "o s", "e g")
_QUANTISED = gguf.GGMLQuantizationType.Q8_0
_HEADS, _LAYERS, _POSITIONS = 2, 2, 128
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def tokens() -> list[str]:
    """All tokens of the file, by id: the end token, every byte, and a few pairs."""
    pairs = [merge.replace(" ", "") for merge in _MERGES]
    return [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pairs]


def tiny_llama(seed: int = 1) -> LlamaForCausalLM:
    """Make the model that such a file holds."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=_POSITIONS,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    path: Path,
    *,
    seed: int = 1,
    quantised: bool = True,
    architecture: str = "llama",
    leave_out: str = "nothing",
) -> LlamaForCausalLM:
    """Write the file, without the tensor `leave_out`; give the model before any quantisation."""
    model = tiny_llama(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(_POSITIONS)
    writer.add_embedding_length(model.config.hidden_size)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(model.config.intermediate_size)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(model.config.hidden_size // _HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens())
    writer.add_token_types([3] + [1] * (len(tokens()) - 1))
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" or leave_out in name:
            continue
        array = _as_llama_cpp_has_it(name, values.numpy())
        theirs = _renamed(name)
        if quantised and array.ndim == 2:
            blocks = gguf.quants.quantize(array, _QUANTISED)
            writer.add_tensor(theirs, blocks, raw_dtype=_QUANTISED)
        else:
            writer.add_tensor(theirs, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _renamed(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _as_llama_cpp_has_it(name: str, array: np.ndarray) -> np.ndarray:
    """Put the rows of queries and keys in the order that llama.cpp's rotation wants."""
    if not ("q_proj" in name or "k_proj" in name):
        return array
    halves = array.reshape(_HEADS, 2, array.shape[0] // _HEADS // 2, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
