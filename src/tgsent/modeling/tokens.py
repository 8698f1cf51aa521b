"""What a tokenizer makes of texts: special tokens, unknown ones, and texts that become equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tgsent.modeling.prompts import PromptEncoder

_MOST_UNKNOWN = 0.05
"""Share of unknown tokens above which there is a warning."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that no text may become: those that the tokenizer itself marks as special.

    Other added tokens are text: line breaks of Gemma 3, runs of spaces of GPT-NeoX. So is the
    unknown token, if characters become it.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return special - {_unknown_id(tokenizer)}


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that unknown characters become; None if the tokenizer encodes all (GPT-2).

    Byte-level tokenizers name an unknown token as well, but never produce it.
    """
    private_character = "\U0010fffd"  # in no vocabulary
    ids: list[int] = tokenizer(private_character, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return int(unknown) if unknown in ids and unknown != tokenizer.eos_token_id else None


@dataclass(frozen=True)
class Legibility:
    """How much of the distinct texts a model can read; each is encoded alone, not truncated."""

    unknown_token: str
    unknown_share: float
    """Share of the tokens that are unknown."""
    merged: int
    """Number of texts that share their tokens with another text."""
    merged_into: int
    """Number of token sequences that these texts become."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return at most one sentence on what the model cannot read."""
        parts = []
        if self.unknown_share > _MOST_UNKNOWN:
            share = f"{100 * self.unknown_share:.0f} %"
            parts.append(f"{share} of the texts' tokens are {self.unknown_token}")
        if self.merged:
            sequences = "sequence" if self.merged_into == 1 else "sequences"
            parts.append(
                f"{self.merged:,} different texts become {self.merged_into:,} token {sequences}"
            )
        return ("; ".join(parts),) if parts else ()


def legibility(
    tokenizer: PreTrainedTokenizerBase, encoder: PromptEncoder, texts: Iterable[str]
) -> Legibility:
    """Count unknown tokens, and texts that the model cannot tell apart.

    Texts that differ in whitespace alone count as one text.
    """
    by_words = {" ".join(text.split()): text for text in texts}
    encoded = Counter(map(tuple, encoder.encode_bare(list(by_words.values()))))
    tokens = sum(len(ids) * count for ids, count in encoded.items())
    unknown_id = _unknown_id(tokenizer)
    unknown = sum(ids.count(unknown_id) * count for ids, count in encoded.items())
    merged = [count for count in encoded.values() if count > 1]
    return Legibility(
        str(tokenizer.unk_token), unknown / tokens if tokens else 0.0, sum(merged), len(merged)
    )
