"""The results of a run, made of its finished trials: what `results.json` holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from tgsent.evaluation.metrics import Summary, summarize
from tgsent.evaluation.significance import (
    Answers,
    Comparison,
    Interval,
    bootstrap,
    compare,
    interval,
)
from tgsent.records import Prediction, Scores
from tgsent.runs import signature
from tgsent.runs.manifest import Manifest
from tgsent.runs.metrics import TrialMetrics
from tgsent.runs.stored import StoredRun

SCHEMA_VERSION = 1

_MOST_COMPARED = 10
"""With more models, only the best is compared with the others: nobody reads all pairs."""

_MOST_INTERVALS = 100
"""Of a model with more trials, each one's own interval is not computed: nothing shows it."""

ByTrial = Mapping[int, Mapping[str, Answers]]
"""The answers of each trial, by model."""


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial of a model that failed, and why."""

    trial: int
    reason: str


@dataclass(frozen=True, slots=True)
class ModelResults:
    """The trials of one model: a row of the table."""

    model: str
    trials: tuple[TrialMetrics, ...]
    failed: tuple[FailedTrial, ...]
    macro_f1: Summary
    trials_bootstrap95: tuple[Interval | None, ...] = ()
    """Each trial's own interval over test texts."""
    macro_f1_all: Summary | None = None
    """Over all test texts, where there are more than the sample's own."""

    @property
    def compared(self) -> Summary:
        """Summary of the score by which models are compared."""
        return self.macro_f1_all or self.macro_f1

    def mean(self, trials: Collection[int]) -> float:
        """Return the mean, over these trials, of the score by which models are compared."""
        return fmean(trial.compared.macro_f1 for trial in self.trials if trial.trial in trials)

    def to_json(self) -> dict[str, Any]:
        """Return a row of `results.json`."""
        return {
            "model": self.model,
            "trials": [trial.to_json() for trial in self.trials],
            "macro_f1": {**asdict(self.macro_f1), "trials_bootstrap95": self.trials_bootstrap95},
            **({"macro_f1_all": asdict(self.macro_f1_all)} if self.macro_f1_all else {}),
            "failed": [asdict(one) for one in self.failed],
        }


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run, or of several in one table."""

    name: str
    signature: str
    verdict: tuple[str, ...]
    models: tuple[ModelResults, ...]
    comparisons: tuple[Comparison, ...]
    manifest: Manifest

    @property
    def published(self) -> Mapping[str, float]:
        """Published mean macro-F1 by model, where the run has the article's models and data."""
        return self.manifest.article.mean_macro_f1 if self.manifest.article else {}

    def to_json(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        manifest = self.manifest.to_json()
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            **({"article": manifest["article"]} if manifest["article"] else {}),
            "signature": self.signature,
            "verdict": self.verdict,
            "models": [model.to_json() for model in self.models],
            "comparisons": [
                {**asdict(one), "real": one.is_real, "sentence": one.sentence}
                for one in self.comparisons
            ],
            "manifest": manifest,
        }


def collect(
    name: str,
    trials: Mapping[str, Mapping[int, TrialMetrics]],
    failed: Mapping[str, Mapping[int, str]],
    predictions: Mapping[tuple[str, int], Sequence[Prediction]],
    manifest: Manifest,
) -> Results:
    """Compute the results; failed trials are in no mean.

    `predictions` are those of every finished trial. If there are none, because the run is not
    finished, there are neither intervals over test texts nor comparisons.
    """
    labels = manifest.data.labels
    answers: dict[int, dict[str, Answers]] = {}
    for (model, number), given in predictions.items():
        answers.setdefault(number, {})[model] = [(p.text, p.label, p.predicted) for p in given]
    models = tuple(
        _of_model(model, own, failed.get(model, {}), answers, labels)
        for model, own in trials.items()
    )
    # with extra test texts, the scores on all of them are compared
    scores = {
        model: {number: metrics.compared.macro_f1 for number, metrics in own.items()}
        for model, own in trials.items()
    }
    comparisons = compare(answers, scores, labels, _pairs_to_compare(scores))
    return Results(
        name=name,
        signature=signature.of_run(
            metrics.signature for own in trials.values() for metrics in own.values()
        ),
        verdict=tuple(verdict(models, comparisons)),
        models=models,
        comparisons=tuple(comparisons),
        manifest=manifest,
    )


def of_runs(run: StoredRun) -> Results:
    """Compute the results of what run folders hold."""
    return collect(run.name, run.trials, run.failed, run.predictions, run.manifest)


def _of_model(
    model: str,
    own: Mapping[int, TrialMetrics],
    failed: Mapping[int, str],
    answers: ByTrial,
    labels: Sequence[str],
) -> ModelResults:
    def over_texts(scores: Mapping[int, Scores]) -> Interval | None:
        """Return the interval for the first `n_test` answers of each trial."""
        if not answers or not scores:
            return None
        given = [{model: answers[k][model][: one.n_test]} for k, one in sorted(scores.items())]
        return interval(bootstrap(given, labels)[model])

    everything = {number: metrics.all for number, metrics in own.items() if metrics.all}
    return ModelResults(
        model=model,
        trials=tuple(own.values()),
        failed=tuple(FailedTrial(number, reason) for number, reason in sorted(failed.items())),
        macro_f1=summarize([metrics.macro_f1 for metrics in own.values()], over_texts(own)),
        trials_bootstrap95=tuple(
            over_texts({number: metrics}) if len(own) <= _MOST_INTERVALS else None
            for number, metrics in own.items()
        ),
        macro_f1_all=summarize(
            [scores.macro_f1 for scores in everything.values()], over_texts(everything)
        )
        if everything
        else None,
    )


def _pairs_to_compare(scores: Mapping[str, Mapping[int, float]]) -> list[tuple[str, str]] | None:
    """Return None, for all pairs; of many models, the pairs of the best and each of the others."""
    if len(scores) <= _MOST_COMPARED or not any(scores.values()):
        return None
    scored = {model: own for model, own in scores.items() if own}
    shared = set.intersection(*(set(own) for own in scored.values()))
    # as the verdict chooses; where no trial is shared, it chooses none
    best = max(scored, key=lambda model: fmean(scored[model][k] for k in shared or scored[model]))
    return [pair for pair in combinations(scores, 2) if best in pair]


def verdict(models: Sequence[ModelResults], comparisons: Sequence[Comparison]) -> list[str]:
    """Return two sentences: which model is best, and whether that is more than chance.

    The best is chosen by the trials that all models have.
    """
    scored = [model for model in models if model.trials]
    if not scored:
        return ["No trial is finished."]
    if any(model.macro_f1.bootstrap95 is None for model in scored):
        return [f"The run goes on: {sum(len(m.trials) for m in scored)} trials are finished."]
    shared = set.intersection(*({trial.trial for trial in model.trials} for model in scored))
    if not shared:
        return ["The models have no trial in common, so that their means cannot be compared."]
    best = max(scored, key=lambda model: model.mean(shared))
    number = len(shared)
    first = (
        f"{best.model} has the highest mean macro-F1, {best.mean(shared):.3f}"
        f" over {'1 trial' if number == 1 else f'{number} trials'}"
    )
    if number == len(best.trials) and (ends := best.compared.bootstrap95):
        first += f" (95 % {ends[0]:.3f} to {ends[1]:.3f} for other test texts)"
    if best.macro_f1_all:
        first += ", all test texts counted"
    if number < max(len(model.trials) for model in scored):
        first += ", those that all models have"
    beaten, equal, better = _pairs(best.model, comparisons)
    parts = [
        f"{how} {_and(names)}{rest}"
        for how, names, rest in (
            ("is better than", beaten, " by more than chance"),
            ("cannot be told apart from", equal, " on these test texts"),
            ("is worse than", better, " by more than chance on the trials that both have"),
        )
        if names
    ]
    if not parts:
        return [f"{first}.", "There is no other model to compare it with."]
    return [f"{first}.", f"It {', but '.join(parts)}."]


def _pairs(name: str, comparisons: Sequence[Comparison]) -> tuple[list[str], list[str], list[str]]:
    """Return the models that this one is better than, not to be told apart from, or worse than."""
    beaten: list[str] = []
    equal: list[str] = []
    better: list[str] = []
    for one in (one.better_first for one in comparisons):
        if name in {one.first, one.second}:
            other = one.second if one.first == name else one.first
            (equal if not one.is_real else beaten if one.first == name else better).append(other)
    return beaten, equal, better


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
