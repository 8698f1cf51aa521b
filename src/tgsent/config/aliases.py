"""Short names of models on the Hugging Face Hub."""

from __future__ import annotations

from typing import NamedTuple


class Alias(NamedTuple):
    """What a short name stands for."""

    hub_id: str
    model_type: str
    gated: bool = False
    """Whether the Hub requires users to accept terms first."""


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
    "smollm2": Alias("HuggingFaceTB/SmolLM2-135M", "llama"),
    "smollm2-360m": Alias("HuggingFaceTB/SmolLM2-360M", "llama"),
    "gemma3-270m": Alias("google/gemma-3-270m", "gemma3_text", gated=True),
    "qwen3": Alias("Qwen/Qwen3-0.6B-Base", "qwen3"),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B-Base", "qwen3"),
    "qwen3-4b": Alias("Qwen/Qwen3-4B-Base", "qwen3"),
    "llama-3.2-1b": Alias("meta-llama/Llama-3.2-1B", "llama", gated=True),
    "pythia-160m": Alias("EleutherAI/pythia-160m", "gpt_neox"),
    "lfm2-350m": Alias("LiquidAI/LFM2-350M", "lfm2"),
}

BASELINES = ("majority", "tfidf")
"""Models that are not language models, to compare with."""


def alias_of(model: str) -> str | None:
    """Return the alias of a model, given by alias or Hub id, with or without a revision."""
    name, _ = name_and_revision(model)
    return next((a for a, entry in ALIASES.items() if name in {a, entry.hub_id}), None)


def name_and_revision(model: str) -> tuple[str, str | None]:
    """Split `MODEL@REVISION`."""
    name, _, revision = model.partition("@")
    return name, revision or None
