"""Keys that configs of earlier versions lack, and what those versions did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tgsent.config.yaml_source import Path

_LATER_KEYS: dict[tuple[str, ...], Any] = {
    ("prompt", "words"): None,
    ("prompt", "template"): "plain",
    ("training", "lora", "target"): "attention",
    ("evaluation", "calibration"): "none",
}
"""Each with the value that does what versions without the key did."""

_LORA = {"r": 4, "alpha": 32, "dropout": 0.1, "target": "attention"}
"""The adapters of a model whose own settings named only some of these."""


def leave_out(settings: dict[str, Any]) -> None:
    """Remove, in place, the keys that do what versions without them did.

    Such keys are in no fingerprint or signature, so that old trials keep theirs.
    """
    for path, value in _LATER_KEYS.items():
        holder, key = _holder(settings, path), path[-1]
        if holder is not None and key in holder and holder[key] == value:
            del holder[key]


def lacking(stored: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the keys that a stored config lacks, each with the value that does what was done."""
    return {
        **{
            path: value
            for path, value in _LATER_KEYS.items()
            if (holder := _holder(stored, path)) is not None and path[-1] not in holder
        },
        **dict(_of_models(stored)),
    }


def fill(stored: dict[str, Any]) -> None:
    """Add, in place, what a stored config lacks."""
    for path, value in lacking(stored).items():
        holder: Any = stored
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = value


def _holder(settings: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the mapping that holds the last key of a path; None where there is none."""
    holder: Any = settings
    for section in path[:-1]:
        holder = holder.get(section) if isinstance(holder, dict) else None
    return holder if isinstance(holder, dict) else None


def _of_models(stored: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield what the adapters lack that a model's own settings describe in part."""
    prompt, models = stored.get("prompt"), stored.get("models")
    if isinstance(prompt, dict) and "template" in prompt:
        return  # of this version, whose defaults fill what a model's settings leave out
    for index, item in enumerate(models if isinstance(models, list) else []):
        training = item.get("training") if isinstance(item, dict) else None
        lora = training.get("lora") if isinstance(training, dict) else None
        if isinstance(lora, dict) and "target" not in lora:
            for key in _LORA.keys() - lora.keys():
                yield ("models", index, "training", "lora", key), _LORA[key]
