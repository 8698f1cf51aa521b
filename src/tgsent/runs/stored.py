"""Read run folders back, also while a run goes on, and combine them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tgsent.config import RunConfig, TrialSpec
from tgsent.errors import RunFolderError
from tgsent.files import json_line, read_object
from tgsent.records import LogRow, Prediction, SplitSummary
from tgsent.runs import manifest as manifests
from tgsent.runs.checks import flat, read_config
from tgsent.runs.folder import RunFolder
from tgsent.runs.formats import UnusableError, read_record
from tgsent.runs.manifest import CombinedRun, Manifest
from tgsent.runs.metrics import TrialMetrics

_MOST_LOGS = 10
"""Trials of a model whose training logs are read; more are not shown."""

Key = tuple[str, int]
"""The name of a model and the number of a trial."""


@dataclass(frozen=True)
class StoredRun:
    """What a run folder holds, or several together."""

    paths: tuple[Path, ...]
    name: str
    config: str
    """The text of `config.yaml`."""
    settings: RunConfig
    """The config itself; of several runs, that of the first."""
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
    left_out: tuple[str, ...]
    """Finished trials that cannot be shown beside the others, and why."""


def read(path: Path) -> StoredRun:
    """Read all finished trials of a run folder; raise RunFolderError where it is none.

    The models of its config come first, in their order. Files are always complete, so the run
    may still be running.
    """
    manifest, config = manifests.read(path), read_config(path)
    if manifest is None or config is None:
        lacking = "config.yaml" if manifest else "manifest.json"
        raise RunFolderError(
            f"{path}: is not a run folder: it has no {lacking};"
            " name the folder that a run wrote, such as runs/default"
        )
    failed = _failed(path)
    splits = {split.trial: split for split in manifest.splits}
    trials: dict[str, dict[int, TrialMetrics]] = {name: {} for name in (*config.names, *failed)}
    predictions, logs, left_out = {}, {}, []
    # by name and number: of numbers, those with fewer digits come first
    found = sorted(path.glob("*/trial-*"), key=lambda f: (f.parent.name, len(f.name), f.name))
    for place in found:
        name, number = place.parent.name, place.name.removeprefix("trial-")
        try:
            metrics = read_record(TrialMetrics, place / "metrics.json")
            if metrics is None:
                continue  # it is not finished, or was just started anew
            answers = _answers(path, metrics, (name, number))
            with_log = len(trials.get(name, ())) < _MOST_LOGS
            log = RunFolder(path).log(metrics) if with_log else []
            _add_split(metrics, splits)
        except (UnusableError, OSError, ValueError, csv.Error) as problem:
            left_out.append(f"{name} trial {number} ({problem})")
            continue
        trials.setdefault(name, {})[metrics.trial] = metrics
        predictions[name, metrics.trial] = answers
        logs[name, metrics.trial] = log
    first = config.model_copy(update={"trials": 1})
    return StoredRun(
        paths=(path,),
        name=config.name,
        config=(path / "config.yaml").read_text("utf-8"),
        settings=config,
        manifest=replace(manifest, splits=tuple(splits[number] for number in sorted(splits))),
        specs={spec.name: spec for spec in first.trial_specs(manifest.data.labels)},
        trials={name: dict(sorted(own.items())) for name, own in trials.items()},
        failed={
            name: {k: reason for k, reason in own.items() if k not in trials[name]}
            for name, own in failed.items()
        },
        predictions=predictions,
        logs=logs,
        left_out=tuple(left_out),
    )


def _answers(path: Path, metrics: TrialMetrics, key: tuple[str, str]) -> list[Prediction]:
    """Read the answers of a finished trial; raise UnusableError where they are not those scored."""
    if (metrics.model, str(metrics.trial)) != key:
        raise UnusableError(f"metrics.json is that of {metrics.model} trial {metrics.trial}")
    answers = RunFolder(path).predictions(metrics)
    right = sum(p.label == p.predicted for p in answers[: metrics.n_test])
    if len(answers) != metrics.compared.n_test or right != round(metrics.accuracy * metrics.n_test):
        raise UnusableError("predictions.csv and metrics.json disagree")
    return answers


def _add_split(metrics: TrialMetrics, splits: dict[int, SplitSummary]) -> None:
    """Add the split of a trial to `splits`; raise UnusableError where that has other texts."""
    split = SplitSummary(
        metrics.trial, metrics.seed, metrics.split_sha256, metrics.n_train, metrics.n_test,
        metrics.overlap, metrics.extra_sha256,
    )  # fmt: skip
    known = splits.setdefault(split.trial, split)
    if _texts(known) != _texts(split):
        raise UnusableError("tested on other texts")


def _texts(split: SplitSummary) -> tuple[str, str]:
    """Return what identifies the texts of a split."""
    return split.sha256, split.extra_sha256


def combine(runs: Sequence[StoredRun]) -> StoredRun:
    """Combine several runs into one; a model that is in several is named by its run.

    Raises RunFolderError, with the reason, where they did not test the same texts.
    """
    first, *others = runs
    if not others:
        return first
    paths = ", ".join(str(run.paths[0]) for run in runs)
    if len({run.paths[0].resolve() for run in runs}) < len(runs):
        raise RunFolderError(f"the same run folder is given twice: {paths}")
    for other in others:
        _check_comparable(first, other)
    named = list(zip(runs, _names(runs), strict=True))
    trials = {
        to[name]: {k: replace(metrics, model=to[name]) for k, metrics in own.items()}
        for run, to in named
        for name, own in run.trials.items()
    }
    if len(trials) < sum(len(run.trials) for run in runs):
        raise RunFolderError(f"two models of {paths} would have the same name; see `as`")
    return replace(
        first,
        paths=tuple(path for run in runs for path in run.paths),
        name=" + ".join(dict.fromkeys(run.name for run in runs)),
        config="".join(f"# {run.paths[0]}\n{run.config}\n" for run in runs),
        manifest=_combined_manifest(named),
        specs={to[name]: spec for run, to in named for name, spec in run.specs.items()},
        trials=trials,
        failed={to[name]: own for run, to in named for name, own in run.failed.items()},
        predictions={
            (to[name], k): given
            for run, to in named
            for (name, k), given in run.predictions.items()
        },
        logs={(to[name], k): log for run, to in named for (name, k), log in run.logs.items()},
        left_out=tuple(one for run in runs for one in run.left_out),
    )


def _combined_manifest(named: Sequence[tuple[StoredRun, Mapping[str, str]]]) -> Manifest:
    """Return the manifest of the first of several runs, with the models and splits of all.

    Each run comes with the new names of its models.
    """
    pairs = [(run.manifest, to) for run, to in named]
    splits = {split.trial: split for one, _ in pairs for split in one.splits}
    articles = [(one.article, to) for one, to in pairs if one.article]
    published = {to[name]: x for one, to in articles for name, x in one.mean_macro_f1.items()}
    return replace(
        pairs[0][0],
        models=tuple(
            replace(model, name=to.get(model.name, model.name))
            for one, to in pairs
            for model in one.models
        ),
        article=replace(articles[0][0], mean_macro_f1=published) if articles else None,
        splits=tuple(splits[number] for number in sorted(splits)),
        sweep=tuple(replace(x, model=to[x.model]) for one, to in pairs for x in one.sweep),
        combined=tuple(
            CombinedRun(str(run.paths[0]), m.command, m.git_commit, m.started, m.finished)
            for (run, _), (m, _) in zip(named, pairs, strict=True)
        ),
    )


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
    one, two = first.manifest, other.manifest
    if one.data.labels != two.data.labels:
        labels = f"{', '.join(one.data.labels)} and {', '.join(two.data.labels)}"
        raise RunFolderError(f"{where}: their labels are {labels}")
    texts = {split.trial: _texts(split) for split in one.splits}
    differ = [x.trial for x in two.splits if texts.get(x.trial, _texts(x)) != _texts(x)]
    if not differ:
        return
    ours, theirs = flat(first.settings.dump()), flat(other.settings.dump())
    reasons = [
        f"{key} is {json_line(ours.get(key))} and {json_line(theirs.get(key))}"
        for key in dict.fromkeys((*ours, *theirs))
        if key.startswith(("data.", "seed")) and key != "data.path"
        if ours.get(key) != theirs.get(key)
    ]
    if one.data.sha256 != two.data.sha256:
        reasons.append("the data files differ")
    raise RunFolderError(
        f"{where}: trial {differ[0]} was tested on other texts\n{'; '.join(reasons[:4])}".strip()
    )
