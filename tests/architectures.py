"""Small models of the types that people pick, with random weights and tokenizers of their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from tgsent.modeling import tiny
from tiny_models import LABELS, examples

# names of one size in the words of different configurations
_WIDTH, _HEADS, _LAYERS, _HIDDEN, _POSITIONS, _WINDOW = 32, 4, 2, 64, 128, 8
_SMALL = {
    "hidden_size": _WIDTH,
    "intermediate_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": _POSITIONS,
}
_MAMBA = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 4}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "full_attention"],
}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": _WINDOW}
_ENCODER = {
    "d_model": _WIDTH,
    "encoder_layers": _LAYERS,
    "decoder_layers": _LAYERS,
    "encoder_attention_heads": _HEADS,
    "decoder_attention_heads": _HEADS,
    "encoder_ffn_dim": _HIDDEN,
    "decoder_ffn_dim": _HIDDEN,
    "max_position_embeddings": _POSITIONS,
}
_T5 = {"d_model": _WIDTH, "d_ff": _HIDDEN, "d_kv": 8, "num_heads": _HEADS, "num_layers": _LAYERS,
       "decoder_start_token_id": 0}  # fmt: skip
_T5GEMMA = {**_SMALL, **_ALTERNATING, "query_pre_attn_scalar": 8}


@dataclass(frozen=True)
class Architecture:
    """A type of model, in a small size."""

    model_type: str
    examples: str
    """Models of this type that people know."""
    tokenizer: str = "bytes"
    """Kind of its tokenizer; see `make_tokenizer`."""
    sizes: Mapping[str, Any] = field(default_factory=lambda: _SMALL)
    refused: str = ""
    """Part of the error with which it is refused; empty where it works."""


ARCHITECTURES = (
    Architecture("gpt2", "GPT-2", sizes={
        "n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS}),
    Architecture("gpt_neo", "GPT-Neo", sizes={
        "hidden_size": _WIDTH, "num_layers": _LAYERS, "num_heads": _HEADS, "window_size": _WINDOW,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": _POSITIONS}),
    Architecture("gpt_neox", "Pythia, GPT-NeoX", "bytes with runs of spaces"),
    Architecture("gptj", "GPT-J", sizes={
        "n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS,
        "rotary_dim": 4}),
    Architecture("opt", "OPT", "bytes with <s>", {
        **_SMALL, "ffn_dim": _HIDDEN, "word_embed_proj_dim": _WIDTH}),
    Architecture("bloom", "BLOOM", "bytes with <s>", {
        "hidden_size": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS}),
    Architecture("llama", "Llama 2", "pieces with a space before"),
    Architecture("llama", "SmolLM2, Llama 3", "bytes for chats"),
    Architecture("mistral", "Mistral", "pieces with a space before", {
        **_SMALL, "sliding_window": _WINDOW}),
    Architecture("qwen2", "Qwen2.5", "bytes for chats"),
    Architecture("qwen3", "Qwen3", "bytes for chats"),
    Architecture("qwen3_5_text", "Qwen3.5", "bytes for chats", {**_SMALL, **_LINEAR}),
    Architecture("gemma2", "Gemma 2", "pieces with line breaks", {**_SMALL, **_ALTERNATING}),
    Architecture("gemma3_text", "Gemma 3 270M, 1B", "pieces with line breaks", {
        **_SMALL, **_ALTERNATING}),
    Architecture("phi3", "Phi-3, Phi-4", "pieces with a space before", {
        **_SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    Architecture("smollm3", "SmolLM3", "bytes for chats", {**_SMALL, "pad_token_id": 0}),
    Architecture("olmo2", "OLMo 2", "bytes with runs of spaces"),
    Architecture("granite", "Granite 3", "bytes with runs of spaces"),
    Architecture("gpt_oss", "gpt-oss", "bytes for chats", {
        **_SMALL, **_ALTERNATING, "num_local_experts": 2, "num_experts_per_tok": 1}),
    Architecture("lfm2", "LFM2", "bytes for chats", {
        **_SMALL, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    Architecture("falcon_h1", "Falcon-H1", "bytes for chats", {
        **_SMALL, "mamba_d_ssm": _WIDTH, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 16}),
    Architecture("mamba", "Mamba", "bytes with runs of spaces", {
        "hidden_size": _WIDTH, "num_hidden_layers": _LAYERS, **_MAMBA}),
    Architecture("t5", "T5, Flan-T5", "unigram", _T5),
    Architecture("umt5", "umT5", "unigram", _T5),
    Architecture("bart", "BART", "bytes with <s>", _ENCODER),
    Architecture("t5gemma", "T5Gemma", "pieces with line breaks", {
        "encoder": _T5GEMMA, "decoder": {**_T5GEMMA, "cross_attention_hidden_size": _WIDTH}}),
    Architecture("roberta", "RoBERTa, XLM-R", "bytes with <s>", refused="sees the label"),
    Architecture("electra", "ELECTRA", "bytes with <s>", {
        **_SMALL, "embedding_size": _WIDTH}, "sees the label"),
    Architecture("modernbert", "ModernBERT", "bytes with <s>", refused="does not generate text"),
    Architecture("mistral3", "Ministral 3", "pieces with line breaks", {
        "text_config": {"model_type": "ministral3", **_SMALL}}, "does not generate text"),
)  # fmt: skip


def make_folder(architecture: Architecture, folder: Path, seed: int = 1) -> Path:
    """Write a folder with configuration, tokenizer and random weights, as the Hub would hold it."""
    tokenizer = make_tokenizer(architecture.tokenizer)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = dict(architecture.sizes)
    for part in ("encoder", "decoder"):
        if isinstance(sizes.get(part), dict):
            sizes[part] = {**sizes[part], **ids}
    if isinstance(sizes.get("text_config"), dict):
        sizes["text_config"] = {**sizes["text_config"], **ids}
        ids = {}
    config = AutoConfig.for_model(architecture.model_type, **{**sizes, **ids})
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not architecture.refused:
        torch.manual_seed(seed)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() >= 2:  # so wide that the answer depends on all of the text
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folder)
    return folder


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Train a tokenizer of one of the kinds that the types above have."""
    texts = [f"Tweet: {e.text}\nSentiment: {e.label}" for e in examples(40, LABELS)]
    if kind == "unigram":
        return tiny._train_unigram(texts)
    return _bytes(kind, texts) if kind.startswith("bytes") else _pieces(kind, texts)


def _bytes(kind: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2, with the extras of its successors."""
    names = {
        "bytes": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "bytes with runs of spaces": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "bytes with <s>": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"},
        "bytes for chats": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    }[kind]
    special = list(dict.fromkeys(names.values()))
    if kind == "bytes for chats":
        special.append("<|im_start|>")
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if kind == "bytes with runs of spaces":
        tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in range(24, 1, -1)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    if kind == "bytes for chats":
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        made.chat_template = CHATML
    return made


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
"""A chat template such as Qwen3's."""


def _pieces(kind: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """BPE over pieces with a visible space, bytes for what is unknown: Llama 2's and Gemma's."""
    tokenizer = Tokenizer(tokenizer_models.BPE(byte_fallback=True, unk_token="<unk>"))
    space = normalizers.Replace(" ", "\u2581")
    before = kind == "pieces with a space before"
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), space]) if before else space
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if before else steps)
    special = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=False))
    # a trainer can only reserve bytes as special tokens; they are none
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] in special[:4]]
    tokenizer = Tokenizer.from_str(json.dumps(values))
    if kind == "pieces with line breaks":
        tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(8, 0, -1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
