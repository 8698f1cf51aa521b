"""Carry out a run: find which trials are pending, run them, and write the run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar

from tgsent.backends.registry import backend_of
from tgsent.config import EngineConfig, RunConfig, TrialSpec
from tgsent.data.dataset import Dataset
from tgsent.errors import ConfigError, RunFolderError, UnavailableError
from tgsent.files import to_json
from tgsent.modeling import hub
from tgsent.progress import Quiet
from tgsent.records import Failure, Prediction, Progress, Splits
from tgsent.report import pages, results, tables
from tgsent.report.results import Results
from tgsent.runs import manifest, stored
from tgsent.runs.checks import check_same_data, check_same_settings, check_same_weights
from tgsent.runs.folder import RunFolder
from tgsent.runs.manifest import Manifest, Retry, SweepReport
from tgsent.runs.metrics import TrialMetrics
from tgsent.runs.stored import Key
from tgsent.terminal import without_secrets

_T = TypeVar("_T")

Ended = tuple[TrialSpec, TrialMetrics | Failure]
"""A trial that was run, with its metrics or why it failed."""

_PATIENCE = 60.0
"""Seconds to wait for another process that starts or finishes a run in the same folder."""

_SHARE = 0.05
"""Largest share of a run's time that writing the table so far may take."""


@dataclass(frozen=True)
class RunContext:
    """How a run was started; no score depends on it."""

    command: Sequence[str] = ("tgsent",)
    """For the manifest."""
    progress: Progress = field(default_factory=Quiet)
    fresh: bool = False
    """Move old results aside and start over."""
    only: Sequence[str] = ()
    """Trials to run, as `MODEL:TRIAL`, while other processes may run others; empty: all."""


NO_CONTEXT = RunContext()


class Engine(Protocol):
    """Runs trials and writes their files in the run folder."""

    def run(self, run: PendingRun) -> Iterator[Ended]:
        """Yield each unfinished trial of a run when its files are written.

        Raises what ends the whole run.
        """
        ...


def run(
    config: RunConfig, dataset: Dataset, splits: Splits, context: RunContext = NO_CONTEXT
) -> Results:
    """Run every trial that is not finished yet; return the results.

    A trial that fails is recorded and does not stop the others. Raises as `PendingRun` does, and
    RunFolderError where another run is writing to the folder.
    """
    pending = PendingRun(config, dataset, splits, context)
    with contextlib.ExitStack() as lock:
        lock.enter_context(pending.folder.locked(wait_seconds=_PATIENCE if context.only else 0))
        outcomes = pending.begin()
        if context.only:  # other processes begin, run other trials and end meanwhile
            lock.close()
        for spec, outcome in outcomes:
            pending.record(spec, outcome)
        if context.only:
            lock.enter_context(pending.folder.locked(wait_seconds=-1))
            pending.add_others()
        return pending.finish()


class PendingRun:
    """A run that was prepared. The caller locks the folder while `begin` and `finish` write."""

    manifest: Manifest
    """What is run, on what, where and when; known from `begin` on."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, splits: Splits, context: RunContext
    ) -> None:
        """Check all that can be checked before the run folder is written, and fetch the models.

        Raises UnavailableError where something needed is not available, RunFolderError where the
        folder cannot take the run, ConfigError where there is no such trial.
        """
        self.config, self.dataset, self.splits, self.context = config, dataset, splits, context
        self.folder = RunFolder(config.folder)
        self.specs = hub.with_hashes(config.trial_specs(dataset.labels), context.progress)
        self.chosen = _chosen(self.specs, context.only)
        self.finished: dict[Key, TrialMetrics] = {}
        self.failed: dict[Key, str] = {}
        self._next_table = 0.0
        if not context.fresh:
            self.read_finished()
        self.commits = fetch_models(self.unfinished, config.engine, context.progress)

    @property
    def unfinished(self) -> list[TrialSpec]:
        """The trials to run that have no results yet."""
        return [spec for spec in self.chosen if (spec.name, spec.trial) not in self.finished]

    def read_finished(self) -> None:
        """Read which trials are finished; raise RunFolderError for other results."""
        folder, summaries = self.folder, self.splits.summaries
        check_same_settings(folder.path, self.config)
        check_same_data(folder.path, self.dataset.sha256)
        check_same_weights(folder.path, self.specs)
        self.finished = {
            (spec.name, spec.trial): metrics
            for spec in self.specs
            if (metrics := folder.finished(spec, summaries[spec.trial - 1]))
        }

    def begin(self, sweep: Sequence[SweepReport] = ()) -> Iterator[Ended]:
        """Write config and manifest; return the outcomes of the pending trials as they complete.

        `sweep` describes for the manifest how the settings were chosen.
        """
        folder, progress = self.folder, self.context.progress
        if self.context.fresh and (aside := folder.move_aside()):
            progress.line(f"the old results are now in {aside}")
        self.read_finished()
        # a local model may be gone when all of its trials are finished
        hashes = {name: own.weights_sha256 for (name, _), own in self.finished.items()}
        hashes |= {spec.name: spec.weights for spec in self.specs if spec.weights}
        self.manifest = manifest.make(
            self.config, self.dataset, self.splits, self._commits(), hashes,
            self.context.command, sweep or _swept(folder, self.config),
        )  # fmt: skip
        for spec in self.specs:
            if (spec.name, spec.trial) in self.finished:
                folder.tidy(spec, finished=True)
        folder.write("config.yaml", self.config.to_yaml())
        folder.write("manifest.json", to_json(self.manifest.to_json()))
        if done := len(self.chosen) - len(self.unfinished):
            progress.line(f"already finished: {done} of {len(self.chosen)} trials")
        if others := folder.other_trials(self.specs):
            progress.line(f"not in this table, but kept in {folder.path}: {', '.join(others)}")
        return _engine(self.config.engine.kind).run(self)

    def record(self, spec: TrialSpec, outcome: TrialMetrics | Failure) -> None:
        """Keep the outcome of a trial; write the table so far if it is due."""
        if isinstance(outcome, TrialMetrics):
            self.finished[spec.name, spec.trial] = outcome
        else:
            self.failed[spec.name, spec.trial] = without_secrets(outcome.reason)
        if not self.context.only and (started := time.monotonic()) >= self._next_table:
            self._write_results({})
            self._next_table = time.monotonic() + (time.monotonic() - started) / _SHARE

    def add_others(self) -> None:
        """Add the outcomes of the trials that other processes ran meanwhile."""
        self.read_finished()
        for name, reasons in stored.read(self.folder.path).failed.items():
            for trial, reason in reasons.items():
                if (name, trial) not in self.finished:
                    self.failed.setdefault((name, trial), reason)

    def finish(self) -> Results:
        """Write manifest, results and reports; return the results."""
        folder = self.folder
        if len(self.finished) + len(self.failed) == len(self.specs):
            self.manifest = replace(self.manifest, finished=manifest.now())
        folder.write("manifest.json", to_json(self.manifest.to_json()))
        predictions = {key: folder.predictions(own) for key, own in self.finished.items()}
        result = self._write_results(predictions)
        found = stored.read(folder.path)
        folder.write("report.html", pages.html(result, found))
        folder.write("report.md", pages.markdown_page(result, found))
        return result

    def retry(self, spec: TrialSpec, reason: str) -> None:
        """Report that a trial is run again, and note it in the manifest."""
        self.context.progress.line(
            f"{spec.title}: its process or machine died; it is run again ({reason})"
        )
        retry = Retry(f"{spec.name}:{spec.trial}", reason)
        self.manifest = replace(self.manifest, retried=(*self.manifest.retried, retry))

    def _commits(self) -> dict[str, str | None]:
        """Return every model's commit; report where the trials of a model differ in it."""
        before = {name: own.commit for (name, _), own in self.finished.items()}
        for name, commit in self.commits.items():
            if (other := before.get(name, commit)) != commit:
                self.context.progress.line(
                    f"{name}: its finished trials used commit {other}, the others will use"
                    f" {commit}; MODEL@COMMIT pins one"
                )
        return {**before, **self.commits}

    def _write_results(self, predictions: Mapping[Key, Sequence[Prediction]]) -> Results:
        """Write `results.json` and `results.csv` about the trials of the config."""
        config, numbers = self.config, range(1, self.config.trials + 1)

        def by_model(found: Mapping[Key, _T]) -> dict[str, dict[int, _T]]:
            return {
                name: {k: found[name, k] for k in numbers if (name, k) in found}
                for name in config.names
            }

        trials, failed = by_model(self.finished), by_model(self.failed)
        result = results.collect(config.name, trials, failed, predictions, self.manifest)
        escape = config.output.escape_formulas
        self.folder.write("results.json", to_json(result.to_json()))
        self.folder.write("results.csv", tables.results_csv(result, escape_formulas=escape))
        return result


def _engine(kind: Literal["local", "ray"]) -> Engine:
    # imported here: torch takes seconds, and a missing model is reported before
    if kind == "ray":
        from tgsent.experiment.ray_engine import RayEngine

        return RayEngine()
    from tgsent.experiment.local_engine import LocalEngine

    return LocalEngine()


def fetch_models(
    pending: Sequence[TrialSpec], engine: EngineConfig, progress: Progress
) -> dict[str, str | None]:
    """Fetch the models of these trials, and check that they can be trained as their settings say.

    Return their commits on the Hub, by name.
    """
    specs = {spec.name: spec for spec in pending}.values()
    for spec in specs:
        if spec.training.package is not None:  # before gigabytes are downloaded
            backend_of(spec).check_installed(spec)
    commits: dict[str, str | None] = {}
    for spec in specs:
        commits[spec.name] = None
        if spec.needs_files:
            weights = spec.training.init == "pretrained"
            commits[spec.name] = hub.fetch(spec.model, weights=weights, progress=progress).commit
    for spec in specs:
        backend_of(spec).check_installed(spec)
        for note in backend_of(spec).check(spec, here=engine.kind == "local"):
            progress.line(note)
    return commits


def missing_models(config: RunConfig) -> Iterator[UnavailableError]:
    """Yield an error for every model that is not available, to be reported with missing data."""
    for spec in config.trial_specs(())[:: config.trials]:
        if spec.needs_files:
            try:
                hub.fetch(spec.model, weights=False)
            except UnavailableError as error:
                yield error


def _chosen(specs: Sequence[TrialSpec], only: Sequence[str]) -> list[TrialSpec]:
    """Return the trials named `MODEL:TRIAL`, or all where none is named."""
    named = {f"{spec.name}:{spec.trial}": spec for spec in specs}
    for name in only:
        if name not in named:
            models = ", ".join(dict.fromkeys(spec.name for spec in specs))
            raise ConfigError(
                f'--only: there is no trial "{name}"; it takes MODEL:TRIAL, with a model of'
                f" {models} and a trial of 1 to {specs[-1].trial}"
            )
    return [named[name] for name in dict.fromkeys(only)] if only else list(specs)


def _swept(folder: RunFolder, config: RunConfig) -> list[SweepReport]:
    """Return how an earlier sweep in the folder chose the settings of these models.

    Raises RunFolderError for trials that may test the texts that the settings were chosen on.
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
