"""Run folders as they are found: read back, also while a run goes on, and put side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tgsent import config as configs
from tgsent.config import RunConfig, TrialSpec
from tgsent.errors import RunFolderError
from tgsent.records import Prediction
from tgsent.store import RunFolder, flat

Key = tuple[str, int]
"""The name of a model and the number of a trial."""


@dataclass(frozen=True)
class StoredRun:
    """What a run folder holds, or several together."""

    paths: tuple[Path, ...]
    name: str
    config: str
    """`config.yaml`, as it stands there."""
    manifest: dict[str, Any]
    specs: Mapping[str, TrialSpec]
    """The recipe of each model's first trial, as far as the folder's config still names it."""
    trials: Mapping[str, Mapping[int, dict[str, Any]]]
    """The metrics of each model's finished trials, by number."""
    failed: Mapping[str, Mapping[int, str]]
    predictions: Mapping[Key, Sequence[Prediction]]
    logs: Mapping[Key, Sequence[dict[str, Any]]]
    left_out: tuple[str, ...] = ()
    """Finished trials that were tested on other texts than the folder's last run."""


def read(path: Path) -> StoredRun:
    """Read all finished trials of a run folder; raises RunFolderError where it is none.

    The models of its config come first, in their order. Files are whole at any time, so that a run
    may be going on meanwhile.
    """
    folder = RunFolder(path)
    manifest = _json(path / "manifest.json")
    config = _config(path)
    labels = tuple(manifest["data"]["labels"])
    specs = {spec.name: spec for spec in reversed(config.trial_specs(labels))}
    splits = {split["trial"]: split["sha256"] for split in manifest["splits"]}
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in config.names}
    predictions, logs, left_out = {}, {}, []
    for metrics in _finished(path):
        name, number = metrics["model"], metrics["trial"]
        if splits.setdefault(number, metrics["split_sha256"]) != metrics["split_sha256"]:
            left_out.append(f"{name} trial {number}")
            continue
        predictions[name, number] = folder.predictions(name, number)
        logs[name, number] = folder.log(name, number)
        found.setdefault(name, {})[number] = metrics
    trials = {name: dict(sorted(own.items())) for name, own in found.items()}
    manifest = {**manifest, "splits": _splits(manifest, trials)}
    return StoredRun(
        paths=(path,),
        name=config.name,
        config=(path / "config.yaml").read_text("utf-8"),
        manifest=manifest,
        specs=specs,
        trials=trials,
        failed=_failed(path, trials),
        predictions=predictions,
        logs=logs,
        left_out=tuple(left_out),
    )


def combine(runs: Sequence[StoredRun]) -> StoredRun:
    """Put several runs side by side, as one; a model that stands in several is named by its run.

    Raises RunFolderError, with the reason, where they did not test the same texts.
    """
    first, *others = runs
    if not others:
        return first
    for other in others:
        _check_comparable(first, other)
    names = {
        (run.paths, name): new for run, own in zip(runs, _names(runs), strict=True)
        for name, new in own.items()
    }  # fmt: skip

    def renamed(part: str) -> dict[Any, Any]:
        return {names[r.paths, name]: x for r in runs for name, x in getattr(r, part).items()}

    def renamed_keys(part: str) -> dict[Key, Any]:
        return {
            (names[r.paths, name], k): x for r in runs for (name, k), x in getattr(r, part).items()
        }

    trials = {
        name: {k: {**metrics, "model": name} for k, metrics in own.items()}
        for name, own in renamed("trials").items()
    }
    published = {
        names[run.paths, name]: score
        for run in runs
        for name, score in ((run.manifest["article"] or {}).get("mean_macro_f1", {})).items()
    }
    manifest = {
        **first.manifest,
        "article": {**(first.manifest["article"] or {}), "mean_macro_f1": published}
        if published
        else None,
        "splits": [
            s
            for _, s in sorted({s["trial"]: s for r in runs for s in r.manifest["splits"]}.items())
        ],
        "combined": [str(path) for run in runs for path in run.paths],
    }
    return replace(
        first,
        paths=tuple(path for run in runs for path in run.paths),
        name=" + ".join(dict.fromkeys(run.name for run in runs)),
        config="".join(f"# {run.paths[0]}\n{run.config}\n" for run in runs),
        manifest=manifest,
        specs=renamed("specs"),
        trials=trials,
        failed=renamed("failed"),
        predictions=renamed_keys("predictions"),
        logs=renamed_keys("logs"),
        left_out=tuple(one for run in runs for one in run.left_out),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunFolderError(
            f"{path.parent}: is no run folder, as it holds no {path.name};"
            " name the folder that a run wrote, such as runs/default"
        ) from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: is not the JSON that a run wrote there")
    return value


def _config(path: Path) -> RunConfig:
    if not (path / "config.yaml").is_file():
        raise RunFolderError(f"{path}: is no run folder, as it holds no config.yaml")
    return configs.load(str(path / "config.yaml"))


def _finished(path: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(path.glob("*/trial-*/metrics.json")):
        try:
            yield json.loads(file.read_bytes())
        except FileNotFoundError:  # the trial has just been started anew
            continue
        except ValueError:
            raise RunFolderError(f"{file}: is not the JSON that a run wrote there") from None


def _splits(
    manifest: dict[str, Any], trials: Mapping[str, Mapping[int, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Describe the split of every trial, also of those that the last run did not ask for."""
    known = {split["trial"]: split for split in manifest["splits"]}
    for own in trials.values():
        for number, metrics in own.items():
            described = {key: metrics[key] for key in ("seed", "n_train", "n_test", "overlap")}
            split = {"trial": number, "sha256": metrics["split_sha256"], **described}
            known.setdefault(number, split)
    return [known[number] for number in sorted(known)]


def _failed(
    path: Path, trials: Mapping[str, Mapping[int, dict[str, Any]]]
) -> dict[str, dict[int, str]]:
    """Give the reasons of the trials that failed and are not finished since."""
    try:
        rows = _json(path / "results.json")["models"]
    except RunFolderError:  # of a run that has not finished a trial yet
        return {}
    return {
        row["model"]: {
            one["trial"]: one["reason"]
            for one in row["failed"]
            if one["trial"] not in trials.get(row["model"], {})
        }
        for row in rows
    }


def _names(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    """Give every model of every run a name that no other has."""
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.trials:
            counts[name] = counts.get(name, 0) + 1
    alone = len({run.name for run in runs}) == len(runs)
    return [
        {
            name: f"{name} ({run.name if alone else run.paths[0]})" if counts[name] > 1 else name
            for name in run.trials
        }
        for run in runs
    ]


def _check_comparable(first: StoredRun, other: StoredRun) -> None:
    """Raise RunFolderError where two runs did not classify the same texts."""
    where = f"{first.paths[0]} and {other.paths[0]} cannot stand in one table"
    if (one := first.manifest["data"]["labels"]) != (two := other.manifest["data"]["labels"]):
        raise RunFolderError(f"{where}: their labels are {', '.join(one)} and {', '.join(two)}")
    texts = [_texts(run) for run in (first, other)]
    for number in texts[0].keys() & texts[1].keys():
        if texts[0][number] != texts[1][number]:
            one, two = (hashes[:12] for hashes in (texts[0][number], texts[1][number]))
            raise RunFolderError(
                f"{where}: trial {number} was tested on other texts"
                f" (split {one} and {two}){_reason(first, other)}"
            )


def _texts(run: StoredRun) -> dict[int, str]:
    """Name what each trial was trained and tested on."""
    extra = {k: m["extra_sha256"] for own in run.trials.values() for k, m in own.items()}
    return {s["trial"]: s["sha256"] + extra.get(s["trial"], "") for s in run.manifest["splits"]}


def _reason(first: StoredRun, other: StoredRun) -> str:
    """Say which settings make the splits differ, as far as the folders tell."""
    one, two = (flat(_config(run.paths[0]).model_dump(mode="json")) for run in (first, other))
    settings = [
        f"{key} is {one.get(key)!r} and {two.get(key)!r}"
        for key in dict.fromkeys((*one, *two))
        if key.startswith(("data.", "seed")) and key != "data.path" and one.get(key) != two.get(key)
    ]
    if first.manifest["data"]["sha256"] != other.manifest["data"]["sha256"]:
        settings.append("the data files differ")
    return f"\n{'; '.join(settings[:4])}" if settings else ""
