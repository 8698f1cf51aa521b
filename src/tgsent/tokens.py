"""Which of a tokenizer's tokens are no text."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_UNHEARD_OF = "\U0010fffd"
"""A private character, which no vocabulary has."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of what the tokenizer itself calls special, which no text may become.

    Other added tokens are text: line breaks of Gemma 3, runs of spaces of GPT-NeoX. So is the
    unknown token, where characters become it.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return special - {unknown_id(tokenizer)}


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that unknown characters become; None where the tokenizer knows all (GPT-2).

    Tokenizers of bytes name an unknown token, too, often the one that ends a text.
    """
    found: list[int] = tokenizer(_UNHEARD_OF, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return int(unknown) if unknown in found and unknown != tokenizer.eos_token_id else None
