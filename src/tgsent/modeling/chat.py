"""The markup that a tokenizer's chat template puts around the turns of a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tgsent.errors import ConfigError, reason
from tgsent.modeling.tokens import special_ids

_DATE = "01 Jan 2026"
"""For templates that write the date: the prompt is the same every day."""
_FIXED_DATE = f"{{% macro strftime_now(format) %}}{_DATE}{{% endmacro %}}"


@dataclass(frozen=True)
class Markup:
    """The strings around the turns of a conversation that ends with a user's turn."""

    around: tuple[tuple[str, str], ...]
    """For each user's turn, the string before it and the string between it and its answer."""
    end_id: int
    """The token that ends an answer."""


def markup(tokenizer: PreTrainedTokenizerBase, model: str, answered: int = 0) -> Markup:
    """Read a tokenizer's template for `answered` answered turns and one open turn.

    The template is rendered with placeholder turns, so that texts never pass through it. Thinking
    is switched off where the template supports it. Raises ConfigError if there is no template, or
    one that cannot be used.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"prompt.template: the tokenizer of {model} has no chat template; use `plain`,"
            " or an instruction-tuned model"
        )
    parts = _render(tokenizer, model, 2 * answered + 1)
    *_, after_answer = _render(tokenizer, model, 2)
    if len(parts) != 2 * answered + 2:
        raise _unusable(model, "does not write each turn once")
    ids: Sequence[int] = tokenizer(after_answer, add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    ends = [token for token in ids if token in special]
    if not ends:
        raise _unusable(model, "ends an answer with no special token")
    return Markup(tuple(zip(parts[::2], parts[1::2], strict=True)), ends[0])


def _render(tokenizer: PreTrainedTokenizerBase, model: str, turns: int) -> list[str]:
    """Return the strings around turns of user and assistant, and up to the next answer."""
    conversation = [
        {"role": ("user", "assistant")[k % 2], "content": f"TGSENT-TURN-{k}-"} for k in range(turns)
    ]
    try:
        rendered = tokenizer.apply_chat_template(
            conversation,
            chat_template=_FIXED_DATE + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=turns % 2 == 1,
            enable_thinking=False,
            date_string=_DATE,
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unusable(model, f"cannot be rendered ({reason(error)})") from error
    return re.split(r"TGSENT-TURN-\d+-", str(rendered))


def _unusable(model: str, why: str) -> ConfigError:
    return ConfigError(f"prompt.template: the chat template of {model} {why}; use `plain`")
