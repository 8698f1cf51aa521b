"""Scores of one trial, by scikit-learn, and their summary over several, by SciPy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tgsent.records import Bin, Calibration, LabelScores, Prediction, Scores

_BINS = 10


def score(predictions: Sequence[Prediction], labels: Sequence[str]) -> Scores:
    """Score the answers to the test texts.

    An answer that is no label counts as wrong: it lowers the recall of its text's label, and there
    is no class for it. macro-F1 is the mean of the labels' F1; a label without any true or
    predicted text has an F1 of 0.
    """
    # here, as reports need no scikit-learn, and it takes half a second to import
    from sklearn.metrics import precision_recall_fscore_support

    truth = [p.label for p in predictions]
    answers = [p.predicted or "" for p in predictions]
    columns = precision_recall_fscore_support(truth, answers, labels=list(labels), zero_division=0)
    per_label = {
        label: LabelScores(float(p), float(r), float(f), int(n))
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    }
    pairs = Counter(zip(truth, answers, strict=True))
    unparsed = answers.count("")
    answered = [*labels, ""] if unparsed else labels
    return Scores(
        n_test=len(truth),
        macro_f1=float(np.mean([of_label.f1 for of_label in per_label.values()])),
        accuracy=sum(t == a for t, a in zip(truth, answers, strict=True)) / len(truth),
        per_label=per_label,
        confusion={true: {said: pairs[true, said] for said in answered} for true in labels},
        unparsed=unparsed,
    )


def calibration(predictions: Sequence[Prediction], labels: Sequence[str]) -> Calibration | None:
    """Compare probabilities with accuracy; return None where there are no probabilities.

    The expected calibration error is the mean distance of confidence, the probability of the given
    label, and accuracy over ten bins of equal width, weighted by their texts (Guo et al. 2017). The
    area under the ROC curve is that of the second label, where there are two and both occur.
    """
    if not predictions or any(p.probabilities is None for p in predictions):
        return None
    table = np.array([p.probabilities for p in predictions])
    confidence = table.max(axis=1)
    right = np.array([p.predicted == p.label for p in predictions], dtype=float)
    bin_of = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = [
        Bin(float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for here in (bin_of == number for number in range(_BINS))
        if here.any()
    ]
    n = len(predictions)
    error = sum(one.n / n * abs(one.confidence - one.accuracy) for one in bins)
    truth = [p.label == labels[-1] for p in predictions]
    auc = None
    if len(labels) == 2 and len(set(truth)) == 2:
        from sklearn.metrics import roc_auc_score

        auc = float(roc_auc_score(truth, table[:, 1]))
    return Calibration(float(error), auc, tuple(bins))


def doubts(scores: Scores) -> list[str]:
    """Return what makes a score suspect, whatever it is."""
    rows, labels = scores.confusion.values(), list(scores.per_label)
    given = [label for label in labels if any(row[label] for row in rows)]
    if not given:
        return ["no answer is a label"]
    if len(given) == 1 and not scores.unparsed:
        return [f'answers "{given[0]}" to every text']
    never = ", ".join(f'"{label}"' for label in labels if label not in given)
    return [f"never answers {never}"] if never else []


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, sample standard deviation and intervals of a score over trials."""

    mean: float | None = None
    std: float | None = None
    ci95: tuple[float, float] | None = None
    """Of the mean over other trials: Student's t with n - 1 degrees of freedom."""
    bootstrap95: tuple[float, float] | None = None
    """Of the mean over other test texts."""


def summarize(values: Sequence[float], bootstrap95: tuple[float, float] | None = None) -> Summary:
    """Summarize the scores of trials; a single one has no deviation and no `ci95`."""
    if not values:
        return Summary(bootstrap95=bootstrap95)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Summary(mean, bootstrap95=bootstrap95)
    std = float(np.std(values, ddof=1))
    half = float(special.stdtrit(len(values) - 1, 0.975)) * std / math.sqrt(len(values))
    return Summary(mean, std, (mean - half, mean + half), bootstrap95)
