"""Carry out a run: find which trials are pending, run them, and write the run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tgsent.backends.registry import backend_of
from tgsent.config import EngineConfig, RunConfig, TrialSpec
from tgsent.data.dataset import Dataset
from tgsent.errors import ConfigError, RunFolderError, UnavailableError
from tgsent.experiment.engine import Engine, EngineContext
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
from tgsent.terminal import without_secrets

Key = tuple[str, int]
"""Name of a model, and number of a trial."""

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


def run(
    config: RunConfig, dataset: Dataset, splits: Splits, context: RunContext = NO_CONTEXT
) -> Results:
    """Run every trial that is not finished yet; return the results.

    A trial that fails is recorded and does not stop the others. Raises as `prepare` does, and
    RunFolderError where another run is writing to the folder.
    """
    pending = prepare(config, dataset, splits, context)
    if not context.only:
        with pending.folder.locked():
            for spec, outcome in pending.begin():
                pending.record(spec, outcome)
            return pending.finish()
    # other processes begin, run other trials and end meanwhile
    with pending.folder.locked(wait_seconds=_PATIENCE):
        outcomes = pending.begin()
    for spec, outcome in outcomes:
        pending.record(spec, outcome)
    with pending.folder.locked(wait_seconds=-1):
        pending.add_others()
        return pending.finish()


def prepare(config: RunConfig, dataset: Dataset, splits: Splits, context: RunContext) -> PendingRun:
    """Check all that can be checked before the run folder is written, and fetch the models.

    Raises UnavailableError where something needed is not available, RunFolderError where the
    folder cannot take the run, ConfigError where there is no such trial.
    """
    specs = hub.with_hashes(config.trial_specs(dataset.labels), context.progress)
    chosen = _chosen(specs, context.only)
    pending = PendingRun(config, dataset, splits, context, specs, chosen)
    if not context.fresh:
        pending.read_finished()
    pending.commits = fetch_models(pending.unfinished, config.engine, context.progress)
    return pending


@dataclass
class PendingRun:
    """A run that was prepared. The caller locks the folder while `begin` and `finish` write."""

    config: RunConfig
    dataset: Dataset
    splits: Splits
    context: RunContext
    specs: Sequence[TrialSpec]
    """All trials of the config."""
    chosen: Sequence[TrialSpec]
    """Those to run."""
    commits: dict[str, str | None] = field(default_factory=dict)
    """Of the models that were fetched from the Hub, by name."""
    finished: dict[Key, TrialMetrics] = field(default_factory=dict)
    """Metrics by trial."""
    failed: dict[Key, str] = field(default_factory=dict)
    """Reasons by trial."""
    retried: list[Retry] = field(default_factory=list)
    _manifest: Manifest | None = None
    _next_table: float = 0.0

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.config.folder)

    @property
    def manifest(self) -> Manifest:
        """What is run, on what, where and when; known from `begin` on."""
        if self._manifest is None:
            raise RuntimeError("the run has not begun")
        return replace(self._manifest, retried=tuple(self.retried))

    @property
    def unfinished(self) -> list[TrialSpec]:
        """The trials to run that have no results yet."""
        return [spec for spec in self.chosen if (spec.name, spec.trial) not in self.finished]

    def begin(
        self, sweep: Sequence[SweepReport] = ()
    ) -> Iterator[tuple[TrialSpec, TrialMetrics | Failure]]:
        """Write config and manifest; return the outcomes of the pending trials as they complete.

        `sweep` describes for the manifest how the settings were chosen.
        """
        folder, line = self.folder, self.context.progress.line
        if self.context.fresh and (aside := folder.move_aside()):
            line(f"the old results are now in {aside}")
        self.read_finished()
        self._manifest = manifest.make(
            self.config, self.dataset, self.splits, self._commits(), self._weights(),
            self.context.command, sweep or _swept(folder, self.config),
        )  # fmt: skip
        for spec in self.specs:
            if (spec.name, spec.trial) in self.finished:
                folder.tidy(spec, finished=True)
        folder.write("config.yaml", self.config.to_yaml())
        folder.write_json("manifest.json", self.manifest.to_json())
        pending = self.unfinished
        if done := len(self.chosen) - len(pending):
            line(f"already finished: {done} of {len(self.chosen)} trials")
        if others := folder.other_trials(self.specs):
            line(f"not in this table, but kept in {folder.path}: {', '.join(others)}")
        engine = self.config.engine
        return _engine(engine.kind).run(
            pending,
            EngineContext(
                engine, self.splits, folder, self.manifest.data, self.context.progress, self._retry
            ),
        )

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
            self._manifest = replace(self.manifest, finished=manifest.now())
        folder.write_json("manifest.json", self.manifest.to_json())
        predictions = {key: folder.predictions(own) for key, own in self.finished.items()}
        result = self._write_results(predictions)
        found = stored.read(folder.path)
        folder.write("report.html", pages.html(result, found))
        folder.write("report.md", pages.markdown_page(result, found))
        return result

    def read_finished(self) -> None:
        """Read which trials are finished; raise RunFolderError for other results."""
        folder = self.folder
        check_same_settings(folder.path, self.config)
        check_same_data(folder.path, self.dataset.sha256)
        check_same_weights(folder.path, self.specs)
        summaries = self.splits.summaries
        found = {
            (spec.name, spec.trial): folder.finished(spec, summaries[spec.trial - 1])
            for spec in self.specs
        }
        self.finished = {key: own for key, own in found.items() if own is not None}

    def _retry(self, spec: TrialSpec, reason: str) -> None:
        """Report that a trial is run again, and note it in the manifest."""
        self.context.progress.line(
            f"{spec.title}: its process or machine died; it is run again ({reason})"
        )
        self.retried.append(Retry(f"{spec.name}:{spec.trial}", reason))

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

    def _weights(self) -> dict[str, str]:
        """Return the hash of every local model, of finished trials where the model is gone."""
        hashes = {name: own.weights_sha256 for (name, _), own in self.finished.items()}
        hashes |= {spec.name: spec.weights for spec in self.specs if spec.weights}
        return {name: sha256 for name, sha256 in hashes.items() if sha256}

    def _write_results(self, predictions: Mapping[Key, Sequence[Prediction]]) -> Results:
        """Write `results.json` and `results.csv` about the trials of the config."""
        config, numbers = self.config, range(1, self.config.trials + 1)
        done, failed = self.finished, self.failed
        trials = {
            name: {k: done[name, k] for k in numbers if (name, k) in done} for name in config.names
        }
        reasons = {
            name: {k: failed[name, k] for k in numbers if (name, k) in failed}
            for name in config.names
        }
        result = results.collect(config.name, trials, reasons, predictions, self.manifest)
        escape = config.output.escape_formulas
        self.folder.write_json("results.json", result.to_json())
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
    specs = {spec.name: spec for spec in pending}
    for spec in specs.values():
        if spec.training.package is not None:  # before gigabytes are downloaded
            backend_of(spec).check_installed(spec)
    commits: dict[str, str | None] = {}
    for name, spec in specs.items():
        commits[name] = None
        if spec.needs_files:
            weights_wanted = spec.training.init == "pretrained"
            commits[name] = hub.fetch(spec.model, weights=weights_wanted, progress=progress).commit
    for spec in specs.values():
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
