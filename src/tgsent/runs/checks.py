"""Whether a run folder holds results of the same experiment: settings, data and weights."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic_core import to_jsonable_python

from tgsent import config as configs
from tgsent.config import RunConfig, TrialSpec, earlier, resolve_calibration, yaml_source
from tgsent.errors import ConfigError, RunFolderError
from tgsent.files import json_line, read_object
from tgsent.runs import manifest

# Settings that do not change what is measured: they may differ between runs in one folder, and so
# may the choice of models and the number of trials.
_FREE_KEYS = (
    "name", "models", "trials", "output.", "engine.", "training.device", "training.report_to",
    "evaluation.batch_size",
)  # fmt: skip


def check_same_settings(folder: Path, config: RunConfig) -> None:
    """Raise RunFolderError where the folder holds results of other settings."""
    before = read_config(folder)
    if before is None:
        return
    old, new = _settings(before), _settings(config)
    differing = [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]
    old_models, new_models = _models(before), _models(config)
    differing += [
        f"the settings of model {name} differ"
        for name in old_models.keys() & new_models.keys()
        if old_models[name] != new_models[name]
    ]
    if differing:
        more = f" (and {len(differing) - 2} more)" if len(differing) > 2 else ""
        raise _other_results(folder, f"other settings: {'; '.join(differing[:2])}{more}")


def check_same_data(folder: Path, sha256: str) -> None:
    """Raise RunFolderError where the folder holds results of other data."""
    if any(folder.glob("*/trial-*/metrics.json")) and (found := manifest.read(folder)):
        before = found.data.sha256
        if before != sha256:
            raise _other_results(folder, f"other data: the file's {_hashes(before, sha256)}")


def check_same_weights(folder: Path, specs: Iterable[TrialSpec]) -> None:
    """Raise RunFolderError where a model's results come from other weights than its specs'."""
    for name, weights in {spec.name: spec.weights for spec in specs if spec.weights}.items():
        finished = sorted(folder.glob(f"{glob.escape(name)}/trial-*/metrics.json"))
        hashes = [str(read_object(file).get("weights_sha256") or "") for file in finished]
        # results of earlier versions lack it; the manifest of a run that continued them has it
        if finished and (found := manifest.read(folder)):
            hashes += [one.weights_sha256 or "" for one in found.models if one.name == name]
        before = next(filter(None, hashes), weights)
        if before != weights:
            what = f"{name} trained from other weights: their {_hashes(before, weights)}"
            raise _other_results(folder, what)


def _hashes(before: str, now: str) -> str:
    return f"SHA-256 was {before[:12]}... and is now {now[:12]}..."


def _other_results(folder: Path, what: str) -> RunFolderError:
    return RunFolderError(
        f"{folder}: holds results of {what}\n"
        "--fresh moves them aside; --set name=NAME or --output DIR starts another folder"
    )


def read_config(folder: Path) -> RunConfig | None:
    """Load the config of the results in a folder; return None where it has none.

    Keys that were added later get the value that keeps the old behaviour.
    Raises RunFolderError where the file is not the config of a run.
    """
    file = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder}: is a file, not a run folder")
    if not file.exists():
        return None
    try:
        config = configs.load(str(file))
    except ConfigError as error:
        raise _no_config(str(error)) from None
    values = yaml_source.parse(file.read_text("utf-8"), str(file)).value
    if not isinstance(values, dict) or "models" not in values:
        raise _no_config(f"{file}: lists no models")
    lacking = [
        f"{'.'.join(map(str, keys))}={json_line(value)}"
        for keys, value in earlier.lacking(values).items()
    ]
    return configs.load(str(file), overrides=lacking) if lacking else config


def _no_config(problem: str) -> RunFolderError:
    return RunFolderError(
        f"{problem}\nthis is not the config of a run: --fresh moves its folder aside, --output DIR"
        " takes another"
    )


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Return the values of nested mappings by their dotted keys."""
    if not isinstance(value, Mapping) or not value:
        return {prefix.rstrip("."): value}
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.")
    return found


def _settings(config: RunConfig) -> dict[str, object]:
    """Return what all models share and a score depends on, by dotted keys."""
    values = flat(config.dump())
    values["evaluation.calibration"] = resolve_calibration(
        config.evaluation.calibration, config.evaluation.decoding, config.training.epochs
    )  # a folder of an earlier version has `none` where this one has `auto`
    return {key: value for key, value in values.items() if not key.startswith(_FREE_KEYS)}


def _models(config: RunConfig) -> dict[str, dict[str, object]]:
    """Return what each model of a config overrides, by dotted keys."""
    return {
        model.name: {
            key: value
            for key, value in flat(to_jsonable_python(model.written)).items()
            if key != "as" and not key.startswith(_FREE_KEYS)
        }
        for model in config.models
    }
