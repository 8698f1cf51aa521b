"""Sweeps: variants of each model are compared on validation texts, and the best alone is tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tgsent import execute, variants
from tgsent.aliases import BASELINES
from tgsent.config import ModelConfig, RunConfig, SweepConfig, check_variant
from tgsent.data import Dataset, TrialSplits, ValidationSplits
from tgsent.errors import ConfigError, TgsentError, UnavailableError
from tgsent.records import Progress, Splits
from tgsent.significance import bootstrap
from tgsent.store import RunFolder
from tgsent.variants import Settings

FOLDER = "sweep"
"""Name of the run folder of the variants, within that of the run."""


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
    the choice knows nothing of what the winners are tested on. They have a run folder of their own
    in that of the run, from which a sweep that was stopped goes on. Raises what `execute.run` does,
    and TgsentError where no variant of a model could be trained.
    """
    if only:
        raise ConfigError("--only: the trials of a sweep are known when it has ended; leave it out")
    if FOLDER in config.names:
        raise ConfigError(f'the name "{FOLDER}" is taken by the folder of the sweep; see `as`')
    folder = RunFolder(config.folder)
    if fresh:
        with folder.locked():
            if aside := folder.move_aside():
                progress.line(f"the old results are now in {aside}")
    winners, reports = [], []
    for name, model in zip(config.names, config.models, strict=True):
        if model.model in BASELINES:  # nothing that could vary
            winners.append(model)
            continue
        found = _Sweep(config, model, name, dataset, splits, command, progress).run()
        winners.append(found.winner.model.model_copy(update={"as_": name}))
        reports.append(found.report)
    chosen = config.model_copy(update={"models": tuple(winners), "sweep": None})
    return execute.run(
        chosen,
        dataset,
        splits,
        fresh=False,
        command=command,
        progress=progress,
        sweep=reports,
    )


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

    def run(self) -> _Swept:
        """Try the variants, in rounds of successive halving or all at once."""
        sweep = self._sweep
        if sweep.method == "tpe":
            counts = [sweep.variants or 1]
            rounds = self._rounds(counts)
            for variant in self._asked():
                self._train([variant], 0, rounds)
        else:
            for settings in variants.listed(sweep):
                self._add(settings)
            counts = variants.rungs(len(self._tried), sweep.halving)
            rounds = self._rounds(counts)
            for number, count in enumerate(counts):
                # sorted as they were tried, where two are equal
                best = sorted(self._tried, key=lambda v: v.score, reverse=True)[:count]
                self._train([v for v in self._tried if v in best], number, rounds)
        return self._result(rounds)

    @property
    def _sweep(self) -> SweepConfig:
        assert self.config.sweep is not None  # noqa: S101  else there is nothing to do here
        return self.config.sweep

    def _rounds(self, counts: Sequence[int]) -> Splits:
        """Make the splits: the last round trains on all texts, each before it on fewer."""
        shares = variants.shares(counts, self._sweep.halving)
        return ValidationSplits(self.trial_splits, self.dataset.labels, self._sweep, shares)

    def _add(self, settings: Settings) -> _Variant:
        check_variant(self.config, self.model, settings)
        name = f"{self.name}-{len(self._tried) + 1:03d}"
        self._tried.append(_Variant(self.model.varied(settings, name), settings))
        return self._tried[-1]

    def _train(self, chosen: Sequence[_Variant], number: int, rounds: Splits) -> None:
        """Train some of the variants in one round, and see what they score."""
        config = self._run_config(len(rounds.summaries))
        only = [f"{variant.name}:{number + 1}" for variant in chosen]
        results = execute.run(
            config,
            self.dataset,
            rounds,
            fresh=False,
            command=self.command,
            progress=self.progress,
            only=only,
        )
        trials = {
            (model["model"], trial["trial"]): trial
            for model in results["models"]
            for trial in model["trials"]
        }
        for variant in chosen:
            variant.metrics.append(trials.get((variant.name, number + 1)))

    def _run_config(self, rounds: int) -> RunConfig:
        """Describe the run that trains the variants: a round is a trial of it."""
        output = self.config.output.model_copy(
            update={"dir": str(self.config.folder / FOLDER), "save_model": "none"}
        )
        return self.config.model_copy(
            update={
                "name": self.name,
                "models": tuple(variant.model for variant in self._tried),
                "trials": rounds,
                "output": output,
                "sweep": None,
            }
        )

    def _asked(self) -> Iterator[_Variant]:
        """Ask Optuna for one variant after the other, and tell it what each scored.

        It gives the same ones again where the scores are the same: so a sweep goes on.
        """
        try:
            import optuna
        except ImportError:
            raise UnavailableError(
                "sweep.method: tpe needs Optuna; install it with: pip install 'tgsent[tpe]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self._sweep.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(self._sweep.variants or 1):
            trial = study.ask()
            variant = self._add(
                {key: variants.suggested(trial, key, of) for key, of in self._sweep.keys.items()}
            )
            yield variant
            metrics = variant.metrics[-1]
            if metrics is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, metrics["macro_f1"])

    def _result(self, rounds: Splits) -> _Swept:
        scored = [variant for variant in self._tried if variant.metrics[-1] is not None]
        if not scored:
            raise TgsentError(
                f"sweep of {self.name}: no variant could be trained;"
                f" {self.config.folder / FOLDER / self.name / 'report.md'} says why"
            )
        winner = max(scored, key=lambda variant: variant.score)
        last = len(rounds.summaries) - 1
        split = rounds.summaries[last]
        finalists = [v for v in scored if len(v.metrics) == last + 1]
        self.progress.line(
            f"{self.name}: the best of {len(self._tried)} variants on {split.n_test} validation"
            f" texts is {winner.name}, macro-F1 {winner.score[1]:.4f}"
        )
        report = {
            "model": self.name,
            "method": self._sweep.method,
            "tried": len(self._tried),
            "winner": winner.name,
            "settings": dict(winner.settings),
            "macro_f1": winner.score[1],
            "optimism": self._optimism(finalists),
            "finalists": len(finalists),
            "n_validation": split.n_test,
            "n_train": [one.n_train for one in rounds.summaries],
            "split_sha256": split.sha256,
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
    return float(np.mean(table.max(axis=0) - as_they_are[best]))
