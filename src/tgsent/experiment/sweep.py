"""Sweeps: variants of each model are compared on validation texts, and the best alone is tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from tgsent.config import ModelConfig, RunConfig, SweepConfig
from tgsent.config.aliases import BASELINES
from tgsent.data.dataset import Dataset, TrialSplits, ValidationSplits
from tgsent.errors import ConfigError, RunFolderError, TgsentError, UnavailableError
from tgsent.evaluation.significance import bootstrap
from tgsent.experiment import execute, variants
from tgsent.experiment.variants import Settings
from tgsent.records import Progress, Splits
from tgsent.runs.folder import RunFolder

FOLDER = "sweep"
"""Name of the folder of the variants, within that of the run."""

_LONGEST_NAME = 90  # of the 100 characters that a name may have


def run(
    config: RunConfig,
    dataset: Dataset,
    splits: TrialSplits,
    *,
    fresh: bool,
    command: Sequence[str],
    progress: Progress,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Choose the settings of each model, and run the trials with them; gives `results.json`.

    The variants are trained on, and compared on, texts that are in no trial's test part, so that
    the choice knows nothing of what the winners are tested on. They have run folders of their own
    in that of the run, from which a sweep that was stopped goes on. Raises what `execute.run` does,
    before anything is trained where that can be known, and TgsentError where no variant of a model
    could be trained.
    """
    if only:
        raise ConfigError("--only: the trials of a sweep are known when it has ended; leave it out")
    if FOLDER in map(str.casefold, config.names):
        raise ConfigError(f'the name "{FOLDER}" is taken by the folder of the sweep; see `as`')
    sweeps = {
        name: _Sweep(config, model, name, dataset, splits, command, progress)
        for name, model in zip(config.names, config.models, strict=True)
        if model.model not in BASELINES  # which have nothing that could vary
    }
    for one in sweeps.values():
        one.prepare()
    folder = RunFolder(config.folder)
    with folder.locked():
        if not fresh:
            _check_folder(folder, config, dataset, sweeps)
        elif aside := folder.move_aside():
            progress.line(f"the old results are now in {aside}")
        found = {name: one.run() for name, one in sweeps.items()}
        winners = tuple(
            found[name].winner.model.model_copy(update={"as_": name}) if name in found else model
            for name, model in zip(config.names, config.models, strict=True)
        )
        return execute.run(
            config.model_copy(update={"models": winners, "sweep": None}),
            dataset,
            splits,
            fresh=False,
            command=command,
            progress=progress,
            sweep=[one.report for one in found.values()],
            has_lock=True,
        )


def _check_folder(
    folder: RunFolder, config: RunConfig, dataset: Dataset, sweeps: Mapping[str, _Sweep]
) -> None:
    """Raise RunFolderError where the folder's results would be refused when the sweep has ended."""
    folder.check_same_experiment(config.model_copy(update={"models": (), "sweep": None}))
    folder.check_same_data(dataset.sha256)
    for before in folder.sweep():
        one = sweeps.get(before["model"])
        if one and one.split_sha256 != before["split_sha256"]:
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
    """One of them, and what became of it."""

    model: ModelConfig
    settings: Settings
    metrics: list[dict[str, Any] | None] = field(default_factory=list)
    """Of each round that it was in; None where its training failed."""

    @property
    def name(self) -> str:
        return str(self.model.as_)

    @property
    def score(self) -> tuple[int, float]:
        """Rank it: by how far it came, then by macro-F1."""
        last = self.metrics[-1] if self.metrics else None
        return len(self.metrics), -1.0 if last is None else last["macro_f1"]


@dataclass(frozen=True)
class _Swept:
    """What came of the variants of a model."""

    winner: _Variant
    report: dict[str, Any]


@dataclass
class _Sweep:
    """The sweep of one model."""

    config: RunConfig
    model: ModelConfig
    name: str
    dataset: Dataset
    trial_splits: TrialSplits
    command: Sequence[str]
    progress: Progress
    _tried: list[_Variant] = field(default_factory=list, init=False)

    def prepare(self) -> None:
        """Find out what is wrong or missing before anything is trained; list the variants.

        Of those that Optuna is to choose, only the model as it is can be looked at.
        """
        if self._sweep.method == "tpe":
            _optuna()
            execute.fetch_models(self.config, self.dataset, self.progress)
            return
        for settings in variants.listed(self._sweep):
            self._add(settings)
        execute.fetch_models(self._run_config(self._tried), self.dataset, self.progress)

    def run(self) -> _Swept:
        """Try the variants, in rounds of successive halving or all at once."""
        if self._sweep.method == "tpe":
            for variant in self._asked():
                self._train([variant], 0)
            return self._result()
        for number, count in enumerate(self._counts):
            # sorted as they were tried, where two are equal
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
        """How many variants each round trains."""
        return variants.counts(self._sweep)

    @cached_property
    def _rounds(self) -> Splits:
        """The splits: the last round trains on all texts, each before it on fewer."""
        shares = variants.shares(self._counts, self._sweep.halving)
        return ValidationSplits(self.trial_splits, self.dataset.labels, self._sweep, shares)

    @property
    def split_sha256(self) -> str:
        """Hash of the texts of the last round, by which the winner is chosen."""
        return self._rounds.summaries[-1].sha256

    def _add(self, settings: Settings) -> _Variant:
        name = f"{self.name[:_LONGEST_NAME]}-{len(self._tried) + 1:03d}"
        model = self.config.variant(self.model, settings, name)
        self._tried.append(_Variant(model, settings))
        return self._tried[-1]

    def _train(self, chosen: Sequence[_Variant], number: int) -> None:
        """Train some of the variants in one round, and see what they score."""
        results = execute.run(
            self._run_config(self._tried),
            self.dataset,
            self._rounds,
            fresh=False,
            command=self.command,
            progress=self.progress,
            only=[f"{variant.name}:{number + 1}" for variant in chosen],
        )
        trials = {
            (model["model"], trial["trial"]): trial
            for model in results["models"]
            for trial in model["trials"]
        }
        for variant in chosen:
            variant.metrics.append(trials.get((variant.name, number + 1)))

    def _run_config(self, tried: Sequence[_Variant]) -> RunConfig:
        """Describe the run that trains variants: a round is a trial of it."""
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
        """Ask Optuna for one variant after the other, and tell it what each scored.

        It gives the same ones again where the scores are the same: so a sweep goes on.
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
                execute.fetch_models(self._run_config([variant]), self.dataset, self.progress)
            except ConfigError as error:  # settings that do not go together: another is asked for
                self.progress.line(str(error))
                self._tried = [one for one in self._tried if one.settings is not settings]
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            yield variant
            metrics = variant.metrics[-1]
            if metrics is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, metrics["macro_f1"])

    def _result(self) -> _Swept:
        rounds = self._rounds.summaries
        finalists = [v for v in self._tried if len(v.metrics) == len(rounds) and v.metrics[-1]]
        if not finalists:
            raise TgsentError(
                f"sweep of {self.name}: no variant could be trained to the end;"
                f" {self.config.folder / FOLDER / self.name / 'report.md'} says why"
            )
        winner = max(finalists, key=lambda variant: variant.score)
        self.progress.line(
            f"{self.name}: the best of {len(self._tried)} variants on {rounds[-1].n_test}"
            f" validation texts is {winner.name}, macro-F1 {winner.score[1]:.4f}"
        )
        report = {
            "model": self.name,
            "method": self._sweep.method,
            "trials": self.config.trials,
            "tried": len(self._tried),
            "winner": winner.name,
            "settings": dict(winner.settings),
            "macro_f1": winner.score[1],
            "optimism": self._optimism(finalists),
            "finalists": len(finalists),
            "n_validation": rounds[-1].n_test,
            "n_train": [one.n_train for one in rounds],
            "split_sha256": self.split_sha256,
            "variants": [
                {
                    "name": variant.name,
                    "settings": dict(variant.settings),
                    "macro_f1": [m and m["macro_f1"] for m in variant.metrics],
                }
                for variant in self._tried
            ],
        }
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
    """Say how much better the best of several looks than it is, for having been picked.

    With the texts weighed anew, as if they were others, the best there scores more than it does on
    the texts as they are; the mean of that is the bootstrap's estimate of the bias (Efron &
    Tibshirani 1993, chapter 10, of the maximum). In macro-F1, 0 where there is one variant only.
    """
    if len(answers) < 2:
        return 0.0
    draws = bootstrap([answers], labels)
    table = np.stack([draws[name] for name in answers])  # (variants, draws)
    best = table.argmax(axis=0)
    as_they_are = np.array([scores[name] for name in answers])
    return max(0.0, float(np.mean(table.max(axis=0) - as_they_are[best])))
