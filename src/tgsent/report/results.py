"""The results of a run, made of its finished trials: what `results.json` holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean

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

_MOST_COMPARED = 10
"""With more models, only the best is compared with the others: nobody reads all pairs."""

_MOST_INTERVALS = 100
"""Of a model with more trials, each one's own interval is not computed: nothing shows it."""


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

    def mean(self, trials: Collection[int]) -> float:
        """Return the mean score, over these trials or else all, by which models are compared."""
        return fmean(
            trial.compared.macro_f1 for trial in self.trials if not trials or trial.trial in trials
        )

    def to_json(self) -> dict[str, object]:
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

    def to_json(self) -> dict[str, object]:
        """Return what `results.json` holds."""
        manifest = self.manifest.to_json()
        return {
            "schema_version": 1,
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
    scores = {
        model: {number: metrics.compared.macro_f1 for number, metrics in own.items()}
        for model, own in trials.items()
    }
    comparisons = compare(answers, scores, labels, _pairs_to_compare(models))
    signatures = (one.signature for own in trials.values() for one in own.values())
    return Results(
        name=name,
        signature=signature.of_run(signatures),
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
    answers: Mapping[int, Mapping[str, Answers]],
    labels: Sequence[str],
) -> ModelResults:
    def over_texts(scores: Mapping[int, Scores]) -> Interval | None:
        """Return the interval for the first `n_test` answers of each trial."""
        if not answers or not scores:
            return None
        given = [{model: answers[k][model][: one.n_test]} for k, one in sorted(scores.items())]
        return interval(bootstrap(given, labels)[model])

    def summary(scores: Mapping[int, Scores]) -> Summary:
        return summarize([one.macro_f1 for one in scores.values()], over_texts(scores))

    everything = {number: metrics.all for number, metrics in own.items() if metrics.all}
    return ModelResults(
        model=model,
        trials=tuple(own.values()),
        failed=tuple(FailedTrial(number, reason) for number, reason in sorted(failed.items())),
        macro_f1=summary(own),
        trials_bootstrap95=tuple(
            over_texts({number: metrics}) if len(own) <= _MOST_INTERVALS else None
            for number, metrics in own.items()
        ),
        macro_f1_all=summary(everything) if everything else None,
    )


def _best(models: Sequence[ModelResults]) -> tuple[ModelResults, set[int]]:
    """Return the model with the highest mean over the trials that all have, and those trials.

    If there is no such trial, each model's mean is over its own.
    """
    shared = set.intersection(*({trial.trial for trial in model.trials} for model in models))
    return max(models, key=lambda model: model.mean(shared)), shared


def _pairs_to_compare(models: Sequence[ModelResults]) -> list[tuple[str, str]] | None:
    """Return None, for all pairs; of many models, the pairs of the best and each of the others."""
    scored = [model for model in models if model.trials]
    if len(models) <= _MOST_COMPARED or not scored:
        return None
    best, _ = _best(scored)
    return [pair for pair in combinations([one.model for one in models], 2) if best.model in pair]


def verdict(models: Sequence[ModelResults], comparisons: Sequence[Comparison]) -> list[str]:
    """Return two sentences: which model is best, and whether that is more than chance.

    The best is chosen by the trials that all models have.
    """
    scored = [model for model in models if model.trials]
    if not scored:
        return ["No trial is finished."]
    if any(model.macro_f1.bootstrap95 is None for model in scored):
        return [f"The run goes on: {sum(len(m.trials) for m in scored)} trials are finished."]
    best, shared = _best(scored)
    if not shared:
        return ["The models have no trial in common, so that their means cannot be compared."]
    number = len(shared)
    first = (
        f"{best.model} has the highest mean macro-F1, {best.mean(shared):.3f}"
        f" over {'1 trial' if number == 1 else f'{number} trials'}"
    )
    if number == len(best.trials) and (ends := (best.macro_f1_all or best.macro_f1).bootstrap95):
        first += f" (95 % {ends[0]:.3f} to {ends[1]:.3f} for other test texts)"
    if best.macro_f1_all:
        first += ", all test texts counted"
    if number < max(len(model.trials) for model in scored):
        first += ", those that all models have"
    return [f"{first}.", _against_others(best.model, comparisons)]


def _against_others(best: str, comparisons: Sequence[Comparison]) -> str:
    """Return in a sentence which models the best one differs from by more than chance."""
    found = [one.better_first for one in comparisons if best in {one.first, one.second}]
    real = [one for one in found if one.is_real]
    beaten = [one.second for one in real if one.first == best]
    better = [one.first for one in real if one.second == best]
    equal = [one.second if one.first == best else one.first for one in found if not one.is_real]
    parts = []
    if beaten:
        parts.append(f"is better than {_and(beaten)} by more than chance")
    if equal:
        parts.append(f"cannot be told apart from {_and(equal)} on these test texts")
    if better:
        parts.append(
            f"is worse than {_and(better)} by more than chance on the trials that both have"
        )
    if not parts:
        return "There is no other model to compare it with."
    return f"It {', but '.join(parts)}."


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
