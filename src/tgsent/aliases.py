"""Short names of models on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alias:
    """What a short name stands for."""

    hub_id: str
    model_type: str
    """The architecture, in the words of Hugging Face configurations."""


ALIASES = {
    "gpt2": Alias("openai-community/gpt2", "gpt2"),
    "gpt2-medium": Alias("openai-community/gpt2-medium", "gpt2"),
    "gpt2-large": Alias("openai-community/gpt2-large", "gpt2"),
    "gpt2-xl": Alias("openai-community/gpt2-xl", "gpt2"),
    "gpt-neo": Alias("EleutherAI/gpt-neo-125m", "gpt_neo"),
    "gpt-neo-1.3b": Alias("EleutherAI/gpt-neo-1.3B", "gpt_neo"),
    "gpt-neo-2.7b": Alias("EleutherAI/gpt-neo-2.7B", "gpt_neo"),
    "t5": Alias("google-t5/t5-base", "t5"),
    "t5-small": Alias("google-t5/t5-small", "t5"),
    "t5-large": Alias("google-t5/t5-large", "t5"),
    "flan-t5-base": Alias("google/flan-t5-base", "t5"),
}

BASELINES = ("majority", "tfidf")
"""Reference rows that are no language models."""


def alias_of(model: str) -> str | None:
    """Give the alias of a model that is named by it or by its Hub id, with or without revision."""
    name, _ = name_and_revision(model)
    return next((a for a, entry in ALIASES.items() if name in {a, entry.hub_id}), None)


def name_and_revision(model: str) -> tuple[str, str | None]:
    """Split `MODEL@REVISION`."""
    name, _, revision = model.partition("@")
    return name, revision or None
