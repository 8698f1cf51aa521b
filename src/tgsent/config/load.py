"""Load a config: a file, the flags of the command line, `--set`; and check all of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from tgsent.config import simplet5, yaml_source
from tgsent.config.messages import Mistake, mistakes
from tgsent.config.run import DEFAULT_MODELS, OVERRIDABLE, RunConfig
from tgsent.config.yaml_source import Source
from tgsent.errors import ConfigError

SHIPPED = ("smoke", "default", "article")
_MISTAKES_SHOWN = 50


class _Change(NamedTuple):
    path: yaml_source.Path
    value: object
    argument: str
    """The argument of the command line that says so."""


def load(
    config: str | None = None,
    *,
    models: Sequence[str] = (),
    trials: int | None = None,
    output_dir: str | None = None,
    engine: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Read a config file or a shipped config, apply what the command line says, and check it all.

    `overrides` are `KEY=VALUE` with a dotted key. Raises ConfigError that lists every mistake.
    """
    source = _read(config or "default")
    values: Any = source.value
    if not isinstance(values, dict):
        raise ConfigError(f"{source.name}: a config is a mapping of keys, such as `trials: 3`")
    values.setdefault("name", re.sub(r'[\\:*?"<>|]', "-", Path(config or "default").stem))
    values.setdefault("models", list(DEFAULT_MODELS))
    flags = (
        _Change(("models",), _pick_models(values["models"], models) or None, "--model"),
        _Change(("trials",), trials, "--trials"),
        _Change(("output", "dir"), output_dir, "--output"),
        _Change(("engine", "kind"), engine, "--engine"),
    )
    changes = [one for one in flags if one.value is not None] + [_parsed(one) for one in overrides]
    for path, value, argument in changes:
        try:
            values = _with(values, path, value)
        except LookupError as error:
            raise ConfigError(f"{argument}: {error.args[0]}") from None
    return _check(values, source, {one.path: one.argument.split("=")[0] for one in changes})


def _read(config: str) -> Source:
    if config in SHIPPED:
        return yaml_source.parse(shipped(f"configs/{config}.yaml").decode(), f"config {config}")
    path = Path(config)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{config}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        hint = ""
        if path.suffix not in {".yaml", ".yml"}:
            near = difflib.get_close_matches(config, SHIPPED, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; shipped: {', '.join(SHIPPED)}"
        raise ConfigError(f"{config}: cannot read this config: {error.strerror}{hint}") from None
    except ValueError as error:
        raise ConfigError(f"{config!r}: cannot read this config: {error}") from None
    return yaml_source.parse(text, config)


def shipped(name: str) -> bytes:
    """Read a file that is shipped with tgsent: from the wheel, or from a source checkout."""
    inside = resources.files("tgsent") / "_shipped" / name
    if inside.is_file():
        return inside.read_bytes()
    return (Path(__file__).parents[3] / name).read_bytes()


def _pick_models(listed: object, names: Sequence[str]) -> list[object]:
    """Replace the config's list; a model that the list holds keeps its own settings there."""
    known: dict[str, object] = {}
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict):
            for key in ("model", "as"):
                if isinstance(item.get(key), str):
                    known.setdefault(item[key], item)
    return [known.get(name, name) for name in names]


def _parsed(override: str) -> _Change:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override}: must be KEY=VALUE, for example --set training.epochs=3"
        )
    return _Change(_dotted(key), yaml_source.parse_scalar(text), f"--set {override}")


def _dotted(key: str) -> yaml_source.Path:
    if key.startswith("sweep.keys."):  # what follows is the name of one key
        return ("sweep", "keys", key.removeprefix("sweep.keys."))
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _with(
    values: object, path: yaml_source.Path, value: object, above: yaml_source.Path = ()
) -> object:
    """Return values with one key changed, and the mappings above it made where there are none.

    Other uses of the same YAML alias do not change. Unknown keys are reported by the validation.
    Raises LookupError where `path` goes through a value that holds no keys.
    """
    if not path:
        return value
    part, *below = path
    here = (*above, part)
    if values is None:
        values = {}
    if isinstance(values, dict):
        changed = _with(values.get(str(part)), tuple(below), value, here)
        return {**values, str(part): changed}
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        item = {"model": values[part]} if isinstance(values[part], str) else values[part]
        changed = _with(item, tuple(below), value, here)
        return [*values[:part], changed, *values[part + 1 :]]
    problem = f"has no item {part}" if isinstance(values, list) else "holds no keys"
    raise LookupError(f"{'.'.join(map(str, above))} {problem}")


def _check(
    values: Mapping[str, Any], source: Source, flags: Mapping[yaml_source.Path, str]
) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        found = mistakes(error, RunConfig)
    lines = [
        f"  {'.'.join(map(str, path))} ({_origin(path, source, flags)}): {message}"
        for path, message in dict.fromkeys(_placed(found, values))
    ]
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    if len(lines) > _MISTAKES_SHOWN:
        lines[_MISTAKES_SHOWN:] = [f"  and {len(lines) - _MISTAKES_SHOWN} more"]
    raise ConfigError("\n".join([f"{source.name}: {count} in the config", *lines]))


def _placed(found: Sequence[Mistake], values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield each mistake where it was made: a model inherits those of the common sections."""
    of_models = [
        one for one in found if one.path[0] == "models" and {*one.path[2:3]} & {*OVERRIDABLE}
    ]
    common = {*found, *simplet5.conflicts(values)} - {*of_models}
    yield from (one for one in found if one not in of_models)
    for one in of_models:
        _, index, section, *keys = one.path
        item = values["models"][index]
        own = item.get(section, {}) if isinstance(item, dict) else {}
        inherited = Mistake((section, *keys), one.message)
        is_own = not isinstance(own, dict) or {*keys[:1]} & own.keys()
        yield one if is_own or (own and inherited not in common) else inherited


def _origin(path: yaml_source.Path, source: Source, flags: Mapping[yaml_source.Path, str]) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in flags:
            return flags[path[:length]]
    if path not in source.lines:
        for key, flag in flags.items():
            if key[: len(path)] == path:
                return flag
    return source.where(path)
