"""Whether a run folder holds results of the same experiment: settings, data and weights."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from tgsent.config import RunConfig, TrialSpec, earlier, resolve_calibration
from tgsent.errors import RunFolderError
from tgsent.files import read_object

# Settings that do not change what is measured: they may differ between runs in one folder, and so
# may the choice of models and the number of trials.
_FREE_KEYS = (
    "name", "models", "trials", "output.", "engine.", "training.device", "training.report_to",
    "evaluation.batch_size",
)  # fmt: skip


def check_same_settings(folder: Path, config: RunConfig) -> None:
    """Raise RunFolderError where the folder holds results of other settings."""
    before = _config(folder)
    if before is None:
        return
    now = yaml.safe_load(config.to_yaml())
    earlier.fill(before)
    old, new = flat(before), flat(now)
    for settings in (old, new):
        _resolve(settings)
    differing = [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key) and not key.startswith(_FREE_KEYS)
    ]
    old_models, new_models = _models(before), _models(now)
    differing += [
        f"the settings of model {key[0]} differ"
        for key in old_models.keys() & new_models.keys()
        if old_models[key] != new_models[key]
    ]
    if differing:
        more = f" (and {len(differing) - 2} more)" if len(differing) > 2 else ""
        raise _other_results(folder, f"other settings: {'; '.join(differing[:2])}{more}")


def check_same_data(folder: Path, sha256: str) -> None:
    """Raise RunFolderError where the folder holds results of other data."""
    if not any(folder.glob("*/trial-*/metrics.json")):
        return
    data = read_object(folder / "manifest.json").get("data")
    before = data.get("sha256") if isinstance(data, dict) else None
    if before and before != sha256:
        raise _other_results(folder, f"other data: the file's {_hashes(before, sha256)}")


def check_same_weights(folder: Path, specs: Iterable[TrialSpec]) -> None:
    """Raise RunFolderError where a model's results come from other weights than its specs'."""
    for name, weights in {spec.name: spec.weights for spec in specs if spec.weights}.items():
        before = _weights_of_results(folder, name)
        if before and before != weights:
            what = f"{name} trained from other weights: their {_hashes(before, weights)}"
            raise _other_results(folder, what)


def _weights_of_results(folder: Path, name: str) -> str | None:
    """Return the hash recorded with a model's results, or None.

    Results of earlier versions lack it; the manifest of a run that continued them has it.
    """
    finished = sorted(folder.glob(f"{glob.escape(name)}/trial-*/metrics.json"))
    if not finished:
        return None
    models = read_object(folder / "manifest.json").get("models")
    entries = (one for one in models or () if isinstance(one, dict) and one.get("name") == name)
    recorded = (one.get("weights_sha256") for one in chain(map(read_object, finished), entries))
    return next((str(sha256) for sha256 in recorded if sha256), None)


def _hashes(before: str, now: str) -> str:
    return f"SHA-256 was {before[:12]}... and is now {now[:12]}..."


def _other_results(folder: Path, what: str) -> RunFolderError:
    return RunFolderError(
        f"{folder}: holds results of {what}\n"
        "--fresh moves them aside; --set name=NAME or --output DIR starts another folder"
    )


def _config(folder: Path) -> dict[str, Any] | None:
    """Load the config of the results in a folder; return None where it has none."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise RunFolderError(f"{folder}: is a file, not a run folder") from None
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, LookupError):  # as PyYAML raises for a wrong value
        config = None
    models = config.get("models") if isinstance(config, dict) else None
    if not isinstance(models, list) or not all(
        isinstance(m, str) or (isinstance(m, dict) and "model" in m) for m in models
    ):
        raise RunFolderError(
            f"{folder / 'config.yaml'}: is not the config of a run;"
            " --fresh moves the folder aside, --output DIR takes another"
        )
    found: dict[str, Any] = config
    return found


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.")
    return found


def _resolve(settings: dict[str, Any]) -> None:
    """Resolve `evaluation.calibration` in place, so that configs of all versions compare."""
    settings["evaluation.calibration"] = resolve_calibration(
        settings.get("evaluation.calibration", "none"),
        settings.get("evaluation.decoding", "free"),
        settings.get("training.epochs", 1),
    )


def _models(values: dict[str, Any]) -> dict[tuple[str, str | None], Any]:
    """Return what the models of a config override, by name or model and by backend."""
    items: list[dict[str, Any]] = [
        {"model": m} if isinstance(m, str) else m for m in values["models"]
    ]
    return {
        (item.get("as", item["model"]), item.get("training", {}).get("backend")): {
            k: v for k, v in flat(item).items() if k != "as" and not k.startswith(_FREE_KEYS)
        }
        for item in items
    }
