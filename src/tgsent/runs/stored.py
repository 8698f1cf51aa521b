"""Run folders as they are found: read back, also while a run goes on, and put side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tgsent import config as configs
from tgsent.config import RunConfig, TrialSpec, earlier
from tgsent.errors import RunFolderError
from tgsent.records import Prediction
from tgsent.runs.folder import RunFolder, flat

MOST_LOGS = 10
"""Trials of a model whose training logs are read, as more are not shown."""

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
    """Of the first trials of each model."""
    escape_formulas: bool = True
    """Whether CSV files are to be safe for spreadsheets, as its config says."""
    planned: int = 0
    """Trials that its config asks for."""
    left_out: tuple[str, ...] = ()
    """Finished trials that cannot be shown beside the others, and why."""


def read(path: Path) -> StoredRun:
    """Read all finished trials of a run folder; raises RunFolderError where it is none.

    The models of its config come first, in their order. Files are whole at any time, so that a run
    may be going on meanwhile.
    """
    manifest = _manifest(path)
    config = _config(path)
    first = config.model_copy(update={"trials": 1})
    specs = {spec.name: spec for spec in first.trial_specs(manifest["data"]["labels"])}
    failed = _failed(path)
    texts = {split["trial"]: _texts(split) for split in manifest["splits"]}
    trials: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in (*config.names, *failed)}
    predictions, logs, left_out = {}, {}, []
    # by name and number: of numbers, those with fewer digits come first
    found = sorted(path.glob("*/trial-*"), key=lambda f: (f.parent.name, len(f.name), f.name))
    for folder in found:
        name, number = folder.parent.name, folder.name.removeprefix("trial-")
        try:
            with_log = len(trials.get(name, ())) < MOST_LOGS
            metrics, answers, log = _trial(path, name, number, with_log=with_log)
        except FileNotFoundError:  # not finished, or just started anew
            continue
        except _UnusableError as problem:
            left_out.append(f"{name} trial {number} ({problem})")
            continue
        key = name, metrics["trial"]
        if texts.setdefault(metrics["trial"], _texts(metrics)) != _texts(metrics):
            left_out.append(f"{name} trial {number} (tested on other texts)")
            continue
        trials.setdefault(name, {})[metrics["trial"]] = metrics
        predictions[key] = answers
        if with_log:
            logs[key] = log
    trials = {name: dict(sorted(own.items())) for name, own in trials.items()}
    manifest = {**manifest, "splits": _splits(manifest, trials)}
    failed = {
        name: {k: reason for k, reason in own.items() if k not in trials[name]}
        for name, own in failed.items()
    }
    return StoredRun(
        paths=(path,),
        name=config.name,
        config=(path / "config.yaml").read_text("utf-8"),
        manifest=manifest,
        specs=specs,
        trials=trials,
        failed=failed,
        predictions=predictions,
        logs=logs,
        escape_formulas=config.output.escape_formulas,
        planned=len(config.names) * config.trials,
        left_out=tuple(left_out),
    )


def combine(runs: Sequence[StoredRun]) -> StoredRun:
    """Put several runs side by side, as one; a model that stands in several is named by its run.

    Raises RunFolderError, with the reason, where they did not test the same texts.
    """
    first, *others = runs
    if not others:
        return first
    if len({run.paths[0].resolve() for run in runs}) < len(runs):
        raise RunFolderError(f"the same run folder stands twice in {_paths(runs)}")
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
    if len(set(names.values())) < len(names):
        raise RunFolderError(f"two models of {_paths(runs)} would have the same name; see `as`")
    models = [
        {**model, "name": names.get((run.paths, model["name"]), model["name"])}
        for run in runs
        for model in run.manifest["models"]
    ]
    published = {
        names[run.paths, name]: score
        for run in runs
        for name, score in ((run.manifest["article"] or {}).get("mean_macro_f1", {})).items()
    }
    manifest = {
        **first.manifest,
        "models": models,
        "article": {**(first.manifest["article"] or {}), "mean_macro_f1": published}
        if published
        else None,
        "splits": [
            s
            for _, s in sorted({s["trial"]: s for r in runs for s in r.manifest["splits"]}.items())
        ],
        "sweep": [
            {**sweep, "model": names[run.paths, sweep["model"]]}
            for run in runs
            for sweep in run.manifest.get("sweep", ())
        ],
        "combined": [
            {"path": str(run.paths[0])}
            | {key: run.manifest[key] for key in ("command", "git_commit", "started", "finished")}
            for run in runs
        ],
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


class _UnusableError(Exception):
    """Why a finished trial cannot be shown."""


# what a trial's metrics need not hold, as earlier versions did not write it
_SINCE_ADDED: dict[str, Any] = {
    "signature": "", "extra_sha256": "", "example": None, "shots": [], "warnings": [],
    "truncated": 0, "truncated_tokens": 0, "overlap": 0, "commit": None, "steps": 0,
    "learning_rate": 0.0, "device": "-", "precision": "-",
}  # fmt: skip
_NEEDED = {
    "model", "trial", "seed", "macro_f1", "accuracy", "per_label", "confusion", "unparsed",
    "n_train", "n_test", "train_seconds", "train_examples_per_second", "eval_seconds",
    "eval_examples_per_second", "peak_memory_bytes", "parameters", "split_sha256",
}  # fmt: skip


def _trial(
    path: Path, name: str, number: str, *, with_log: bool
) -> tuple[dict[str, Any], list[Prediction], list[dict[str, Any]]]:
    """Read metrics, answers and, where asked for, the log of a finished trial.

    Raises FileNotFoundError where it is not finished, _UnusableError where its files are not sound.
    """
    found = path / name / f"trial-{number}" / "metrics.json"
    try:
        metrics = json.loads(found.read_bytes())
    except ValueError:
        raise _UnusableError("metrics.json is not JSON") from None
    if not isinstance(metrics, dict) or _NEEDED - metrics.keys():
        raise _UnusableError("metrics.json is not that of a trial")
    if (metrics["model"], str(metrics["trial"])) != (name, number):
        raise _UnusableError(f"metrics.json is that of {metrics['model']} trial {metrics['trial']}")
    metrics |= {key: value for key, value in _SINCE_ADDED.items() if key not in metrics}
    folder = RunFolder(path)
    try:
        answers = folder.predictions(metrics)
        log = folder.log(name, metrics["trial"]) if with_log else []
    except (OSError, ValueError, IndexError) as error:
        raise _UnusableError(f"its files are not whole: {error}") from None
    if len(answers) != metrics.get("all", metrics)["n_test"]:
        raise _UnusableError("predictions.csv does not hold an answer to each text")
    right = sum(p.label == p.predicted for p in answers[: metrics["n_test"]])
    if abs(right / metrics["n_test"] - metrics["accuracy"]) > 1e-6:
        raise _UnusableError("predictions.csv and metrics.json disagree")
    return metrics, answers, log


def _texts(part: dict[str, Any]) -> tuple[str, str]:
    """Name the texts of a trial, by its metrics or the manifest's description of its split."""
    return part.get("split_sha256") or part["sha256"], part.get("extra_sha256", "")


def _manifest(path: Path) -> dict[str, Any]:
    manifest = _json(path / "manifest.json")
    needed = {
        "data", "splits", "models", "versions", "article", "command", "started", "finished",
        "git_commit", "platform", "tgsent",
    }  # fmt: skip
    if needed - manifest.keys() or "labels" not in manifest["data"]:
        raise RunFolderError(f"{path / 'manifest.json'}: is not the manifest of a run")
    return manifest


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
    file = path / "config.yaml"
    config = configs.load(str(file))
    lacking = [
        f"{'.'.join(map(str, path))}={json.dumps(value)}"
        for path, value in earlier.lacking(yaml.safe_load(file.read_bytes())).items()
    ]
    return configs.load(str(file), overrides=lacking) if lacking else config


def _splits(
    manifest: dict[str, Any], trials: Mapping[str, Mapping[int, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Describe the split of every trial, also of those that the last run did not ask for."""
    known = {split["trial"]: split for split in manifest["splits"]}
    for own in trials.values():
        for number, metrics in own.items():
            keys = ("seed", "n_train", "n_test", "overlap", "extra_sha256")
            described = {key: metrics[key] for key in keys}
            split = {"trial": number, "sha256": metrics["split_sha256"], **described}
            known.setdefault(number, split)
    return [known[number] for number in sorted(known)]


def _failed(path: Path) -> dict[str, dict[int, str]]:
    """Give the reasons of the trials that the last run saw fail."""
    try:
        rows = _json(path / "results.json")["models"]
        return {
            row["model"]: {one["trial"]: one["reason"] for one in row["failed"]}
            for row in rows
            if row["failed"]
        }
    except (RunFolderError, KeyError, TypeError):  # of a run that has not come so far
        return {}


def _paths(runs: Sequence[StoredRun]) -> str:
    return ", ".join(str(path) for run in runs for path in run.paths)


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
    texts = [
        {split["trial"]: _texts(split) for split in run.manifest["splits"]}
        for run in (first, other)
    ]
    for number in texts[0].keys() & texts[1].keys():
        if texts[0][number] != texts[1][number]:
            raise RunFolderError(
                f"{where}: trial {number} was tested on other texts{_reason(first, other)}"
            )


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _reason(first: StoredRun, other: StoredRun) -> str:
    """Say which settings make the splits differ, as far as the folders tell."""
    one, two = (flat(_config(run.paths[0]).model_dump(mode="json")) for run in (first, other))
    settings = [
        f"{key} is {_yaml(one.get(key))} and {_yaml(two.get(key))}"
        for key in dict.fromkeys((*one, *two))
        if key.startswith(("data.", "seed")) and key != "data.path" and one.get(key) != two.get(key)
    ]
    if first.manifest["data"]["sha256"] != other.manifest["data"]["sha256"]:
        settings.append("the data files differ")
    return f"\n{'; '.join(settings[:4])}" if settings else ""
