"""Measure what is lost when texts are tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder
from tgsent.modeling.tokens import unknown_id

_MOST_UNKNOWN = 0.05
"""Share of unknown tokens above which there is a warning."""


@dataclass(frozen=True)
class Legibility:
    """Counts over distinct texts, each encoded alone and without truncation."""

    unknown_token: str
    tokens: int
    unknown: int
    merged: int
    """Number of texts that share their tokens with another text."""
    merged_into: int
    """Number of token sequences that these texts become."""

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that are unknown."""
        return self.unknown / self.tokens if self.tokens else 0.0

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


def measure(loaded: LoadedModel, encoder: PromptEncoder, texts: Sequence[str]) -> Legibility:
    """Count unknown tokens, and texts that the model cannot tell apart.

    Texts that differ in whitespace alone count as one text. Long texts are not
    truncated here; truncation is counted elsewhere.
    """
    by_words = {" ".join(text.split()): text for text in texts}
    unknown_token = unknown_id(loaded.tokenizer)
    tokens = unknown = 0
    seen: dict[tuple[int, ...], int] = {}
    for ids in encoder.encode_bare(list(by_words.values())):
        tokens += len(ids)
        unknown += ids.count(unknown_token) if unknown_token is not None else 0
        key = tuple(ids)
        seen[key] = seen.get(key, 0) + 1
    merged = [count for count in seen.values() if count > 1]
    return Legibility(
        unknown_token=str(loaded.tokenizer.unk_token),
        tokens=tokens,
        unknown=unknown,
        merged=sum(merged),
        merged_into=len(merged),
    )
