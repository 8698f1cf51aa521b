"""Read run folders back, also while a run goes on, and combine them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import yaml

from tgsent import config as configs
from tgsent.config import RunConfig, TrialSpec, earlier
from tgsent.errors import RunFolderError
from tgsent.files import json_line, read_object
from tgsent.records import LogRow, Prediction, SplitSummary
from tgsent.runs.checks import flat
from tgsent.runs.folder import RunFolder
from tgsent.runs.formats import record
from tgsent.runs.manifest import CombinedRun, Manifest
from tgsent.runs.metrics import TrialMetrics

MOST_LOGS = 10
"""Trials of a model whose training logs are read; more are not shown."""

Key = tuple[str, int]
"""The name of a model and the number of a trial."""

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True)
class StoredRun:
    """What a run folder holds, or several together."""

    paths: tuple[Path, ...]
    name: str
    config: str
    """The text of `config.yaml`."""
    manifest: Manifest
    specs: Mapping[str, TrialSpec]
    """The settings of each model's first trial, for models that the folder's config names."""
    trials: Mapping[str, Mapping[int, TrialMetrics]]
    """The metrics of each model's finished trials, by number."""
    failed: Mapping[str, Mapping[int, str]]
    """The reasons of each model's failed trials, by number."""
    predictions: Mapping[Key, Sequence[Prediction]]
    logs: Mapping[Key, Sequence[LogRow]]
    """Of the first trials of each model."""
    escape_formulas: bool = True
    """Whether CSV files are made safe for spreadsheets, by its config."""
    planned: int = 0
    """Trials that its config asks for."""
    left_out: tuple[str, ...] = ()
    """Finished trials that cannot be shown beside the others, and why."""


def read(path: Path) -> StoredRun:
    """Read all finished trials of a run folder; raise RunFolderError where it is none.

    The models of its config come first, in their order. Files are always complete, so the run
    may still be running.
    """
    manifest, config = _manifest(path), _config(path)
    first = config.model_copy(update={"trials": 1})
    failed = _failed(path)
    texts = {split.trial: (split.sha256, split.extra_sha256) for split in manifest.splits}
    trials: dict[str, dict[int, TrialMetrics]] = {name: {} for name in (*config.names, *failed)}
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
        key, tested = (name, metrics.trial), (metrics.split_sha256, metrics.extra_sha256)
        if texts.setdefault(metrics.trial, tested) != tested:
            left_out.append(f"{name} trial {number} (tested on other texts)")
            continue
        trials.setdefault(name, {})[metrics.trial] = metrics
        predictions[key] = answers
        if with_log:
            logs[key] = log
    trials = {name: dict(sorted(own.items())) for name, own in trials.items()}
    return StoredRun(
        paths=(path,),
        name=config.name,
        config=(path / "config.yaml").read_text("utf-8"),
        manifest=replace(manifest, splits=_splits(manifest, trials)),
        specs={spec.name: spec for spec in first.trial_specs(manifest.data.labels)},
        trials=trials,
        failed={
            name: {k: reason for k, reason in own.items() if k not in trials[name]}
            for name, own in failed.items()
        },
        predictions=predictions,
        logs=logs,
        escape_formulas=config.output.escape_formulas,
        planned=len(config.names) * config.trials,
        left_out=tuple(left_out),
    )


def combine(runs: Sequence[StoredRun]) -> StoredRun:
    """Combine several runs into one; a model that is in several is named by its run.

    Raises RunFolderError, with the reason, where they did not test the same texts.
    """
    first, *others = runs
    if not others:
        return first
    if len({run.paths[0].resolve() for run in runs}) < len(runs):
        raise RunFolderError(f"the same run folder is given twice: {_paths(runs)}")
    for other in others:
        _check_comparable(first, other)
    models = sum(len(run.trials) for run in runs)
    runs = [_renamed(run, names) for run, names in zip(runs, _names(runs), strict=True)]
    trials = _merged(run.trials for run in runs)
    if len(trials) < models:
        raise RunFolderError(f"two models of {_paths(runs)} would have the same name; see `as`")
    return replace(
        runs[0],
        paths=tuple(path for run in runs for path in run.paths),
        name=" + ".join(dict.fromkeys(run.name for run in runs)),
        config="".join(f"# {run.paths[0]}\n{run.config}\n" for run in runs),
        manifest=_combined_manifest(runs),
        specs=_merged(run.specs for run in runs),
        trials=trials,
        failed=_merged(run.failed for run in runs),
        predictions=_merged(run.predictions for run in runs),
        logs=_merged(run.logs for run in runs),
        left_out=tuple(one for run in runs for one in run.left_out),
    )


def _renamed(run: StoredRun, names: Mapping[str, str]) -> StoredRun:
    """Return a run with other names of its models."""
    manifest, article = run.manifest, run.manifest.article
    if article:
        numbers = {names[name]: score for name, score in article.mean_macro_f1.items()}
        article = replace(article, mean_macro_f1=numbers)
    return replace(
        run,
        manifest=replace(
            manifest,
            models=tuple(replace(m, name=names.get(m.name, m.name)) for m in manifest.models),
            article=article,
            sweep=tuple(replace(one, model=names[one.model]) for one in manifest.sweep),
        ),
        specs={names[name]: spec for name, spec in run.specs.items()},
        trials={
            names[name]: {k: replace(metrics, model=names[name]) for k, metrics in own.items()}
            for name, own in run.trials.items()
        },
        failed={names[name]: own for name, own in run.failed.items()},
        predictions={(names[name], k): given for (name, k), given in run.predictions.items()},
        logs={(names[name], k): log for (name, k), log in run.logs.items()},
    )


def _merged(parts: Iterable[Mapping[_K, _V]]) -> dict[_K, _V]:
    return {key: value for part in parts for key, value in part.items()}


def _combined_manifest(runs: Sequence[StoredRun]) -> Manifest:
    """Return the manifest of the first of several runs, with the models and splits of all."""
    manifests = [run.manifest for run in runs]
    splits = _merged({split.trial: split for split in one.splits} for one in manifests)
    articles = [one.article for one in manifests if one.article]
    published = _merged(one.mean_macro_f1 for one in articles)
    return replace(
        manifests[0],
        models=tuple(model for one in manifests for model in one.models),
        article=replace(articles[0], mean_macro_f1=published) if articles else None,
        splits=tuple(splits[number] for number in sorted(splits)),
        sweep=tuple(sweep for one in manifests for sweep in one.sweep),
        combined=tuple(
            CombinedRun(str(run.paths[0]), m.command, m.git_commit, m.started, m.finished)
            for run, m in zip(runs, manifests, strict=True)
        ),
    )


class _UnusableError(Exception):
    """Why a finished trial cannot be shown."""


def _trial(
    path: Path, name: str, number: str, *, with_log: bool
) -> tuple[TrialMetrics, list[Prediction], list[LogRow]]:
    """Read metrics, answers and, if asked for, the log of a finished trial.

    Raises FileNotFoundError where it is not finished, _UnusableError where its files are not sound.
    """
    try:
        values = json.loads((path / name / f"trial-{number}" / "metrics.json").read_bytes())
    except ValueError:
        raise _UnusableError("metrics.json is not JSON") from None
    try:
        metrics = TrialMetrics.from_json(values)
    except ValueError:
        raise _UnusableError("metrics.json is not that of a trial") from None
    if (metrics.model, str(metrics.trial)) != (name, number):
        raise _UnusableError(f"metrics.json is that of {metrics.model} trial {metrics.trial}")
    folder = RunFolder(path)
    try:
        answers = folder.predictions(metrics)
        log = folder.log(name, metrics.trial) if with_log else []
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise _UnusableError(f"its files are not whole: {error}") from None
    if metrics.n_test < 1 or len(answers) != metrics.compared.n_test:
        raise _UnusableError("predictions.csv does not hold an answer to each text")
    right = sum(p.label == p.predicted for p in answers[: metrics.n_test])
    if abs(right / metrics.n_test - metrics.accuracy) > 1e-6:
        raise _UnusableError("predictions.csv and metrics.json disagree")
    return metrics, answers, log


def _manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    try:
        values = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunFolderError(
            f"{path}: is not a run folder: it has no {file.name};"
            " name the folder that a run wrote, such as runs/default"
        ) from None
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RunFolderError(f"{file}: is not the JSON that a run wrote there")
    try:
        return record(Manifest, values)
    except ValueError:
        raise RunFolderError(f"{file}: is not the manifest of a run") from None


def _config(path: Path) -> RunConfig:
    file = path / "config.yaml"
    if not file.is_file():
        raise RunFolderError(f"{path}: is not a run folder: it has no config.yaml")
    config = configs.load(str(file))
    lacking = [
        f"{'.'.join(map(str, keys))}={json_line(value)}"
        for keys, value in earlier.lacking(yaml.safe_load(file.read_bytes())).items()
    ]
    return configs.load(str(file), overrides=lacking) if lacking else config


def _splits(
    manifest: Manifest, trials: Mapping[str, Mapping[int, TrialMetrics]]
) -> tuple[SplitSummary, ...]:
    """Describe the split of every trial, also of those that the last run did not ask for."""
    of_trials = {
        m.trial: SplitSummary(
            m.trial, m.seed, m.split_sha256, m.n_train, m.n_test, m.overlap, m.extra_sha256
        )
        for own in trials.values()
        for m in own.values()
    }
    known = {**of_trials, **{split.trial: split for split in manifest.splits}}
    return tuple(known[number] for number in sorted(known))


def _failed(path: Path) -> dict[str, dict[int, str]]:
    """Return the reasons of the trials that the last run saw fail."""
    try:
        return {
            row["model"]: {one["trial"]: one["reason"] for one in row["failed"]}
            for row in read_object(path / "results.json").get("models", ())
            if row["failed"]
        }
    except (KeyError, TypeError):  # not written by a run
        return {}


def _paths(runs: Sequence[StoredRun]) -> str:
    return ", ".join(str(path) for run in runs for path in run.paths)


def _names(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    """Return for each run a mapping from its models' names to names that no other run has."""
    counts = Counter(name for run in runs for name in run.trials)
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
    where = f"{first.paths[0]} and {other.paths[0]} cannot be compared in one table"
    if (one := first.manifest.data.labels) != (two := other.manifest.data.labels):
        raise RunFolderError(f"{where}: their labels are {', '.join(one)} and {', '.join(two)}")
    texts = {split.trial: (split.sha256, split.extra_sha256) for split in first.manifest.splits}
    for split in other.manifest.splits:
        tested = split.sha256, split.extra_sha256
        if texts.get(split.trial, tested) != tested:
            raise RunFolderError(
                f"{where}: trial {split.trial} was tested on other texts{_reason(first, other)}"
            )


def _reason(first: StoredRun, other: StoredRun) -> str:
    """Name the settings that make the splits differ, as far as the folders record them."""
    one, two = (flat(_config(run.paths[0]).model_dump(mode="json")) for run in (first, other))
    settings = [
        f"{key} is {json_line(one.get(key))} and {json_line(two.get(key))}"
        for key in dict.fromkeys((*one, *two))
        if key.startswith(("data.", "seed")) and key != "data.path" and one.get(key) != two.get(key)
    ]
    if first.manifest.data.sha256 != other.manifest.data.sha256:
        settings.append("the data files differ")
    return f"\n{'; '.join(settings[:4])}" if settings else ""
