"""Carry out a run: find which trials are pending, run them, and write the run folder."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tgsent import files
from tgsent.backends import checks
from tgsent.backends.simplet5 import environment
from tgsent.config import EngineConfig, RunConfig, TrialSpec
from tgsent.data.dataset import Dataset
from tgsent.errors import ConfigError, RunFolderError
from tgsent.modeling import hub, weights
from tgsent.records import Failure, Prediction, Progress, Split, Splits
from tgsent.report import pages, results, tables
from tgsent.report.results import Results
from tgsent.runs import manifest, stored
from tgsent.runs.checks import check_same_data, check_same_settings, check_same_weights
from tgsent.runs.folder import RunFolder
from tgsent.runs.manifest import DataSummary, Manifest, Retry, SweepReport
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.terminal import without_secrets
from tgsent.training import distributed, interrupts

_PATIENCE = 60.0
"""Seconds to wait for another process that is beginning or ending in the same folder."""

_SHARE = 0.05
"""Most of a run's time that writing the table so far may take."""


def run(
    config: RunConfig,
    dataset: Dataset,
    splits: Splits,
    *,
    fresh: bool,
    command: Sequence[str],
    progress: Progress,
    only: Sequence[str] = (),
    sweep: Sequence[SweepReport] = (),
    has_lock: bool = False,
) -> Results:
    """Run every trial that is not finished yet, and return the results.

    With `only`, trials named `MODEL:TRIAL`, these alone are run, and other processes may run others
    in the same folder at the same time. A trial that fails is recorded and does not stop the
    others. `sweep` says how the settings were chosen, for the manifest; `has_lock`, that whoever
    calls this has locked the folder. Raises UnavailableError where something needed is not
    available, RunFolderError where the folder cannot take the run, ConfigError where there is no
    such trial.
    """
    specs = weights.recorded(config.trial_specs(dataset.labels), progress)
    chosen = _chosen(specs, only)
    folder = RunFolder(config.folder)
    # what may be refused or missing is found out before anything is locked or written
    finished = {} if fresh else _finished(folder, config, specs, splits, dataset.sha256)
    to_run = [spec for spec in chosen if (spec.name, spec.trial) not in finished]
    fetched = _fetch_models(to_run, config.engine, progress)
    with contextlib.ExitStack() as held:
        if not has_lock:
            held.enter_context(folder.locked(wait_seconds=_PATIENCE if only else 0))
        if fresh and (aside := folder.move_aside()):
            progress.line(f"the old results are now in {aside}")
        finished = _finished(folder, config, specs, splits, dataset.sha256)
        pending = [spec for spec in chosen if (spec.name, spec.trial) not in finished]
        commits = _commits(finished, fetched, progress)
        hashes, swept = _weights(finished, specs), sweep or _swept(folder, config)
        about = manifest.make(config, dataset, splits, commits, hashes, command, swept)
        _begin(folder, config, specs, finished, about)
        if done := len(chosen) - len(pending):
            progress.line(f"already finished: {done} of {len(chosen)} trials")
        if others := folder.other_trials(specs):
            progress.line(f"not in this table, but kept in {folder.path}: {', '.join(others)}")
        if only:
            held.close()  # to let others begin
        failed: dict[tuple[str, int], str] = {}
        next_table = 0.0
        retried: list[Retry] = []
        for spec, outcome in _attempts(
            pending, splits, config.engine, folder, about.data, retried, progress
        ):
            about = replace(about, retried=tuple(retried))
            where: dict[tuple[str, int], Any] = failed if isinstance(outcome, str) else finished
            where[spec.name, spec.trial] = outcome
            if not only and (started := time.monotonic()) >= next_table:
                so_far = _collect(config, finished, failed, about, {})
                _write_results(folder, config, so_far)
                next_table = time.monotonic() + (time.monotonic() - started) / _SHARE
        if only:
            held.enter_context(folder.locked(wait_seconds=-1))
            finished = _finished(folder, config, specs, splits, dataset.sha256)
            failed = {**_failed_elsewhere(folder, finished), **failed}
        if len(finished) + len(failed) == len(specs):
            about = replace(about, finished=manifest.now())
        return _finish(folder, config, finished, failed, about)


def _begin(
    folder: RunFolder,
    config: RunConfig,
    specs: Sequence[TrialSpec],
    finished: dict[tuple[str, int], TrialMetrics],
    about: Manifest,
) -> None:
    """Put the folder in order, and say in it what is to be run."""
    for spec in specs:
        if (spec.name, spec.trial) in finished:
            folder.tidy(spec, finished=True)
    folder.write("config.yaml", config.to_yaml())
    folder.write_json("manifest.json", about.to_json())


def _finish(
    folder: RunFolder,
    config: RunConfig,
    finished: dict[tuple[str, int], TrialMetrics],
    failed: dict[tuple[str, int], str],
    about: Manifest,
) -> Results:
    """Write manifest, results and reports; return the results."""
    folder.write_json("manifest.json", about.to_json())
    predictions = {key: folder.predictions(metrics) for key, metrics in finished.items()}
    result = _collect(config, finished, failed, about, predictions)
    _write_results(folder, config, result)
    found = stored.read(folder.path)
    folder.write("report.html", pages.html(result, found))
    folder.write("report.md", pages.markdown_page(result, found))
    return result


def _attempts(
    pending: Sequence[TrialSpec],
    splits: Splits,
    engine: EngineConfig,
    folder: RunFolder,
    data: DataSummary,
    retried: list[Retry],
    progress: Progress,
) -> Iterator[tuple[TrialSpec, TrialMetrics | str]]:
    """Run trials and write what they give; give the metrics of each, or the reason why it failed.

    Raises what ends the whole run. Trials that had to be run again are added to `retried`.
    """
    if pending and engine.kind == "ray":
        yield from _on_ray(pending, splits, engine, folder, data, retried, progress)
        return
    from tgsent.training import memory

    gc.freeze()  # what the imports have made stays: no collection need look through it
    for spec in pending:
        if interrupts.requested():
            raise KeyboardInterrupt
        with folder.trial_locked(spec):
            split = splits[spec.trial - 1]
            metrics = folder.finished(spec, split.summary)  # by another process
            yield (
                spec,
                metrics or _attempt(spec, split, engine.cpus_per_trial, folder, data, progress),
            )
        memory.release()  # what the trial's frames held, before the next one starts


def follow(config: RunConfig, progress: Progress) -> None:
    """Do this process's share of every trial that the main process runs, until it has no more."""
    from tgsent.experiment.attempt import attempt

    nothing: tuple[TrialSpec, Split] | None = None
    while (work := distributed.broadcast(nothing)) is not None:
        spec, split = work
        attempt(
            spec,
            split,
            progress,
            data=None,
            cpus=config.engine.cpus_per_trial,
            save_to=None,
            checkpoints_in=None,
            track_in=None,
        )


def _on_ray(
    pending: Sequence[TrialSpec],
    splits: Splits,
    engine: EngineConfig,
    folder: RunFolder,
    data: DataSummary,
    retried: list[Retry],
    progress: Progress,
) -> Iterator[tuple[TrialSpec, TrialMetrics | str]]:
    """Run trials on a cluster, and write here what they give."""
    from tgsent.experiment import ray_engine

    def died(spec: TrialSpec, reason: str) -> None:
        progress.line(f"{spec.title}: its process or machine died; it is run again ({reason})")
        retried.append(Retry(f"{spec.name}:{spec.trial}", reason))

    for spec, outcome, found in ray_engine.attempts(pending, splits, engine, data, progress, died):
        try:
            with folder.trial_locked(spec):
                kept = _keep(spec, outcome, found, folder, progress)
        except RunFolderError as error:  # another process is at it, and will write it
            kept = str(error)
        yield spec, kept


def _attempt(
    spec: TrialSpec,
    split: Split,
    cpus: int | None,
    folder: RunFolder,
    data: DataSummary,
    progress: Progress,
) -> TrialMetrics | str:
    """Run one trial in this process."""
    from tgsent.experiment.attempt import attempt

    folder.tidy(spec, finished=False)
    together = spec.is_in_our_loop
    with folder.model_folder(spec) as save_to:
        with distributed.working_on((spec, split)) if together else contextlib.nullcontext():
            outcome = attempt(
                spec,
                split,
                progress,
                data=data,
                cpus=cpus,
                save_to=save_to,
                checkpoints_in=folder.checkpoint_folder(spec),
                track_in=folder.tracker_folder(spec),
            )
        return _write(spec, outcome, save_to, folder, progress)


def _keep(
    spec: TrialSpec,
    outcome: TrialResult | Failure,
    found: dict[str, bytes],
    folder: RunFolder,
    progress: Progress,
) -> TrialMetrics | str:
    """Write what a trial gave that was run elsewhere, with the files of model and trackers."""
    with folder.model_folder(spec) as save_to:
        places = {"model": save_to, "trackers": folder.tracker_folder(spec)}
        for name, content in found.items():
            kind, _, inside = name.partition("/")
            if place := places[kind]:
                file = place / inside
                with files.storage_errors(file, len(content)):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
        return _write(spec, outcome, save_to, folder, progress)


def _write(
    spec: TrialSpec,
    outcome: TrialResult | Failure,
    model: Path | None,
    folder: RunFolder,
    progress: Progress,
) -> TrialMetrics | str:
    """Write the files of a trial; give its metrics, or the reason why it failed."""
    if isinstance(outcome, TrialResult):
        folder.write_trial(spec, outcome, model)
        progress.line(f"{spec.title}: macro-F1 {outcome.metrics.macro_f1:.4f}")
        return outcome.metrics
    if outcome.details:
        name = f"{spec.name}/trial-{spec.trial}/error.txt"
        folder.write(name, without_secrets(outcome.details))
    progress.line(f"{spec.title}: failed: {outcome.reason}")
    return without_secrets(outcome.reason)


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
    folder: RunFolder, finished: dict[tuple[str, int], TrialMetrics]
) -> dict[tuple[str, int], str]:
    """Give the reasons of the trials that other processes saw fail."""
    return {
        (name, number): reason
        for name, own in stored.read(folder.path).failed.items()
        for number, reason in own.items()
        if (name, number) not in finished
    }


def _finished(
    folder: RunFolder,
    config: RunConfig,
    specs: Sequence[TrialSpec],
    splits: Splits,
    sha256: str,
) -> dict[tuple[str, int], TrialMetrics]:
    """Give the metrics of the trials that need not be run again."""
    check_same_settings(folder.path, config)
    check_same_data(folder.path, sha256)
    check_same_weights(folder.path, specs)
    metrics = {
        (spec.name, spec.trial): folder.finished(spec, splits.summaries[spec.trial - 1])
        for spec in specs
    }
    return {key: value for key, value in metrics.items() if value is not None}


def _swept(folder: RunFolder, config: RunConfig) -> list[SweepReport]:
    """Return what an earlier sweep recorded of how these models' settings were chosen.

    Raises RunFolderError for trials that may test the texts by which they were.
    """
    found = [one for one in folder.sweeps() if one.model in config.names]
    for one in found:
        if config.trials > one.trials:
            raise RunFolderError(
                f"{folder.path}: the settings of {one.model} were chosen by texts that trials 1"
                f" to {one.trials} do not test, and others may; --trials {one.trials}, or"
                " sweep anew with --fresh"
            )
    return found


def fetch_models(config: RunConfig, dataset: Dataset, progress: Progress) -> None:
    """Have the models of a config on this machine; raises what is wrong or missing."""
    _fetch_models(config.trial_specs(dataset.labels), config.engine, progress)


def _fetch_models(
    pending: Sequence[TrialSpec], engine: EngineConfig, progress: Progress
) -> dict[str, str | None]:
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
        for spec in specs.values():
            for note in checks.check(spec, here=engine.kind == "local"):
                progress.line(note)
    return commits


def _commits(
    finished: dict[tuple[str, int], TrialMetrics],
    fetched: dict[str, str | None],
    progress: Progress,
) -> dict[str, str | None]:
    """Give every model's commit on the Hub; tell where the trials of one are not of one commit."""
    commits = {name: metrics.commit for (name, _), metrics in finished.items()}
    for name, commit in fetched.items():
        if (before := commits.get(name, commit)) != commit:
            progress.line(
                f"{name}: its finished trials used commit {before}, the others will use {commit};"
                " MODEL@COMMIT pins one"
            )
    return {**commits, **fetched}


def _weights(
    finished: dict[tuple[str, int], TrialMetrics], specs: Sequence[TrialSpec]
) -> dict[str, str]:
    """Return the hash of every local model, taken from finished trials where the model is gone."""
    hashes = {name: metrics.weights_sha256 for (name, _), metrics in finished.items()}
    hashes |= {spec.name: spec.weights for spec in specs if spec.weights}
    return {name: sha256 for name, sha256 in hashes.items() if sha256}


def _collect(
    config: RunConfig,
    finished: dict[tuple[str, int], TrialMetrics],
    failed: dict[tuple[str, int], str],
    about: Manifest,
    predictions: dict[tuple[str, int], list[Prediction]],
) -> Results:
    """Return the results of the trials that this run is about."""
    numbers = range(1, config.trials + 1)
    trials = {
        name: {k: finished[name, k] for k in numbers if (name, k) in finished}
        for name in config.names
    }
    reasons = {
        name: {k: failed[name, k] for k in numbers if (name, k) in failed} for name in config.names
    }
    return results.collect(config.name, trials, reasons, predictions, about)


def _write_results(folder: RunFolder, config: RunConfig, result: Results) -> None:
    escape = config.output.escape_formulas
    folder.write_json("results.json", result.to_json())
    folder.write("results.csv", tables.results_csv(result, escape_formulas=escape))
