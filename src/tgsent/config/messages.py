"""Describe what is wrong with a config: pydantic's errors as places in the YAML and sentences."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from tgsent.config.yaml_source import Path

Kind = Literal["wrong", "invalid", "conflict"]
"""`wrong`: the value is shown after the message; `invalid`: the message says it all; `conflict`:
the same, and it depends on another key as well, which may vary in a sweep."""

# pydantic's own messages, in the words of people who write YAML
_MESSAGES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "missing": "this key is needed",
    "model_type": "must be a mapping of keys",
    "string_pattern_mismatch": 'must be a folder name, without any of / \\ : * ? " < > |'
    " and without a dot at the beginning",
    "string_too_long": "must not be longer than 100 characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "too_short": "must name at least one",
    "tuple_type": "must be a list",
}


class Mistake(NamedTuple):
    """A mistake in a config."""

    path: Path
    message: str


def fault(kind: Kind, message: str, *path: str | int, value: object = None) -> ValidationError:
    """Return the error that a validator raises for its value, or for a key below it."""
    return faults([detail(kind, message, path, value)])


def faults(details: Iterable[InitErrorDetails]) -> ValidationError:
    """Return the error that a validator raises for several mistakes at once."""
    return ValidationError.from_exception_data("config", list(details))


def detail(kind: str, message: str, path: Path, value: object = None) -> InitErrorDetails:
    """Return one of several mistakes."""
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=path, input=value)


def _joined(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError as error:
        found = list(_counted(error))
        # a location begins with the branch; an error inside the value says more than one about it
        items = [one for one in found if len(one["loc"]) > 1]
        if items:
            raise faults(
                detail(one["type"], one["msg"], one["loc"][1:], one["input"]) for one in items
            ) from None
        messages = " or ".join(dict.fromkeys(map(_words, found)))
        raise fault("wrong", messages.replace(" or must be ", " or "), value=value) from None


ONE_OF = WrapValidator(_joined)
"""Annotation of a union: one error for its value, where pydantic raises one for each branch."""


def mistakes(
    error: ValidationError, section: type[BaseModel], *, alone: bool = False
) -> list[Mistake]:
    """Describe what is wrong with a section; `alone`: whatever the other keys are."""
    return [
        Mistake(one["loc"], _sentence(one, section))
        for one in _counted(error)
        if not (alone and one["type"] == "conflict")
    ]


def short(value: object) -> str:
    """Show a wrong value briefly, however large it is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return reprlib.repr(value)


def _counted(error: ValidationError) -> Iterator[ErrorDetails]:
    for one in error.errors():
        # pydantic counts only the items of a list that are right themselves
        if not (one["type"] == "too_short" and one["input"]):
            yield one


def _sentence(error: ErrorDetails, section: type[BaseModel]) -> str:
    if error["type"] in {"extra_forbidden", "invalid_key"}:
        *above, key = error["loc"]
        keys = _keys(section, above)
        near = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(keys)}"
        return f"unknown key; {hint}"
    if error["type"] in {"missing", "invalid", "conflict"}:
        return _words(error)
    return f"{_words(error)}, not {short(error['input'])}"


def _words(error: ErrorDetails) -> str:
    return _MESSAGES.get(error["type"], error["msg"].replace("Input should be", "must be"))


def _keys(section: type[BaseModel], path: list[str | int]) -> list[str]:
    """Return the keys of the section at a path below another one."""
    for part in path:
        if field := section.model_fields.get(str(part)):
            section = next(_sections(field.annotation), section)
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field of this type may hold, in a list or mapping as well."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
