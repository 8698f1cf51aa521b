"""Short names of models."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING

from tgsent.config.aliases import ALIASES, alias_of


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("gpt2", "gpt2"),
        ("openai-community/gpt2", "gpt2"),
        ("openai-community/gpt2@0123abc", "gpt2"),
        ("gpt2@main", "gpt2"),
        ("gpt-neo", "gpt-neo"),
        ("EleutherAI/gpt-neo-125m", "gpt-neo"),
        ("t5", "t5"),
        ("google-t5/t5-base", "t5"),
        ("openai-community/gpt2-large", "gpt2-large"),
        ("flan-t5-base", "flan-t5-base"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2"),
        ("Qwen/Qwen3-0.6B-Base@main", "qwen3"),
        ("./gpt2", None),
        ("GPT2", None),
    ],
)
def test_alias_of(name: str, alias: str | None) -> None:
    assert alias_of(name) == alias


def test_every_architecture_is_one_that_transformers_knows() -> None:
    assert {entry.model_type for entry in ALIASES.values()} <= set(CONFIG_MAPPING.keys())


def test_no_model_has_two_names() -> None:
    assert len({entry.hub_id for entry in ALIASES.values()}) == len(ALIASES)
