"""Carry out a run: find which trials are pending, run them, and write the run folder."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import platform
import subprocess
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from tgsent import __version__, environment, hub, interrupts, pages, report, results, runs
from tgsent.aliases import alias_of
from tgsent.config import RunConfig, TrialSpec
from tgsent.data import Dataset
from tgsent.errors import (
    ConfigError,
    StoppedError,
    StorageError,
    TgsentError,
    TrialError,
    UnavailableError,
)
from tgsent.records import Prediction, Progress, Split
from tgsent.redaction import without_secrets
from tgsent.store import RunFolder

_PATIENCE = 60.0
"""Seconds to wait for another process that is beginning or ending in the same folder."""

_PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface-hub", "accelerate", "scikit-learn",
    "pandas", "numpy",
)  # fmt: skip


def run(
    config: RunConfig,
    dataset: Dataset,
    splits: Sequence[Split],
    *,
    fresh: bool,
    command: Sequence[str],
    progress: Progress,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Run every trial that is not finished yet; returns the content of `results.json`.

    With `only`, trials named `MODEL:TRIAL`, these alone are run, and other processes may run others
    in the same folder at the same time. A trial that fails is recorded and does not stop the
    others. Raises UnavailableError where something needed cannot be had, RunFolderError where the
    folder cannot take the run, ConfigError where there is no such trial.
    """
    specs = config.trial_specs(dataset.labels)
    chosen = _chosen(specs, only)
    folder = RunFolder(config.folder)
    # what may be refused or missing is found out before anything is locked or written
    finished = {} if fresh else _finished(folder, config, specs, splits, dataset.sha256)
    fetched = _fetch_models([s for s in chosen if (s.name, s.trial) not in finished], progress)
    with contextlib.ExitStack() as held:
        held.enter_context(folder.locked(wait_seconds=_PATIENCE if only else 0))
        if fresh and (aside := folder.move_aside()):
            progress.line(f"the old results are now in {aside}")
        finished = _finished(folder, config, specs, splits, dataset.sha256)
        pending = [spec for spec in chosen if (spec.name, spec.trial) not in finished]
        commits = _commits(finished, fetched, progress)
        manifest = make_manifest(config, dataset, splits, commits, command)
        _begin(folder, config, specs, finished, manifest)
        if done := len(chosen) - len(pending):
            progress.line(f"already finished: {done} of {len(chosen)} trials")
        if others := folder.other_trials(specs):
            progress.line(f"not in this table, but kept in {folder.path}: {', '.join(others)}")
        if only:
            held.close()  # to let others begin
        failed = {}
        for spec, outcome in _attempts(pending, splits, folder, progress, manifest["data"]):
            if isinstance(outcome, str):
                failed[spec.name, spec.trial] = outcome
            else:
                finished[spec.name, spec.trial] = outcome
            if not only:
                so_far = _collect(config, finished, failed, manifest, {})
                _write_results(folder, config, so_far)
        if only:
            held.enter_context(folder.locked(wait_seconds=-1))
            finished = _finished(folder, config, specs, splits, dataset.sha256)
            failed = {**_failed_elsewhere(folder, finished), **failed}
        if len(finished) + len(failed) == len(specs):
            manifest["finished"] = _now()
        folder.write_json("manifest.json", manifest)
        predictions = {key: folder.predictions(*key) for key in finished}
        result = _collect(config, finished, failed, manifest, predictions)
        _write_results(folder, config, result)
        found = runs.read(folder.path)
        folder.write("report.html", pages.html(result, found))
        folder.write("report.md", pages.markdown_page(result, found))
    return result


def _begin(
    folder: RunFolder,
    config: RunConfig,
    specs: Sequence[TrialSpec],
    finished: dict[tuple[str, int], dict[str, Any]],
    manifest: dict[str, Any],
) -> None:
    """Put the folder in order, and say in it what is to be run."""
    for spec in specs:
        if (spec.name, spec.trial) in finished:
            folder.tidy(spec, finished=True)
    folder.write("config.yaml", config.to_yaml())
    folder.write_json("manifest.json", manifest)


def _attempts(
    pending: Sequence[TrialSpec],
    splits: Sequence[Split],
    folder: RunFolder,
    progress: Progress,
    data: dict[str, Any],
) -> Iterator[tuple[TrialSpec, dict[str, Any] | str]]:
    """Run trials one by one; give the metrics of each, or the reason why it failed."""
    if pending:
        from tgsent import memory

        gc.freeze()  # what the imports have made stays: no collection need look through it
    for spec in pending:
        if interrupts.requested():
            raise KeyboardInterrupt
        outcome = _attempt(spec, splits[spec.trial - 1], folder, progress, data)
        memory.release()  # what the trial's frames held, before the next one starts
        yield spec, outcome


def _chosen(specs: Sequence[TrialSpec], only: Sequence[str]) -> list[TrialSpec]:
    """Give the trials named `MODEL:TRIAL`, or all where none is named."""
    named = {f"{spec.name}:{spec.trial}": spec for spec in specs}
    for name in only:
        if name not in named:
            models = ", ".join(dict.fromkeys(spec.name for spec in specs))
            raise ConfigError(
                f'--only: there is no trial "{name}"; it takes MODEL:TRIAL, with a model of'
                f" {models} and a trial of 1 to {specs[-1].trial}"
            )
    return [named[name] for name in dict.fromkeys(only)] if only else list(specs)


def _failed_elsewhere(
    folder: RunFolder, finished: dict[tuple[str, int], dict[str, Any]]
) -> dict[tuple[str, int], str]:
    """Give the reasons of the trials that other processes saw fail."""
    return {
        (name, number): reason
        for name, own in runs.read(folder.path).failed.items()
        for number, reason in own.items()
        if (name, number) not in finished
    }


def _finished(
    folder: RunFolder,
    config: RunConfig,
    specs: Sequence[TrialSpec],
    splits: Sequence[Split],
    sha256: str,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Give the metrics of the trials that need not be run again."""
    folder.check_same_experiment(config)
    folder.check_same_data(sha256)
    metrics = {
        (spec.name, spec.trial): folder.finished(spec, splits[spec.trial - 1]) for spec in specs
    }
    return {key: value for key, value in metrics.items() if value is not None}


def _fetch_models(pending: Sequence[TrialSpec], progress: Progress) -> dict[str, str | None]:
    """Have the models yet to be run on this machine, and make sure that they fit the recipe.

    Gives their commits on the Hub.
    """
    pending = [spec for spec in pending if not spec.is_baseline]
    specs = {spec.name: spec for spec in pending}
    commits: dict[str, str | None] = {}
    if any(spec.training.backend == "simplet5" for spec in pending):
        environment.find()
    for name, spec in specs.items():
        snapshot = hub.fetch_for(spec, progress)
        commits[name] = snapshot.commit if snapshot else None

    if specs:
        from tgsent import models  # takes seconds: what is missing has been told before

        for spec in specs.values():
            models.check(spec)
    return commits


def _commits(
    finished: dict[tuple[str, int], dict[str, Any]],
    fetched: dict[str, str | None],
    progress: Progress,
) -> dict[str, str | None]:
    """Give every model's commit on the Hub; tell where the trials of one are not of one commit."""
    commits = {name: metrics.get("commit") for (name, _), metrics in finished.items()}
    for name, commit in fetched.items():
        if (before := commits.get(name, commit)) != commit:
            progress.line(
                f"{name}: its finished trials used commit {before}, the others will use {commit};"
                " MODEL@COMMIT pins one"
            )
    return {**commits, **fetched}


def _attempt(
    spec: TrialSpec, split: Split, folder: RunFolder, progress: Progress, data: dict[str, Any]
) -> dict[str, Any] | str:
    """Run one trial, unless another process has; give its metrics, or the reason why it failed.

    Raises what ends the whole run.
    """
    with folder.trial_locked(spec):
        if metrics := folder.finished(spec, split):
            return metrics
        folder.tidy(spec, finished=False)
        return _run_and_write(spec, split, folder, progress, data)


def _run_and_write(
    spec: TrialSpec, split: Split, folder: RunFolder, progress: Progress, data: dict[str, Any]
) -> dict[str, Any] | str:
    from tgsent import model_card
    from tgsent.trial import run_trial

    try:
        with folder.model_folder(spec) as save_to:
            result = run_trial(
                spec,
                split,
                progress,
                save_to=save_to,
                checkpoints_in=folder.checkpoint_folder(spec),
                track_in=folder.tracker_folder(spec),
            )
            if save_to is not None:
                model_card.write(save_to, spec, split, result.metrics, data)
    except (UnavailableError, StorageError, StoppedError):  # the other trials would fare no better
        raise
    except TgsentError as error:
        reason = str(error).removeprefix(f"{spec.title}: ")
        details = error.details if isinstance(error, TrialError) else ""
    except Exception as error:  # noqa: BLE001  one trial's failure must not cost the others
        reason = f"{type(error).__name__}: {error}"
        details = traceback.format_exc()
    else:
        folder.write_trial(spec, result)
        progress.line(f"{spec.title}: macro-F1 {result.metrics['macro_f1']:.4f}")
        return result.metrics
    if details:
        folder.write(f"{spec.name}/trial-{spec.trial}/error.txt", without_secrets(details))
    progress.line(f"{spec.title}: failed: {reason}")
    return without_secrets(reason)


def _collect(
    config: RunConfig,
    finished: dict[tuple[str, int], dict[str, Any]],
    failed: dict[tuple[str, int], str],
    manifest: dict[str, Any],
    predictions: dict[tuple[str, int], list[Prediction]],
) -> dict[str, Any]:
    """Give the content of `results.json` for the trials that this run is about."""
    numbers = range(1, config.trials + 1)
    trials = {
        name: {k: finished[name, k] for k in numbers if (name, k) in finished}
        for name in config.names
    }
    reasons = {
        name: {k: failed[name, k] for k in numbers if (name, k) in failed} for name in config.names
    }
    return results.collect(config.name, trials, reasons, predictions, manifest)


def _article(config: RunConfig, dataset: Dataset) -> dict[str, Any] | None:
    """Give the published numbers of the models that are the article's, on the article's data."""
    if not dataset.is_sentiment140:
        return None
    numbers = {}
    for spec in _first_specs(config, dataset):
        alias = alias_of(spec.model)
        if spec.training.init == "pretrained" and alias in report.ARTICLE_MACRO_F1:
            numbers[spec.name] = report.ARTICLE_MACRO_F1[alias]
    return {"mean_macro_f1": numbers, "sample_size": 10_000, "trials": 3} if numbers else None


def _first_specs(config: RunConfig, dataset: Dataset) -> list[TrialSpec]:
    return [spec for spec in config.trial_specs(dataset.labels) if spec.trial == 1]


def _write_results(folder: RunFolder, config: RunConfig, result: dict[str, Any]) -> None:
    escape = config.output.escape_formulas
    folder.write_json("results.json", result)
    folder.write("results.csv", report.results_csv(result, escape_formulas=escape))


def make_manifest(
    config: RunConfig,
    dataset: Dataset,
    splits: Sequence[Split],
    commits: dict[str, str | None],
    command: Sequence[str],
) -> dict[str, Any]:
    """Say what was run, on what, where and when."""
    from tgsent.finetune.loop import resolve_device

    return {
        "tgsent": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
        "device": resolve_device(config.training.device),
        "command": list(map(without_secrets, command)),
        "git_commit": _git_commit(),
        "models": [
            {"name": name, "model": model.model, "commit": commits.get(name)}
            for name, model in zip(config.names, config.models, strict=True)
        ],
        "data": {
            "path": config.data.path,
            "source": dataset.source,
            "sha256": dataset.sha256,
            "rows": dataset.rows,
            "duplicates": dataset.duplicates,
            "dropped": dataset.dropped,
            "sampled": len(dataset.frame),
            "labels": list(dataset.labels),
        },
        "splits": [
            {
                "trial": split.trial,
                "seed": split.seed,
                "sha256": split.sha256,
                "n_train": len(split.train),
                "n_test": len(split.test),
                "overlap": split.overlap,
                "extra_sha256": split.extra_sha256,
            }
            for split in splits
        ],
        "article": _article(config, dataset),
        "started": _now(),
        "finished": None,
    }


def _git_commit() -> str | None:
    """Give the commit of the working folder, where it is in a git repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607  found on PATH, as the user's own git is
            capture_output=True, text=True, check=True, timeout=5,
        ).stdout.strip()  # fmt: skip
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
