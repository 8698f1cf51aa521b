"""Sweeps: variants of each model are compared on validation texts, and the best alone is tested."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from tgsent.config import ModelConfig, RunConfig, SweepConfig, SweepRange
from tgsent.data.dataset import Dataset
from tgsent.data.splits import TrialSplits, ValidationSplits
from tgsent.errors import ConfigError, RunFolderError, TgsentError, UnavailableError
from tgsent.evaluation.significance import bootstrap
from tgsent.experiment import execute
from tgsent.experiment.execute import PendingRun, RunContext
from tgsent.records import Splits
from tgsent.report.results import Results
from tgsent.runs.checks import check_same_data, check_same_settings
from tgsent.runs.folder import RunFolder
from tgsent.runs.manifest import SweepReport, VariantSummary
from tgsent.runs.metrics import TrialMetrics

if TYPE_CHECKING:
    from optuna import Trial

FOLDER = "sweep"
"""Name of the folder of the variants in the run folder."""

Settings = Mapping[str, object]
"""The values that a variant changes, by dotted key."""

_MISSES = 1000
"""After so many draws without a new combination, none is assumed to be left."""

_LONGEST_NAME = 90  # of the 100 characters that a name may have


def run(config: RunConfig, dataset: Dataset, splits: TrialSplits, context: RunContext) -> Results:
    """Choose the settings of each model, and run the trials with them; return the results.

    The variants are trained on, and compared on, texts that are in no trial's test part, so that
    the choice does not depend on what the winners are tested on. They have run folders of their own
    in that of the run, from which a stopped sweep continues. Raises as `execute.run` does, before
    anything is trained where that can be known, and TgsentError where no variant of a model could
    be trained.
    """
    if context.only:
        raise ConfigError("--only: the trials of a sweep are known when it has ended; leave it out")
    if FOLDER in map(str.casefold, config.names):
        raise ConfigError(f'the name "{FOLDER}" is taken by the folder of the sweep; see `as`')
    assert config.sweep is not None  # noqa: S101  else there is nothing to do here
    counts, shares = rounds_of(config.sweep)
    rounds = ValidationSplits(splits, dataset.labels, config.sweep, shares)
    sweeps = {
        spec.name: _Sweep(config, config.sweep, model, dataset, counts, rounds, context)
        for spec, model in zip(config.trial_specs(())[:: config.trials], config.models, strict=True)
        if not spec.is_baseline  # which has no settings that could vary
    }
    for one in sweeps.values():
        one.prepare()
    folder = RunFolder(config.folder)
    with folder.locked():
        if not context.fresh:
            _check_folder(folder, config, dataset, sweeps, rounds)
        elif aside := folder.move_aside():
            context.progress.line(f"the old results are now in {aside}")
        found = {name: one.run() for name, one in sweeps.items()}
        winners = tuple(found[m.name][0] if m.name in found else m for m in config.models)
        chosen = config.model_copy(update={"models": winners, "sweep": None})
        pending = PendingRun(chosen, dataset, splits, replace(context, fresh=False))
        for spec, outcome in pending.begin([report for _, report in found.values()]):
            pending.record(spec, outcome)
        return pending.finish()


def _check_folder(
    folder: RunFolder, config: RunConfig, dataset: Dataset, names: Collection[str], rounds: Splits
) -> None:
    """Raise RunFolderError where the folder could not take the results of the sweep."""
    check_same_settings(folder.path, config.model_copy(update={"models": (), "sweep": None}))
    check_same_data(folder.path, dataset.sha256)
    texts = rounds.summaries[-1].sha256
    if any(one.model in names and one.split_sha256 != texts for one in folder.sweeps()):
        raise RunFolderError(
            f"{folder.path}: its settings were chosen by other validation texts: of another"
            " number of trials, or with other settings of the sweep\n"
            "--fresh moves the results aside; --set name=NAME starts another folder"
        )


def _optuna() -> ModuleType:
    try:
        optuna = import_module("optuna")
    except ImportError:
        raise UnavailableError(
            "sweep.method: tpe needs Optuna; install it with: pip install 'tgsent[tpe]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass
class _Variant:
    """A variant, and its metrics in each round."""

    model: ModelConfig
    settings: Settings
    metrics: list[TrialMetrics | None] = field(default_factory=list)
    """One for each round that it took part in; None where its training failed."""

    @property
    def score(self) -> tuple[int, float]:
        """Return the key to rank variants by: the number of rounds, then macro-F1."""
        last = self.metrics[-1] if self.metrics else None
        return len(self.metrics), last.macro_f1 if last else -1.0


@dataclass
class _Sweep:
    """The sweep of one model."""

    config: RunConfig
    sweep: SweepConfig
    model: ModelConfig
    dataset: Dataset
    counts: Sequence[int]
    """Number of variants that each round trains."""
    rounds: Splits
    context: RunContext
    tried: list[_Variant] = field(default_factory=list, init=False)

    def prepare(self) -> None:
        """List the variants, and check them before anything is trained.

        Optuna's variants are not known yet, so that only the model itself is checked.
        """
        if self.sweep.method == "tpe":
            _optuna()
            self._fetch(self.config)
            return
        for settings in listed(self.sweep):
            self.tried.append(self._variant(settings))
        self._fetch(self._run_config(self.tried))

    def run(self) -> tuple[ModelConfig, SweepReport]:
        """Train the variants; return the best under the model's name, and the report on all."""
        if self.sweep.method == "tpe":
            self._ask_optuna()
        else:
            for number, count in enumerate(self.counts):
                # stable: of two equal variants, the earlier one stays first
                ranked = sorted(self.tried, key=lambda variant: variant.score, reverse=True)
                self._train(ranked[:count], number)
        finalists = [
            last
            for variant in self.tried
            if len(variant.metrics) == len(self.counts) and (last := variant.metrics[-1])
        ]
        if not finalists:
            raise TgsentError(
                f"sweep of {self.model.name}: no variant could be trained to the end;"
                f" {self.config.folder / FOLDER / self.model.name / 'report.md'} says why"
            )
        best = max(finalists, key=lambda metrics: metrics.macro_f1)
        self.context.progress.line(
            f"{self.model.name}: the best of {len(self.tried)} variants on {best.n_test}"
            f" validation texts is {best.model}, macro-F1 {best.macro_f1:.4f}"
        )
        winner = next(variant for variant in self.tried if variant.model.name == best.model)
        model = winner.model.model_copy(update={"as_": self.model.name})
        return model, self._report(winner, best, finalists)

    def _ask_optuna(self) -> None:
        """Train one variant of Optuna after the other; report the score of each back.

        Equal scores give equal variants, which is how a stopped sweep continues.
        """
        optuna = _optuna()
        failed = optuna.trial.TrialState.FAIL
        sampler = optuna.samplers.TPESampler(seed=self.sweep.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(self.counts[0]):
            trial = study.ask()
            settings = {key: suggested(trial, key, of) for key, of in self.sweep.keys.items()}
            try:
                variant = self._variant(settings)
                self._fetch(self._run_config([variant]))
            except ConfigError as error:  # these settings do not go together: take another
                self.context.progress.line(str(error))
                study.tell(trial, state=failed)
                continue
            self.tried.append(variant)
            self._train([variant], 0)
            if metrics := variant.metrics[-1]:
                study.tell(trial, metrics.macro_f1)
            else:
                study.tell(trial, state=failed)

    def _variant(self, settings: Settings) -> _Variant:
        name = f"{self.model.name[:_LONGEST_NAME]}-{len(self.tried) + 1:03d}"
        return _Variant(self.config.variant(self.model, settings, name), settings)

    def _fetch(self, config: RunConfig) -> None:
        specs = config.trial_specs(self.dataset.labels)
        execute.fetch_models(specs, config.engine, self.context.progress)

    def _train(self, chosen: Sequence[_Variant], number: int) -> None:
        """Train some of the variants in one round, and store their metrics."""
        only = [f"{variant.model.name}:{number + 1}" for variant in chosen]
        context = replace(self.context, fresh=False, only=only)
        config = self._run_config(self.tried)
        results = execute.run(config, self.dataset, self.rounds, context)
        found = {(row.model, trial.trial): trial for row in results.models for trial in row.trials}
        for variant in chosen:
            variant.metrics.append(found.get((variant.model.name, number + 1)))

    def _run_config(self, tried: Sequence[_Variant]) -> RunConfig:
        """Return the config of the run that trains variants; its trials are the rounds."""
        place = {"dir": str(self.config.folder / FOLDER), "save_model": "none"}
        return self.config.model_copy(
            update={
                "name": self.model.name,
                "models": tuple(variant.model for variant in tried),
                "trials": len(self.counts),
                "output": self.config.output.model_copy(update=place),
                "sweep": None,
            }
        )

    def _report(
        self, winner: _Variant, best: TrialMetrics, finalists: Sequence[TrialMetrics]
    ) -> SweepReport:
        folder = RunFolder(self.config.folder / FOLDER / self.model.name)
        answers = {
            metrics.model: [(p.text, p.label, p.predicted) for p in folder.predictions(metrics)]
            for metrics in finalists
        }
        scores = {metrics.model: metrics.macro_f1 for metrics in finalists}
        return SweepReport(
            model=self.model.name,
            method=self.sweep.method,
            trials=self.config.trials,
            tried=len(self.tried),
            winner=best.model,
            settings=winner.settings,
            macro_f1=best.macro_f1,
            optimism=optimism(answers, scores, self.dataset.labels),
            finalists=len(finalists),
            n_validation=best.n_test,
            n_train=tuple(one.n_train for one in self.rounds.summaries),
            split_sha256=best.split_sha256,
            variants=tuple(
                VariantSummary(
                    one.model.name,
                    one.settings,
                    tuple(metrics.macro_f1 if metrics else None for metrics in one.metrics),
                )
                for one in self.tried
            ),
        )


def optimism(
    answers: Mapping[str, Sequence[tuple[str, str, str | None]]],
    scores: Mapping[str, float],
    labels: Sequence[str],
) -> float:
    """Estimate the selection bias of the best variant, in macro-F1; 0 for a single variant.

    In each draw of `bootstrap`, the best variant scores more than the same variant does on the
    actual texts. The mean difference is the bootstrap's estimate of the bias of the maximum
    (Efron & Tibshirani 1993, chapter 10).
    """
    if len(answers) < 2:
        return 0.0
    draws = bootstrap([answers], labels)
    table = np.stack([draws[name] for name in answers])  # (variants, draws)
    as_they_are = np.array([scores[name] for name in answers])
    return max(0.0, float(np.mean(table.max(axis=0) - as_they_are[table.argmax(axis=0)])))


def listed(sweep: SweepConfig) -> list[Settings]:
    """Return the variants of a grid, or those drawn at random, each once."""
    if sweep.method == "grid":
        values = [
            list(range(int(v.low), int(v.high) + 1)) if isinstance(v, SweepRange) else v
            for v in sweep.keys.values()
        ]
        return [dict(zip(sweep.keys, chosen, strict=True)) for chosen in itertools.product(*values)]
    rng = random.Random(sweep.seed)
    found: list[Settings] = []
    misses = 0
    while len(found) < (sweep.variants or 0) and misses < _MISSES:
        settings = {
            key: _draw(values, rng) if isinstance(values, SweepRange) else rng.choice(values)
            for key, values in sweep.keys.items()
        }
        misses = misses + 1 if settings in found else 0
        if not misses:
            found.append(settings)
    return found


def _draw(values: SweepRange, rng: random.Random) -> float:
    if values.is_whole and not values.log:
        return rng.randint(int(values.low), int(values.high))
    if not values.log:
        return rng.uniform(values.low, values.high)
    drawn = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return round(drawn) if values.is_whole else drawn


def suggested(trial: Trial, key: str, values: Sequence[object] | SweepRange) -> object:
    """Return the value that Optuna suggests."""
    if not isinstance(values, SweepRange):  # Optuna takes few types, so it draws an index
        return values[trial.suggest_categorical(key, range(len(values)))]
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def rounds_of(sweep: SweepConfig) -> tuple[list[int], list[float]]:
    """Return the number of variants in each round, and the share of the texts they train on.

    In successive halving, the last round, with at most `halving` variants, trains on all texts;
    each round before it on `halving` times fewer (Jamieson & Talwalkar 2016; the resource is the
    number of texts).
    """
    counts = [sweep.variants or 0 if sweep.method == "tpe" else len(listed(sweep))]
    halving = sweep.halving
    while halving and counts[-1] > halving:
        counts.append(math.ceil(counts[-1] / halving))
    last = len(counts) - 1
    return counts, [float(halving or 1) ** (number - last) for number in range(len(counts))]
