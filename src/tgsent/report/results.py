"""The result of a run: what `results.json` holds, made of the trials that are finished."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import fmean
from typing import Any

from tgsent.evaluation.metrics import summarize
from tgsent.evaluation.significance import Answers, Comparison, bootstrap, compare, interval
from tgsent.records import Prediction
from tgsent.runs import signature
from tgsent.runs.stored import StoredRun

SCHEMA_VERSION = 1

_MOST_COMPARED = 10
"""Of more models, only the best is compared with the others: nobody reads all pairs."""

_MOST_INTERVALS = 100
"""Of a model with more trials, each one's own interval is not computed: nobody sees it."""

Trials = Mapping[str, Mapping[int, dict[str, Any]]]
"""The metrics of each model's finished trials, by number."""

ByTrial = Mapping[int, Mapping[str, Answers]]
"""The answers of each trial, by model."""


def collect(
    name: str,
    trials: Trials,
    failed: Mapping[str, Mapping[int, str]],
    predictions: Mapping[tuple[str, int], Sequence[Prediction]],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Put together the content of `results.json`; failed trials are in no mean.

    `predictions` are those of every finished trial; without any, as while a run goes on, nothing is
    said of luck: intervals are None, and there are no comparisons.
    """
    labels = manifest["data"]["labels"]
    answers: dict[int, dict[str, Answers]] = {}
    for (model, number), given in predictions.items():
        answers.setdefault(number, {})[model] = [(p.text, p.label, p.predicted) for p in given]
    # with extra test texts, what is compared is the score on all
    scores = {
        model: {k: metrics.get("all", metrics)["macro_f1"] for k, metrics in own.items()}
        for model, own in trials.items()
    }
    rows: list[dict[str, Any]] = [
        {
            "model": model,
            "trials": list(own.values()),
            "macro_f1": {
                **summarize([metrics["macro_f1"] for metrics in own.values()]),
                "bootstrap95": _bootstrap(model, answers, labels, own),
                "trials_bootstrap95": [
                    _bootstrap(model, answers, labels, {number: metrics})
                    if len(own) <= _MOST_INTERVALS
                    else None
                    for number, metrics in own.items()
                ],
            },
            **_all(model, answers, labels, own),
            "failed": [
                {"trial": number, "reason": reason}
                for number, reason in sorted(failed.get(model, {}).items())
            ],
        }
        for model, own in trials.items()
    ]
    comparisons = compare(answers, scores, labels, _pairs_to_compare(scores))
    article: dict[str, Any] = {"article": manifest["article"]} if manifest.get("article") else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        **article,
        "signature": signature.of_run(
            metrics["signature"] for own in trials.values() for metrics in own.values()
        ),
        "verdict": verdict(rows, comparisons),
        "models": rows,
        "comparisons": [
            {**asdict(one), "real": one.is_real, "sentence": one.sentence} for one in comparisons
        ],
        "manifest": manifest,
    }


def _pairs_to_compare(scores: Mapping[str, Mapping[int, float]]) -> list[tuple[str, str]] | None:
    """Give None, for every two models; where they are many, the best and each of the others."""
    if len(scores) <= _MOST_COMPARED or not any(scores.values()):
        return None
    scored = {model: own for model, own in scores.items() if own}
    shared = set.intersection(*(set(own) for own in scored.values()))
    # as the verdict chooses; where no trial is shared, it chooses none
    best = max(scored, key=lambda model: fmean(scored[model][k] for k in shared or scored[model]))
    return [pair for pair in combinations(scores, 2) if best in pair]


def of_runs(run: StoredRun) -> dict[str, Any]:
    """Put the same together from what run folders hold."""
    return collect(run.name, run.trials, run.failed, run.predictions, run.manifest)


def _all(
    model: str, answers: ByTrial, labels: Sequence[str], own: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """Give the summary over all test texts, where there are more than the sample's own."""
    everything = {number: metrics["all"] for number, metrics in own.items() if "all" in metrics}
    if not everything:
        return {}
    summary = summarize([metrics["macro_f1"] for metrics in everything.values()])
    ends = _bootstrap(model, answers, labels, everything)
    return {"macro_f1_all": {**summary, "bootstrap95": ends}}


def _bootstrap(
    model: str, answers: ByTrial, labels: Sequence[str], own: Mapping[int, dict[str, Any]]
) -> list[float] | None:
    """Give the interval for the first `n_test` answers of each trial."""
    if not answers or not own:
        return None
    given = [{model: answers[k][model][: metrics["n_test"]]} for k, metrics in sorted(own.items())]
    return list(interval(bootstrap(given, labels)[model]))


def verdict(rows: Sequence[dict[str, Any]], comparisons: Sequence[Comparison]) -> list[str]:
    """Say in two sentences which model is best, and whether that is more than luck.

    The best is chosen by the trials that all models have.
    """
    scored = [row for row in rows if row["trials"]]
    if not scored:
        return ["No trial is finished."]
    if any(row["macro_f1"]["bootstrap95"] is None for row in scored):
        return [
            f"The run goes on: {sum(len(row['trials']) for row in scored)} trials are finished."
        ]
    shared = set.intersection(*({trial["trial"] for trial in row["trials"]} for row in scored))
    if not shared:
        return ["The models have no trial in common, so that their means cannot be compared."]
    best = max(scored, key=lambda row: _mean(row, shared))
    name, number = best["model"], len(shared)
    first = (
        f"{name} has the highest mean macro-F1, {_mean(best, shared):.3f}"
        f" over {'1 trial' if number == 1 else f'{number} trials'}"
    )
    if number == len(best["trials"]):
        low, high = best.get("macro_f1_all", best["macro_f1"])["bootstrap95"]
        first += f" (95 % {low:.3f} to {high:.3f} for other test texts)"
    if "macro_f1_all" in best:
        first += ", all test texts counted"
    if number < max(len(row["trials"]) for row in scored):
        first += ", those that all models have"
    beaten, equal, better = _pairs(name, comparisons)
    parts = [
        f"{how} {_and(names)}{rest}"
        for how, names, rest in (
            ("is better than", beaten, " by more than luck"),
            ("cannot be told apart from", equal, " on these test texts"),
            ("is worse than", better, " by more than luck on the trials that both have"),
        )
        if names
    ]
    if not parts:
        return [f"{first}.", "There is no other model to compare it with."]
    return [f"{first}.", f"It {', but '.join(parts)}."]


def _mean(row: dict[str, Any], trials: Collection[int]) -> float:
    """Give the mean, over these trials, of the score by which models are compared."""
    scores = [
        trial.get("all", trial)["macro_f1"] for trial in row["trials"] if trial["trial"] in trials
    ]
    return float(sum(scores)) / len(scores)


def _pairs(name: str, comparisons: Sequence[Comparison]) -> tuple[list[str], list[str], list[str]]:
    """Name the models that this one is better than, not to be told apart from, or worse than."""
    beaten: list[str] = []
    equal: list[str] = []
    better: list[str] = []
    for one in comparisons:
        if name in {one.first, one.second}:
            other = one.second if one.first == name else one.first
            ahead = (one.difference > 0) == (one.first == name)
            (equal if not one.is_real else beaten if ahead else better).append(other)
    return beaten, equal, better


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
