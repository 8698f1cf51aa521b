"""Short names of models."""

from __future__ import annotations

import pytest

from tgsent.aliases import alias_of


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
        ("./gpt2", None),
        ("GPT2", None),
    ],
)
def test_alias_of(name: str, alias: str | None) -> None:
    assert alias_of(name) == alias
