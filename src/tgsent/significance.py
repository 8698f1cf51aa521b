"""Is a difference more than luck? Intervals and tests over the held-out texts.

Everything here takes the trained models as they are and asks what other test texts of the same kind
would have given. What another training would have given, only several trials can show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 10_000
SEED = 1
LEVEL = 0.95
_POWER = 0.8

Answers = Sequence[tuple[str, str | None]]
"""The label of each test text, and the label that a model gave it, or None."""


@dataclass(frozen=True)
class Comparison:
    """How two models differ on the same test texts; positive where the first is better."""

    first: str
    second: str
    n: int
    """Test texts, all trials."""
    difference: float
    """In macro-F1, the mean over the trials that both have."""
    interval: tuple[float, float]
    """Of the difference: 95 %, stratified bootstrap over the test texts."""
    only_first: int
    """Texts that only the first got right."""
    only_second: int
    p_value: float
    """Exact McNemar test of the two numbers above."""
    adjusted_p_value: float
    """The same after Holm's correction for the number of pairs."""
    needed: int | None
    """Test texts in all with which a difference of this size would be seen in 4 of 5 experiments;
    None where there is no difference."""

    @property
    def is_real(self) -> bool:
        """Tell whether interval and test agree that this is more than luck."""
        return self._interval_tells and self._answers_tell

    @property
    def _interval_tells(self) -> bool:
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def _answers_tell(self) -> bool:
        return self.adjusted_p_value < 1 - LEVEL

    @property
    def sentence(self) -> str:
        """Say it plainly."""
        better, worse, sign = self.first, self.second, 100
        if self.difference < 0 and self._interval_tells:
            better, worse, sign = self.second, self.first, -100
        low, high = sorted(sign * end for end in self.interval)
        numbers = f"{sign * self.difference:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
        p_value = f"McNemar p = {self.adjusted_p_value:.2g}"
        if self.is_real:
            return f"{better} is better than {worse} on these texts: {numbers}; {p_value}"
        if self._interval_tells:
            return (
                f"{better} has a higher macro-F1 than {worse} on these texts ({numbers}), but not"
                f" more right answers than luck gives ({p_value})"
            )
        more = f"; about {self.needed:,} test texts would be needed" if self.needed else ""
        if self._answers_tell:
            more = f", though one has more answers right ({p_value})"
        return f"{better} and {worse} cannot be told apart on these data: {numbers}{more}"


def bootstrap(
    trials: Sequence[Mapping[str, Answers]], labels: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, NDArray[np.float64]]:
    """Draw the test texts of every trial anew; give each model's mean macro-F1 in each draw.

    Every trial is a mapping from all models to their answers to the same texts. Texts are drawn
    with replacement within each label (stratified), the same ones for all models. Texts of one
    label to which all models gave the same answers are interchangeable, so that numbers of them are
    drawn instead (a multinomial draw), which is the same and takes no loop. Gives `(resamples,)`.
    """
    rng = np.random.default_rng(SEED)
    models = list(trials[0])
    totals = {model: np.zeros(resamples) for model in models}
    index = {label: i for i, label in enumerate(labels)}
    for trial in trials:
        truth = [label for label, _ in trial[models[0]]]
        joint = zip(
            truth, *([answer for _, answer in trial[model]] for model in models), strict=True
        )
        patterns = Counter(joint)
        # (resamples, labels): texts of each label, and how often each label was said, and rightly
        said = {model: np.zeros((resamples, len(labels))) for model in models}
        right = {model: np.zeros((resamples, len(labels))) for model in models}
        for label in labels:
            own = [(pattern[1:], n) for pattern, n in patterns.items() if pattern[0] == label]
            if not own:
                continue
            counts = np.array([n for _, n in own])
            drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
            for position, model in enumerate(models):
                for column, (answers, _) in enumerate(own):
                    if (answer := answers[position]) in index:
                        said[model][:, index[answer]] += drawn[:, column]
                        if answer == label:
                            right[model][:, index[answer]] += drawn[:, column]
        support = np.array([truth.count(label) for label in labels])
        for model in models:
            both = said[model] + support
            f1 = np.divide(2 * right[model], both, out=np.zeros_like(both), where=both > 0)
            totals[model] += f1.mean(axis=1) / len(trials)
    return totals


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Give the percentile interval of a bootstrap distribution (Efron 1979)."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(
    trials: Mapping[int, Mapping[str, Answers]],
    macro_f1: Mapping[str, Mapping[int, float]],
    labels: Sequence[str],
) -> list[Comparison]:
    """Compare every two models on the trials that both have.

    `trials` holds each trial's answers by model, `macro_f1` each model's scores by trial.
    """
    found = []
    for first, second in combinations(macro_f1, 2):
        shared = [k for k in trials if first in trials[k] and second in trials[k]]
        if shared:
            pair = [{name: trials[k][name] for name in (first, second)} for k in shared]
            scores = {name: [macro_f1[name][k] for k in shared] for name in (first, second)}
            found.append(_compare(first, second, pair, scores, labels))
    adjusted = holm([one["p_value"] for one in found])
    return [Comparison(**one, adjusted_p_value=p) for one, p in zip(found, adjusted, strict=True)]


def _compare(
    first: str,
    second: str,
    pair: Sequence[Mapping[str, Answers]],
    scores: Mapping[str, Sequence[float]],
    labels: Sequence[str],
) -> dict[str, Any]:
    draws = bootstrap(pair, labels)
    differences = draws[first] - draws[second]
    difference = float(np.mean(scores[first]) - np.mean(scores[second]))
    outcomes = Counter(
        (label == one, label == other)
        for trial in pair
        for (label, one), (_, other) in zip(trial[first], trial[second], strict=True)
    )
    n = sum(outcomes.values())
    return {
        "first": first,
        "second": second,
        "n": n,
        "difference": difference,
        "interval": interval(differences),
        "only_first": outcomes[True, False],
        "only_second": outcomes[False, True],
        "p_value": mcnemar(outcomes[True, False], outcomes[False, True]),
        "needed": needed(difference, float(differences.std(ddof=1)), n),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the exact two-sided p-value that both models are right equally often (McNemar 1947).

    Of the texts that just one got right, each is as likely to be the one's as the other's.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down procedure (Holm 1979)."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def needed(difference: float, standard_error: float, n: int) -> int | None:
    """Give how many test texts would show a difference of this size with a power of 80 %.

    The standard error falls with the root of the number of texts; for a two-sided test at 5 %,
    n (z_0.975 + z_0.8)^2 (standard error / difference)^2, to two digits.
    """
    if abs(difference) < 1e-9 or standard_error == 0:
        return None
    z = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(_POWER))
    exact = n * (z * standard_error / difference) ** 2
    if exact > 1e9:
        return None
    unit: int = 10 ** max(0, math.floor(math.log10(max(exact, 1))) - 1)
    return math.ceil(exact / unit) * unit
