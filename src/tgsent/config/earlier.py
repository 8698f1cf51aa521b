"""Keys that were added to the config later, with values that keep the old behaviour."""

from __future__ import annotations

from collections.abc import Mapping

from tgsent.config.yaml_source import Path

_LATER_KEYS: dict[tuple[str, ...], object] = {
    ("prompt", "words"): None,
    ("prompt", "template"): "plain",
    ("training", "lora", "target"): "attention",
    ("evaluation", "calibration"): "none",
}
"""Keys added later, each with the value that keeps the old behaviour."""

_LORA = {"r": 4, "alpha": 32, "dropout": 0.1, "target": "attention"}
"""The adapters of a model whose own settings named only some of these."""


def leave_out(settings: Mapping[str, object]) -> None:
    """Remove, in place, later keys whose value keeps the old behaviour.

    Such keys are in no fingerprint or signature, so that old trials keep theirs.
    """
    for path, value in _LATER_KEYS.items():
        holder, key = _at(settings, path[:-1]), path[-1]
        if isinstance(holder, dict) and key in holder and holder[key] == value:
            del holder[key]


def lacking(stored: Mapping[str, object]) -> dict[Path, object]:
    """Return the keys that a stored config lacks, each with the value that keeps its behaviour."""
    found: dict[Path, object] = {}
    for path, value in _LATER_KEYS.items():
        holder = _at(stored, path[:-1])
        if isinstance(holder, dict) and path[-1] not in holder:
            found[path] = value
    prompt, models = stored.get("prompt"), stored.get("models")
    if (isinstance(prompt, dict) and "template" in prompt) or not isinstance(models, list):
        return found  # in this version, defaults fill what a model's settings leave out
    for index, item in enumerate(models):
        lora = _at(item, ("training", "lora"))
        if isinstance(lora, dict) and "target" not in lora:
            place = ("models", index, "training", "lora")
            found |= {(*place, key): _LORA[key] for key in _LORA.keys() - lora.keys()}
    return found


def _at(values: object, path: tuple[str, ...]) -> object:
    """Return what a path leads to; None where it ends before."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
