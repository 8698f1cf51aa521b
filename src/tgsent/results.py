"""The result of a run: what `results.json` holds, made of the trials that are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tgsent.metrics import summarize
from tgsent.records import Prediction
from tgsent.significance import Answers, Comparison, bootstrap, compare, interval

SCHEMA_VERSION = 1

Trials = Mapping[str, Mapping[int, dict[str, Any]]]
"""The metrics of each model's finished trials, by number."""


def collect(
    name: str,
    trials: Trials,
    failed: Mapping[str, Mapping[int, str]],
    predictions: Mapping[tuple[str, int], Sequence[Prediction]],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Put together the content of `results.json`; failed trials are in no mean.

    `predictions` are those of every finished trial.
    """
    labels = manifest["data"]["labels"]
    answers: dict[int, dict[str, Answers]] = {}
    for (model, number), given in predictions.items():
        answers.setdefault(number, {})[model] = [(p.label, p.predicted) for p in given]
    scores = {
        model: {number: metrics["macro_f1"] for number, metrics in own.items()}
        for model, own in trials.items()
    }
    rows: list[dict[str, Any]] = [
        {
            "model": model,
            "trials": list(own.values()),
            "macro_f1": {
                **summarize(list(scores[model].values())),
                "bootstrap95": _bootstrap(model, answers, labels),
            },
            "failed": [
                {"trial": number, "reason": reason}
                for number, reason in sorted(failed.get(model, {}).items())
            ],
        }
        for model, own in trials.items()
    ]
    comparisons = compare(answers, scores, labels)
    article: dict[str, Any] = {"article": manifest["article"]} if manifest.get("article") else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        **article,
        "verdict": verdict(rows, comparisons),
        "models": rows,
        "comparisons": [
            {**asdict(one), "real": one.is_real, "sentence": one.sentence} for one in comparisons
        ],
        "manifest": manifest,
    }


def _bootstrap(
    model: str, answers: Mapping[int, Mapping[str, Answers]], labels: Sequence[str]
) -> list[float] | None:
    own = [{model: given[model]} for _, given in sorted(answers.items()) if model in given]
    return list(interval(bootstrap(own, labels)[model])) if own else None


def verdict(rows: Sequence[dict[str, Any]], comparisons: Sequence[Comparison]) -> list[str]:
    """Say in two sentences which model is best, and whether that is more than luck."""
    scored = [row for row in rows if row["trials"]]
    if not scored:
        return ["No trial is finished."]
    best = max(scored, key=lambda row: float(row["macro_f1"]["mean"]))
    name, f1 = best["model"], best["macro_f1"]
    low, high = f1["bootstrap95"]
    number = len(best["trials"])
    over = "1 trial" if number == 1 else f"{number} trials"
    first = (
        f"{name} has the highest mean macro-F1, {f1['mean']:.3f} over {over}"
        f" (95 % {low:.3f} to {high:.3f} for other test texts)."
    )
    pairs = [one for one in comparisons if name in (one.first, one.second)]
    beaten: list[str] = []
    equal: list[str] = []
    for one in pairs:
        other = one.second if one.first == name else one.first
        better = one.is_real and (one.difference > 0) == (one.first == name)
        (beaten if better else equal).append(other)
    if not pairs:
        return [first, "There is no other model to compare it with."]
    parts = []
    if beaten:
        parts.append(f"is better than {_and(beaten)} by more than luck")
    if equal:
        parts.append(f"cannot be told apart from {_and(equal)} on these test texts")
    return [first, f"It {', but '.join(parts)}."]


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
