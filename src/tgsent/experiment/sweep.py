"""Sweeps: variants of each model are compared on validation texts, and the best alone is tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType

import numpy as np

from tgsent.backends.registry import backend_of
from tgsent.config import ModelConfig, RunConfig, SweepConfig
from tgsent.data.dataset import Dataset
from tgsent.data.splits import TrialSplits, ValidationSplits
from tgsent.errors import ConfigError, RunFolderError, TgsentError, UnavailableError
from tgsent.evaluation.significance import bootstrap
from tgsent.experiment import execute, variants
from tgsent.experiment.execute import RunContext
from tgsent.experiment.variants import Settings
from tgsent.records import Splits
from tgsent.report.results import Results
from tgsent.runs.checks import check_same_data, check_same_settings
from tgsent.runs.folder import RunFolder
from tgsent.runs.manifest import SweepReport, VariantSummary
from tgsent.runs.metrics import TrialMetrics

FOLDER = "sweep"
"""Name of the folder of the variants in the run folder."""

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
    specs = {spec.name: spec for spec in config.trial_specs(())}
    sweeps = {
        name: _Sweep(config, model, name, dataset, splits, context)
        for name, model in zip(config.names, config.models, strict=True)
        if backend_of(specs[name]).settings(specs[name])  # a baseline has none that could vary
    }
    for one in sweeps.values():
        one.prepare()
    folder = RunFolder(config.folder)
    with folder.locked():
        if not context.fresh:
            _check_folder(folder, config, dataset, sweeps)
        elif aside := folder.move_aside():
            context.progress.line(f"the old results are now in {aside}")
        found = {name: one.run() for name, one in sweeps.items()}
        winners = tuple(
            found[name].winner.model.model_copy(update={"as_": name}) if name in found else model
            for name, model in zip(config.names, config.models, strict=True)
        )
        chosen = config.model_copy(update={"models": winners, "sweep": None})
        pending = execute.prepare(chosen, dataset, splits, replace(context, fresh=False))
        for spec, outcome in pending.begin([one.report for one in found.values()]):
            pending.record(spec, outcome)
        return pending.finish()


def _check_folder(
    folder: RunFolder, config: RunConfig, dataset: Dataset, sweeps: Mapping[str, _Sweep]
) -> None:
    """Raise RunFolderError where the folder could not take the results of the sweep."""
    check_same_settings(folder.path, config.model_copy(update={"models": (), "sweep": None}))
    check_same_data(folder.path, dataset.sha256)
    for before in folder.sweeps():
        one = sweeps.get(before.model)
        if one and one.split_sha256 != before.split_sha256:
            raise RunFolderError(
                f"{folder.path}: its settings were chosen by other validation texts: of another"
                " number of trials, or with other settings of the sweep\n"
                "--fresh moves the results aside; --set name=NAME starts another folder"
            )


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise UnavailableError(
            "sweep.method: tpe needs Optuna; install it with: pip install 'tgsent[tpe]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: ModuleType = optuna
    return found


@dataclass
class _Variant:
    """A variant, and its metrics in each round."""

    model: ModelConfig
    settings: Settings
    metrics: list[TrialMetrics | None] = field(default_factory=list)
    """One for each round that it took part in; None where its training failed."""

    @property
    def name(self) -> str:
        return str(self.model.as_)

    @property
    def score(self) -> tuple[int, float]:
        """Return the key to rank variants by: the number of rounds, then macro-F1."""
        last = self.metrics[-1] if self.metrics else None
        return len(self.metrics), -1.0 if last is None else last.macro_f1


@dataclass(frozen=True)
class _Swept:
    """The best variant of a model, and the report on all of them."""

    winner: _Variant
    report: SweepReport


@dataclass
class _Sweep:
    """The sweep of one model."""

    config: RunConfig
    model: ModelConfig
    name: str
    dataset: Dataset
    trial_splits: TrialSplits
    context: RunContext
    _tried: list[_Variant] = field(default_factory=list, init=False)

    def prepare(self) -> None:
        """List the variants, and check them before anything is trained.

        Optuna's variants are not known yet, so that only the model itself is checked.
        """
        if self._sweep.method == "tpe":
            _optuna()
            self._fetch(self.config)
            return
        for settings in variants.listed(self._sweep):
            self._add(settings)
        self._fetch(self._run_config(self._tried))

    def _fetch(self, config: RunConfig) -> None:
        specs = config.trial_specs(self.dataset.labels)
        execute.fetch_models(specs, config.engine, self.context.progress)

    def run(self) -> _Swept:
        """Train the variants, in rounds of successive halving or all at once."""
        if self._sweep.method == "tpe":
            for variant in self._asked():
                self._train([variant], 0)
            return self._result()
        for number, count in enumerate(self._counts):
            # stable: of two equal variants, the earlier one stays first
            best = sorted(self._tried, key=lambda v: v.score, reverse=True)[:count]
            names = {variant.name for variant in best}
            self._train([v for v in self._tried if v.name in names], number)
        return self._result()

    @property
    def _sweep(self) -> SweepConfig:
        assert self.config.sweep is not None  # noqa: S101  else there is nothing to do here
        return self.config.sweep

    @cached_property
    def _counts(self) -> list[int]:
        """Number of variants that each round trains."""
        return variants.counts(self._sweep)

    @cached_property
    def _rounds(self) -> Splits:
        """The splits: the last round trains on all texts, each before it on fewer."""
        shares = variants.shares(self._counts, self._sweep.halving)
        return ValidationSplits(self.trial_splits, self.dataset.labels, self._sweep, shares)

    @property
    def split_sha256(self) -> str:
        """Hash of the texts of the last round, which decide the winner."""
        return self._rounds.summaries[-1].sha256

    def _add(self, settings: Settings) -> _Variant:
        name = f"{self.name[:_LONGEST_NAME]}-{len(self._tried) + 1:03d}"
        model = self.config.variant(self.model, settings, name)
        self._tried.append(_Variant(model, settings))
        return self._tried[-1]

    def _train(self, chosen: Sequence[_Variant], number: int) -> None:
        """Train some of the variants in one round, and store their metrics."""
        only = [f"{variant.name}:{number + 1}" for variant in chosen]
        context = replace(self.context, fresh=False, only=only)
        config = self._run_config(self._tried)
        results = execute.run(config, self.dataset, self._rounds, context)
        trials = {
            (model.model, trial.trial): trial for model in results.models for trial in model.trials
        }
        for variant in chosen:
            variant.metrics.append(trials.get((variant.name, number + 1)))

    def _run_config(self, tried: Sequence[_Variant]) -> RunConfig:
        """Return the config of the run that trains variants; its trials are the rounds."""
        output = self.config.output.model_copy(
            update={"dir": str(self.config.folder / FOLDER), "save_model": "none"}
        )
        return self.config.model_copy(
            update={
                "name": self.name,
                "models": tuple(variant.model for variant in tried),
                "trials": len(self._counts),
                "output": output,
                "sweep": None,
            }
        )

    def _asked(self) -> Iterator[_Variant]:
        """Yield one variant of Optuna after the other; report the score of each back.

        Equal scores give equal variants, which is how a stopped sweep continues.
        """
        optuna = _optuna()
        sampler = optuna.samplers.TPESampler(seed=self._sweep.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(variants.count(self._sweep)):
            trial = study.ask()
            settings = {
                key: variants.suggested(trial, key, of) for key, of in self._sweep.keys.items()
            }
            try:
                variant = self._add(settings)
                self._fetch(self._run_config([variant]))
            except ConfigError as error:  # these settings do not go together: take another
                self.context.progress.line(str(error))
                self._tried = [one for one in self._tried if one.settings is not settings]
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            yield variant
            metrics = variant.metrics[-1]
            if metrics is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, metrics.macro_f1)

    def _result(self) -> _Swept:
        rounds = self._rounds.summaries
        finalists = [v for v in self._tried if len(v.metrics) == len(rounds) and v.metrics[-1]]
        if not finalists:
            raise TgsentError(
                f"sweep of {self.name}: no variant could be trained to the end;"
                f" {self.config.folder / FOLDER / self.name / 'report.md'} says why"
            )
        winner = max(finalists, key=lambda variant: variant.score)
        self.context.progress.line(
            f"{self.name}: the best of {len(self._tried)} variants on {rounds[-1].n_test}"
            f" validation texts is {winner.name}, macro-F1 {winner.score[1]:.4f}"
        )
        report = SweepReport(
            model=self.name,
            method=self._sweep.method,
            trials=self.config.trials,
            tried=len(self._tried),
            winner=winner.name,
            settings=dict(winner.settings),
            macro_f1=winner.score[1],
            optimism=self._optimism(finalists),
            finalists=len(finalists),
            n_validation=rounds[-1].n_test,
            n_train=tuple(one.n_train for one in rounds),
            split_sha256=self.split_sha256,
            variants=tuple(
                VariantSummary(
                    variant.name,
                    dict(variant.settings),
                    tuple(m.macro_f1 if m else None for m in variant.metrics),
                )
                for variant in self._tried
            ),
        )
        return _Swept(winner, report)

    def _optimism(self, finalists: Sequence[_Variant]) -> float:
        folder = RunFolder(self.config.folder / FOLDER / self.name)
        answers = {
            variant.name: [(p.text, p.label, p.predicted) for p in folder.predictions(metrics)]
            for variant in finalists
            if (metrics := variant.metrics[-1]) is not None
        }
        scores = {variant.name: variant.score[1] for variant in finalists}
        return optimism(answers, scores, self.dataset.labels)


def optimism(
    answers: Mapping[str, Sequence[tuple[str, str, str | None]]],
    scores: Mapping[str, float],
    labels: Sequence[str],
) -> float:
    """Estimate the selection bias of the best variant, in macro-F1; 0 for a single variant.

    On texts drawn anew with replacement, the best variant scores more than it does on the texts as
    they are. The mean difference is the bootstrap's estimate of the bias (Efron & Tibshirani 1993,
    chapter 10, of the maximum).
    """
    if len(answers) < 2:
        return 0.0
    draws = bootstrap([answers], labels)
    table = np.stack([draws[name] for name in answers])  # (variants, draws)
    best = table.argmax(axis=0)
    as_they_are = np.array([scores[name] for name in answers])
    return max(0.0, float(np.mean(table.max(axis=0) - as_they_are[best])))
