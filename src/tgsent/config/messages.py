"""Describe what is wrong with a config: pydantic's errors in the words of people who write YAML."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pydantic import AfterValidator, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from tgsent.config.yaml_source import Path

_MESSAGES = {
    "dict_type": "must be a mapping of keys",
    "missing": "this key is needed",
    "model_type": "must be a mapping of keys",
    "string_too_short": "must not be empty",
    "too_short": "must name at least one",
    "tuple_type": "must be a list",
}
"""Replacements, by error type, for pydantic's messages that use Python's terms."""


class Mistake(NamedTuple):
    """A mistake in a config."""

    path: Path
    message: str
    is_conflict: bool = False
    """Whether it depends on another key as well, which may vary in a sweep."""


def fault(message: str, *path: str | int, is_conflict: bool = False) -> ValidationError:
    """Return the error that a validator raises for its value, or for a key below it."""
    return faults([Mistake(path, message, is_conflict)])


def faults(found: Iterable[Mistake]) -> ValidationError:
    """Return the error that a validator raises for several mistakes at once."""
    details = []
    for path, message, is_conflict in found:
        kind = "conflict" if is_conflict else "invalid"
        error = PydanticCustomError(kind, "{message}", {"message": message})
        details.append(InitErrorDetails(type=error, loc=path, input=None))
    return ValidationError.from_exception_data("config", details)


def mistakes(error: ValidationError, keys: Sequence[str] = ()) -> list[Mistake]:
    """Describe what is wrong with a section that has these keys."""
    return [
        Mistake(one["loc"], _sentence(one, keys), one["type"] == "conflict")
        for one in error.errors()
        # pydantic counts only the items of a list that are right themselves
        if not (one["type"] == "too_short" and one["input"])
    ]


def must(text: str, holds: Callable[..., object]) -> AfterValidator:
    """Return a validator that refuses a value with "must `text`" where `holds` is false of it."""

    def check(value: object) -> object:
        if not holds(value):
            raise fault(f"must {text}, not {short(value)}")
        return value

    return AfterValidator(check)


def _joined(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError as error:
        words = " or ".join(dict.fromkeys(map(_words, error.errors())))
        raise fault(f"{words.replace(' or must be ', ' or ')}, not {short(value)}") from None


ONE_OF = WrapValidator(_joined)
"""Annotation of a union: one error for its value, where pydantic raises one for each branch."""


def short(value: object) -> str:
    """Show a wrong value briefly, however large it is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return reprlib.repr(value)


def _sentence(error: ErrorDetails, keys: Sequence[str]) -> str:
    if error["type"] in {"extra_forbidden", "invalid_key"}:
        near = difflib.get_close_matches(str(error["loc"][-1]), keys, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(keys)}"
        return f"unknown key; {hint}"
    if error["type"] in {"missing", "invalid", "conflict"}:
        return _words(error)
    return f"{_words(error)}, not {short(error['input'])}"


def _words(error: ErrorDetails) -> str:
    return _MESSAGES.get(error["type"], error["msg"].replace("Input should be", "must be"))
