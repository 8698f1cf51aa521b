"""Read YAML and record the line of every key.

The values follow YAML 1.2's core schema, without the surprises of 1.1: `no` and `yes` are strings,
`1e-4` is a number, and a date is a string.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from tgsent.errors import ConfigError

Path = tuple[str | int, ...]
"""The keys and positions on the way to a value."""

_MAX_DEPTH = 100


class _CoreLoader(yaml.SafeLoader):
    """Safe loading with the implicit types of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, unless it is nested so deeply that reading it would take too long."""
        if len(self.marks) > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.marks[-1])
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge `<<`, without the repeats that make nested merges grow exponentially."""
        super().flatten_mapping(node)
        node.value = list({(k.tag, k.value): (k, value) for k, value in node.value}.values())


class _Dumper(yaml.SafeDumper):
    """Safe dumping that quotes whatever YAML 1.1 or 1.2 would not read as a string."""


for _tag, _pattern in (
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
    ),
    ("null", r"~|null|Null|NULL|"),
    ("merge", r"<<"),
):
    for _class in (_CoreLoader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), None
        )


def _decimal(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # 010 is ten, not eight


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _decimal)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds lines at these characters, which is hard to read and not always undone
    style = '"' if re.search("[\n\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


@dataclass(frozen=True)
class Source:
    """A parsed document and where its parts come from."""

    name: str
    """Its name in messages: a file name or `--set KEY`."""
    value: object
    lines: dict[Path, int]
    """Line number, from 1, of every key and list item."""

    def where(self, path: Path) -> str:
        """Return the line of `path`, or of the nearest part of it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"line {self.lines[path]}" if path else self.name


def parse(text: str, name: str) -> Source:
    """Parse one YAML document.

    Raises ConfigError for text that is not YAML, for a duplicate key and for a key that is not a
    plain value.
    """
    source = Source(name, None, {})
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        if node is None:
            return source
        _locate(node, (), source, set())
        return Source(name, loader.construct_document(node), source.lines)
    # what PyYAML raises for a wrong value depends on its tag: `!!bool 2` is a KeyError
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ConfigError(f"{name}{line}: not valid YAML: {reason.splitlines()[0]}") from None


def dump(value: object) -> str:
    """Write YAML that `parse` reads back unchanged, and so does any YAML 1.1 reader."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _locate(node: yaml.Node, path: Path, source: Source, visited: set[yaml.Node]) -> None:
    """Record the lines of a node's parts, those of an alias at its anchor."""
    source.lines.setdefault(path, node.start_mark.line + 1)
    if node in visited:
        return
    visited.add(node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{source.name}, line {line}: a key must be a plain word")
            below = (*path, key.value)
            if below in source.lines and key.value != "<<":
                raise ConfigError(f'{source.name}, line {line}: duplicate key "{key.value}"')
            source.lines[below] = line
            _locate(value, below, source, visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _locate(item, (*path, index), source, visited)
