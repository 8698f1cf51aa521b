"""Which of a tokenizer's tokens are not text."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_PRIVATE_CHARACTER = "\U0010fffd"
"""No vocabulary contains it."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that no text may become: those that the tokenizer itself marks as special.

    Other added tokens are text: line breaks of Gemma 3, runs of spaces of GPT-NeoX. So is the
    unknown token, if characters become it.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return special - {unknown_id(tokenizer)}


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that unknown characters become; None if the tokenizer encodes all (GPT-2).

    Byte-level tokenizers name an unknown token as well, but never produce it.
    """
    ids: list[int] = tokenizer(_PRIVATE_CHARACTER, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return int(unknown) if unknown in ids and unknown != tokenizer.eos_token_id else None
