"""Is a difference more than luck? Intervals and tests over the held-out texts.

Everything here takes the trained models as they are and asks what other test texts of the same kind
would have given. What another training would have given, only several trials can show.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 5_000
SEED = 1
LEVEL = 0.95
_POWER = 0.8
_CELLS_AT_ONCE = 2**20  # of a table of draws: bounds the memory

Answers = Sequence[tuple[str, str, str | None]]
"""Each test text, its label, and the label that a model gave it, or None."""


_Seen = tuple[tuple[int, tuple[str | None, ...]], ...]
"""In which trials a text is, and what every model answered there."""


@dataclass(frozen=True)
class Comparison:
    """How two models differ on the same test texts; positive where the first is better."""

    first: str
    second: str
    n: int
    """Test texts of all trials, each counted once."""
    difference: float
    """In macro-F1, the mean over the trials that both have."""
    interval: tuple[float, float]
    """Of the difference: 95 %, stratified bootstrap over the test texts."""
    only_first: int
    """Texts that the first got right, and the second did not; for a text of several trials, more
    often than the second."""
    only_second: int
    p_value: float
    """Exact McNemar test of the two numbers above: with texts of several trials, a sign test over
    the texts."""
    adjusted_p_value: float
    """The same after Holm's correction for the number of pairs."""
    trials: tuple[int, ...]
    """Those that both have."""
    partly: bool
    """Whether one of the two has more."""
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
        if self.difference < 0:
            better, worse, sign = self.second, self.first, -100
        low, high = sorted(sign * end for end in self.interval)
        numbers = f"{sign * self.difference:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
        if self.partly:
            which = "trial" if len(self.trials) == 1 else "trials"
            numbers += f" on {which} {', '.join(map(str, self.trials))} only"
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
    """Weigh the test texts anew; give each model's mean macro-F1 over the trials in each draw.

    Every trial is a mapping from all models to their answers to the same texts. This is the
    Bayesian bootstrap (Rubin 1981): instead of drawing texts with replacement, each gets a random
    weight, Exp(1), here stratified: within a trial the weights of each label's texts add up to
    their number. It gives the same spread, and no draw is without a rare label. All models, and
    all trials that test a text, see the same weight: it is one text, however often it was answered.
    Texts that were answered alike are interchangeable, and the sum of n weights is Gamma(n), so
    that these are drawn. Gives `(resamples,)` per model.

    As it is, the spread of a mean over n texts would be that of n + 1, where n - 1 is right; the
    weights of a label with n texts in a trial are therefore Gamma(1 - 2 / n), and at least of 1/2.
    """
    rng = np.random.default_rng(SEED)
    patterns = Counter((label, seen) for (_, label), seen in _by_text(trials).items())
    sizes = np.array(list(patterns.values()), dtype=float)
    models = list(trials[0])
    tables = [_Table.of(k, list(patterns), sizes, len(models), labels) for k in range(len(trials))]
    fewest = dict(zip(labels, _fewest(tables), strict=True))
    shapes = np.array([max(0.5, 1 - 2 / fewest[label]) for label, _ in patterns])
    at_once = max(1, _CELLS_AT_ONCE // len(sizes))
    draws = []
    for start in range(0, resamples, at_once):
        size = (min(at_once, resamples - start), len(sizes))
        weights = rng.standard_gamma(sizes * shapes, size)
        draws.append(sum(table.macro_f1(weights) for table in tables) / len(trials))
    return dict(zip(models, np.concatenate(draws).T, strict=True))


@dataclass(frozen=True)
class _Table:
    """What one trial shows: P patterns of answers, M models, L labels."""

    patterns: NDArray[np.intp]
    """Which of all patterns occur in the trial, (P,)."""
    truth: NDArray[np.float64]
    """How often a text of each pattern stands in the trial, under its label: (P, L)."""
    said: NDArray[np.float64]
    """How often each model gave each label, (P, M, L)."""
    right: NDArray[np.float64]
    """The same, where that was right."""
    support: NDArray[np.float64]
    """Texts of each label, (L,)."""

    @classmethod
    def of(
        cls,
        trial: int,
        patterns: Sequence[tuple[str, _Seen]],
        sizes: NDArray[np.float64],
        models: int,
        labels: Sequence[str],
    ) -> _Table:
        """Count the answers of a trial."""
        index = {label: i for i, label in enumerate(labels)}
        own = [p for p, (_, seen) in enumerate(patterns) if any(k == trial for k, _ in seen)]
        truth = np.zeros((len(own), len(labels)))
        said = np.zeros((len(own), models, len(labels)))
        right = np.zeros_like(said)
        for row, (label, seen) in enumerate(patterns[p] for p in own):
            for answers in (answers for k, answers in seen if k == trial):
                truth[row, index[label]] += 1
                for model, answer in enumerate(answers):
                    if answer in index:
                        said[row, model, index[answer]] += 1
                        right[row, model, index[answer]] += answer == label
        places = np.array(own, dtype=np.intp)
        return cls(places, truth, said, right, sizes[places] @ truth)

    def macro_f1(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score the models where the patterns have these weights: (R, all patterns) to (R, M)."""
        own = weights[:, self.patterns]
        drawn = own @ self.truth
        scale = np.divide(self.support, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        own = own * (scale @ (self.truth > 0).T)  # each label has its number of texts
        both = np.tensordot(own, self.said, 1) + self.support
        right = np.tensordot(own, self.right, 1)
        f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        scores: NDArray[np.float64] = f1.mean(axis=2)
        return scores


def _fewest(tables: Sequence[_Table]) -> NDArray[np.float64]:
    """Give how many texts of each label the trials have at least, where they have any: (L,)."""
    supports = np.array([table.support for table in tables])
    fewest: NDArray[np.float64] = np.where(supports > 0, supports, np.inf).min(axis=0)
    return fewest


def _by_text(trials: Sequence[Mapping[str, Answers]]) -> dict[tuple[str, str], _Seen]:
    """Give for each text and label in which trials it is, and what the models answered there."""
    texts: dict[tuple[str, str], list[tuple[int, tuple[str | None, ...]]]] = defaultdict(list)
    for number, trial in enumerate(trials):
        for answers in zip(*trial.values(), strict=True):
            text, label, _ = answers[0]
            texts[text, label].append((number, tuple(said for _, _, said in answers)))
    return {key: tuple(seen) for key, seen in texts.items()}


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
            more = {*macro_f1[first], *macro_f1[second]} - {*shared}
            about = {"trials": tuple(shared), "partly": bool(more)}
            found.append(_compare(first, second, pair, scores, labels) | about)
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
    texts = [
        sum((one == label) - (other == label) for _, (one, other) in seen)
        for (_, label), seen in _by_text(pair).items()
    ]
    only_first, only_second = (sum(n > 0 for n in texts), sum(n < 0 for n in texts))
    return {
        "first": first,
        "second": second,
        "n": len(texts),
        "difference": difference,
        "interval": interval(differences),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": mcnemar(only_first, only_second),
        "needed": needed(difference, float(differences.std(ddof=1)), len(texts)),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the exact two-sided p-value that both models are right equally often (McNemar 1947).

    Of the texts that just one got right, each is as likely to be the one's as the other's. With
    texts of several trials, that is a sign test over the texts.
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
