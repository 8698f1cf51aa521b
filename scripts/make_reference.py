"""Write `docs/configuration.md` and `configs/default.yaml` from the fields of the config.

    python scripts/make_reference.py [--check]

With `--check` nothing is written, and the exit code is 1 where a file is not up to date.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from tgsent.config import LoraConfig, ModelConfig, RunConfig, SweepConfig, SweepRange

ROOT = Path(__file__).parents[1]

INTRODUCTION = """\
# Configuration

Written by `scripts/make_reference.py` from the fields in `src/tgsent/config/`.

A config is a YAML file; every key may be left out and then has the default given here, which is
also what `configs/default.yaml` says. Unknown keys are refused. `--set KEY=VALUE` sets any key by
its dotted name.
"""


def main() -> int:
    """Write the files, or check them."""
    stale = 0
    for name, content in (
        ("docs/configuration.md", reference()),
        ("configs/default.yaml", default_config()),
    ):
        path = ROOT / name
        if path.is_file() and path.read_text("utf-8") == content:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{name} is not up to date: run python scripts/make_reference.py")
            stale = 1
        else:
            path.write_text(content, "utf-8")
            print(f"wrote {name}")
    return stale


def reference() -> str:
    """Write one table per section."""
    top = [name for name in RunConfig.model_fields if not _section(RunConfig, name)]
    parts = [INTRODUCTION, _table("The run", RunConfig, "", top)]
    for name, section in _sections(RunConfig, ""):
        keys = [key for key in section.model_fields if not _section(section, key)]
        parts.append(_table(f"`{name}`", section, f"{name}.", keys))
    for name, section in (("training.lora", LoraConfig), ("sweep", SweepConfig)):
        parts.append(_table(f"`{name}`", section, f"{name}.", list(section.model_fields)))
    parts.append(_table("A range of `sweep.keys`", SweepRange, "", list(SweepRange.model_fields)))
    parts.append(_table("An item of `models`", ModelConfig, "", list(ModelConfig.model_fields)))
    return "\n".join(parts)


def default_config() -> str:
    """Write the defaults as a config, each key with its documentation."""
    lines = [
        "# The recommended settings. Written by scripts/make_reference.py from the fields",
        "# in src/tgsent/config, which hold the same defaults.",
    ]
    return "\n".join([*lines, *_entries(RunConfig, RunConfig().dump(), "")]) + "\n"


def _entries(parent: type[BaseModel], values: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name in parent.model_fields:
        if section := _section(parent, name):
            lines += ["", f"{indent}{name}:  # {_first_line(section.__doc__)}"]
            lines += _entries(section, values[name], f"{indent}  ")
        else:
            lines += _entry(parent, name, values[name], indent)
    return lines


def _entry(section: type[BaseModel], key: str, value: Any, indent: str) -> list[str]:
    text = " ".join((section.model_fields[key].description or "").split())
    comment = textwrap.wrap(
        text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
    return ["", *comment, f"{indent}{key}: {_yaml(value)}"]


def _table(title: str, section: type[BaseModel], prefix: str, keys: list[str]) -> str:
    lines = [f"## {title}", "", f"{_first_line(section.__doc__)}", ""]
    lines += ["| key | values | default | |", "|---|---|---|---|"]
    for key in keys:
        field = section.model_fields[key]
        default = "needed" if field.is_required() else f"`{_yaml(_plain(field.default))}`"
        text = " ".join((field.description or "").split())
        name = f"`{prefix}{field.alias or key}`"
        cells = (name, _values(field.annotation), default, text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _sections(parent: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section below `parent` with its dotted name, in order."""
    for name in parent.model_fields:
        if section := _section(parent, name):
            yield f"{prefix}{name}", section
            yield from _sections(section, f"{prefix}{name}.")


def _section(parent: type[BaseModel], name: str) -> type[BaseModel] | None:
    annotation = parent.model_fields[name].annotation
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def _values(annotation: Any) -> str:
    """Name a type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(args[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in {Union, UnionType}:
        return " or ".join(dict.fromkeys(_values(arg) for arg in args))
    words = {int: "integer", float: "number", str: "text", bool: "true or false"}
    if annotation is type(None):
        return "`null`"
    return words.get(annotation) or ("list" if origin is tuple else "mapping")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [item.model for item in value]
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def _yaml(value: Any) -> str:
    if isinstance(value, str) and (value != value.strip() or "\n" in value):
        return json.dumps(value)  # JSON's escapes are YAML's
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _first_line(docstring: str | None) -> str:
    return (docstring or "").split("\n", 1)[0]


if __name__ == "__main__":
    sys.exit(main())
