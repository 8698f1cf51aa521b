"""Load a config: a file, the flags of the command line, `--set`; and check all of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tgsent.config import simplet5, yaml_source
from tgsent.config.messages import mistakes
from tgsent.config.run import DEFAULT_MODELS, RunConfig, with_key
from tgsent.config.yaml_source import Source
from tgsent.errors import ConfigError

SHIPPED = ("smoke", "default", "article")

_MISTAKES_SHOWN = 50


class _Change(NamedTuple):
    """What a flag of the command line changes."""

    flag: str
    path: yaml_source.Path
    value: object


def load(
    config: str | None = None,
    *,
    models: Sequence[str] = (),
    trials: int | None = None,
    data: str | None = None,
    output_dir: str | None = None,
    engine: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Read a config file or a shipped config, apply what the command line says, and check it all.

    `overrides` are `KEY=VALUE` with a dotted key. Raises ConfigError that lists every mistake.
    """
    source = _read(config or "default")
    if not isinstance(source.value, dict):
        raise ConfigError(f"{source.name}: a config is a mapping of keys, such as `trials: 3`")
    stem = re.sub(r'[\\:*?"<>|]', "-", Path(config or "default").stem)
    values: object = {"name": stem, "models": list(DEFAULT_MODELS), **source.value}
    changes = [
        _Change("--trials", ("trials",), trials),
        _Change("--data", ("data", "path"), data),
        _Change("--output", ("output", "dir"), output_dir),
        _Change("--engine", ("engine", "kind"), engine),
    ]
    changes = [one for one in changes if one.value is not None]
    if models:
        listed = source.value.get("models")
        changes.append(_Change("--model", ("models",), _pick_models(listed, models)))
    changes += map(_parsed, overrides)
    try:
        for change in changes:
            values = with_key(values, change.path, change.value)
        return RunConfig.model_validate(values)
    except ValidationError as error:
        found = mistakes(error)
    common = {*found, *simplet5.conflicts(values)}
    lines: dict[str, None] = {}  # in order, each once
    for one in found:
        # a model inherits the mistakes of the common sections
        inherited = one._replace(path=one.path[2:])
        path = inherited.path if inherited in common and one.path not in source.lines else one.path
        place = f"{'.'.join(map(str, path))} ({_origin(path, source, changes)})"
        lines[f"  {place}: {one.message}"] = None
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    shown = list(lines)[:_MISTAKES_SHOWN]
    if len(lines) > len(shown):
        shown.append(f"  and {len(lines) - len(shown)} more")
    raise ConfigError("\n".join([f"{source.name}: {count} in the config", *shown]))


def _read(config: str) -> Source:
    if config in SHIPPED:
        return yaml_source.parse(shipped(f"configs/{config}.yaml").decode(), f"config {config}")
    try:
        text = Path(config).read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{config}: cannot read this config: {reason}; shipped are {', '.join(SHIPPED)}"
        ) from None
    return yaml_source.parse(text, config)


def shipped(name: str) -> bytes:
    """Read a file that is shipped with tgsent: from the wheel, or from a source checkout."""
    inside = resources.files("tgsent") / "_shipped" / name
    if inside.is_file():
        return inside.read_bytes()
    return (Path(__file__).parents[3] / name).read_bytes()


def _pick_models(listed: object, names: Sequence[str]) -> list[object]:
    """Replace the config's list; a model that the list holds keeps its own settings there."""
    items = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [
        next((one for one in items if name in (one.get("model"), one.get("as"))), name)
        for name in names
    ]


def _parsed(override: str) -> _Change:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override}: must be KEY=VALUE, for example --set training.epochs=3"
        )
    path: yaml_source.Path
    if key.startswith("sweep.keys."):  # what follows is the name of one key
        path = ("sweep", "keys", key.removeprefix("sweep.keys."))
    else:
        path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    flag = f"--set {key}"
    return _Change(flag, path, yaml_source.parse(text, flag).value)


def _origin(path: yaml_source.Path, source: Source, changes: Sequence[_Change]) -> str:
    """Return the last flag that sets a key, one above it or one below it; else its line."""
    for flag, changed, _ in reversed(changes):
        length = min(len(path), len(changed))
        if path[:length] == changed[:length]:
            return flag
    return source.where(path)
