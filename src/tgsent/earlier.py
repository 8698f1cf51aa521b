"""Run folders of earlier versions: what their configs lack, and what those versions did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tgsent.config import LATER_KEYS

Path = tuple[str | int, ...]

_LORA = {"r": 4, "alpha": 32, "dropout": 0.1, "target": "attention"}
"""The adapters of a model whose own settings named only some of these."""


def lacking(stored: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the keys that a stored config lacks, each with the value that does what was done."""
    return {**dict(_common(stored)), **dict(_of_models(stored))}


def fill(stored: dict[str, Any]) -> None:
    """Add, in place, what a stored config lacks."""
    for (*sections, key), value in lacking(stored).items():
        holder: Any = stored
        for section in sections:
            holder = holder[section]
        holder[key] = value


def _common(stored: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    for (*sections, key), value in LATER_KEYS.items():
        holder: Any = stored
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and key not in holder:
            yield (*sections, key), value


def _of_models(stored: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    prompt, models = stored.get("prompt"), stored.get("models")
    if isinstance(prompt, dict) and "template" in prompt:
        return  # of this version, whose defaults fill what a model's settings leave out
    for index, item in enumerate(models if isinstance(models, list) else []):
        training = item.get("training") if isinstance(item, dict) else None
        lora = training.get("lora") if isinstance(training, dict) else None
        if isinstance(lora, dict) and "target" not in lora:
            for key, value in _LORA.items():
                if key not in lora:
                    yield ("models", index, "training", "lora", key), value
