"""Is a difference more than chance? Intervals and tests over the held-out texts.

Everything here takes the trained models as they are and asks what other test texts of the same kind
would have given. What another training would have given, only several trials can show.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special  # of which stats takes half a second to import

RESAMPLES = 5_000
_FEWEST_RESAMPLES = 400
SEED = 1
LEVEL = 0.95
_POWER = 0.8
_CELLS_AT_ONCE = 2**20  # of a table of draws: bounds the memory

Interval = tuple[float, float]

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
    interval: Interval
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
        """Whether interval and test agree that the difference is more than chance."""
        return self._interval_excludes_zero and self._test_is_significant

    @property
    def better_first(self) -> Comparison:
        """The same comparison, with the model that has the higher macro-F1 first."""
        if self.difference >= 0:
            return self
        low, high = self.interval
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=-self.difference,
            interval=(-high, -low),
            only_first=self.only_second,
            only_second=self.only_first,
        )

    @property
    def _interval_excludes_zero(self) -> bool:
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def _test_is_significant(self) -> bool:
        return self.adjusted_p_value < 1 - LEVEL

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        one = self.better_first
        better, worse = one.first, one.second
        low, high = (100 * end for end in one.interval)
        numbers = f"{100 * one.difference:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
        if self.partly:
            which = "trial" if len(self.trials) == 1 else "trials"
            numbers += f" on {which} {', '.join(map(str, self.trials))} only"
        p_value = f"McNemar p = {self.adjusted_p_value:.2g}"
        if self.is_real:
            return f"{better} is better than {worse} on these texts: {numbers}; {p_value}"
        if self._interval_excludes_zero:
            return (
                f"{better} has a higher macro-F1 than {worse} on these texts ({numbers}), but not"
                f" more right answers than chance gives ({p_value})"
            )
        more = f"; about {self.needed:,} test texts would be needed" if self.needed else ""
        if self._test_is_significant:
            more = f", though one has more answers right ({p_value})"
        return f"{better} and {worse} cannot be told apart on these data: {numbers}{more}"


def bootstrap(
    trials: Sequence[Mapping[str, Answers]], labels: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, NDArray[np.float64]]:
    """Weigh the test texts anew; return each model's mean macro-F1 over the trials in each draw.

    Every trial is a mapping from all models to their answers to the same texts. This is the
    Bayesian bootstrap (Rubin 1981): instead of drawing texts with replacement, each gets a random
    weight, Exp(1), here stratified: within a trial the weights of each label's texts add up to
    their number. It gives the same spread, and no draw is without a rare label. All models, and
    all trials that test a text, see the same weight: it is one text, however often it was answered.
    Texts that were answered alike are interchangeable, and the sum of n weights is Gamma(n), so
    that these are drawn. Returns `(resamples,)` per model.

    As it is, the spread of a mean over n texts would be that of n + 1, where n - 1 is right; the
    weights of a label with n texts in a trial are therefore Gamma(1 - 2 / n), and at least of 1/2.

    Of more than 100 trials there are fewer draws, down to 400: their mean varies little.
    """
    return _draw(_by_text(trials), list(trials[0]), len(trials), labels, resamples)


def _draw(
    texts: Mapping[tuple[str, str], _Seen],
    models: Sequence[str],
    trials: int,
    labels: Sequence[str],
    resamples: int,
) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(SEED)
    patterns = Counter((label, seen) for (_, label), seen in texts.items())
    sizes = np.array(list(patterns.values()), dtype=float)
    table = _Table.of(list(patterns), sizes, trials, len(models), labels)
    fewest = dict(zip(labels, table.fewest, strict=True))
    shapes = np.array([max(0.5, 1 - 2 / fewest[label]) for label, _ in patterns])
    resamples = max(min(resamples, _FEWEST_RESAMPLES), resamples * 100 // max(100, trials))
    at_once = max(1, _CELLS_AT_ONCE // max(len(sizes), table.cells))
    draws = []
    for start in range(0, resamples, at_once):
        size = (min(at_once, resamples - start), len(sizes))
        draws.append(table.macro_f1(rng.standard_gamma(sizes * shapes, size)))
    return dict(zip(models, np.concatenate(draws).T, strict=True))


@dataclass(frozen=True)
class _Table:
    """What P patterns of answers count in T trials, for M models and L labels.

    A pattern is in few trials, so that its counts are mostly zeros.
    """

    texts: sparse.csr_matrix
    """Number of texts of each pattern in each trial, by label: (P, T * L)."""
    answers: sparse.csr_matrix
    """Number of answers of each model to them: (P, T * M * L * L), by label and then by answer."""
    support: NDArray[np.float64]
    """Texts of each label in each trial, (T, L)."""
    models: int

    @classmethod
    def of(
        cls,
        patterns: Sequence[tuple[str, _Seen]],
        sizes: NDArray[np.float64],
        trials: int,
        models: int,
        labels: Sequence[str],
    ) -> _Table:
        """Count the answers."""
        index: dict[str | None, int] = {label: i for i, label in enumerate(labels)}
        n = len(labels)
        times = [len(seen) for _, seen in patterns]
        rows = np.repeat(np.arange(len(patterns)), times)
        true = np.repeat([index[label] for label, _ in patterns], times)
        trial = np.array([k for _, seen in patterns for k, _ in seen])
        given = np.array(
            [[index.get(a, n) for a in answers] for _, seen in patterns for _, answers in seen]
        )
        counted = _counts(rows, trial * n + true, (len(patterns), trials * n))
        cell = ((trial[:, None] * models + np.arange(models)) * n + true[:, None]) * n + given
        is_label = given < n
        which = np.broadcast_to(rows[:, None], given.shape)[is_label]
        answered = _counts(which, cell[is_label], (len(patterns), trials * models * n * n))
        return cls(
            texts=counted,
            answers=answered,
            support=(counted.T @ sizes).reshape(trials, n),
            models=models,
        )

    @property
    def cells(self) -> int:
        """Numbers that one draw takes."""
        return int(self.answers.shape[1])

    @property
    def fewest(self) -> NDArray[np.float64]:
        """How many texts of each label the trials have at least, where they have any: (L,)."""
        found: NDArray[np.float64] = np.where(self.support > 0, self.support, np.inf).min(axis=0)
        return found

    def macro_f1(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score the models where the patterns have these weights: (R, P) to (R, M).

        Returns the mean over the trials.
        """
        trials, n = self.support.shape
        drawn = (weights @ self.texts).reshape(-1, trials, n)
        # each label has its number of texts, whatever it was given
        scale = np.divide(self.support, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        said = (weights @ self.answers).reshape(-1, trials, self.models, n, n)
        said *= scale[:, :, None, :, None]
        right = np.diagonal(said, axis1=3, axis2=4)
        both = said.sum(axis=3) + self.support[:, None, :]
        f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        scores: NDArray[np.float64] = f1.mean(axis=(1, 3))
        return scores


def _counts(
    rows: NDArray[np.intp], columns: NDArray[np.intp], shape: tuple[int, int]
) -> sparse.csr_matrix:
    """Count how often each place, row and column, is named."""
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def _by_text(trials: Sequence[Mapping[str, Answers]]) -> dict[tuple[str, str], _Seen]:
    """Return for each text and label its trials, with the models' answers in each."""
    texts: dict[tuple[str, str], list[tuple[int, tuple[str | None, ...]]]] = defaultdict(list)
    for number, trial in enumerate(trials):
        said = zip(*([answer for _, _, answer in own] for own in trial.values()), strict=True)
        for (text, label, _), answers in zip(next(iter(trial.values())), said, strict=True):
            texts[text, label].append((number, answers))
    return {key: tuple(seen) for key, seen in texts.items()}


def interval(draws: NDArray[np.float64]) -> Interval:
    """Return the percentile interval of a bootstrap distribution (Efron 1979)."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(
    trials: Mapping[int, Mapping[str, Answers]],
    macro_f1: Mapping[str, Mapping[int, float]],
    labels: Sequence[str],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Comparison]:
    """Compare these pairs of models, or every two, on the trials that both have.

    `trials` holds each trial's answers by model, `macro_f1` each model's scores by trial.
    """
    found = []
    for first, second in combinations(macro_f1, 2) if pairs is None else pairs:
        shared = [k for k in trials if first in trials[k] and second in trials[k]]
        if shared:
            found.append(_compare(first, second, shared, trials, macro_f1, labels))
    adjusted = holm([one.p_value for one in found])
    return [replace(one, adjusted_p_value=p) for one, p in zip(found, adjusted, strict=True)]


def _compare(
    first: str,
    second: str,
    shared: Sequence[int],
    trials: Mapping[int, Mapping[str, Answers]],
    macro_f1: Mapping[str, Mapping[int, float]],
    labels: Sequence[str],
) -> Comparison:
    """Compare two models on the trials that both have; the p-value is not adjusted yet."""
    texts = _by_text([{name: trials[k][name] for name in (first, second)} for k in shared])
    draws = _draw(texts, [first, second], len(shared), labels, RESAMPLES)
    differences = draws[first] - draws[second]
    means = [float(np.mean([macro_f1[name][k] for k in shared])) for name in (first, second)]
    difference = means[0] - means[1]
    ahead = [
        sum((one == label) - (other == label) for _, (one, other) in seen)
        for (_, label), seen in texts.items()
    ]
    only_first, only_second = (sum(n > 0 for n in ahead), sum(n < 0 for n in ahead))
    p_value = mcnemar(only_first, only_second)
    return Comparison(
        first=first,
        second=second,
        n=len(texts),
        difference=difference,
        interval=interval(differences),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        adjusted_p_value=p_value,
        trials=tuple(shared),
        partly=bool({*macro_f1[first], *macro_f1[second]} - {*shared}),
        needed=needed(difference, float(differences.std(ddof=1)), len(texts)),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that both models are right equally often (McNemar 1947).

    Of the texts that just one got right, each is as likely to be the one's as the other's. With
    texts of several trials, that is a sign test over the texts.
    """
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    # twice the smaller tail: with a chance of one half both are alike
    return min(1.0, 2 * float(special.bdtr(fewer, discordant, 0.5))) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down procedure (Holm 1979)."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def needed(difference: float, standard_error: float, n: int) -> int | None:
    """Return how many test texts would show a difference of this size with a power of 80 %.

    The standard error falls with the root of the number of texts; for a two-sided test at 5 %,
    n (z_0.975 + z_0.8)^2 (standard error / difference)^2, to two digits.
    """
    if abs(difference) < 1e-9 or standard_error == 0:
        return None
    z = float(special.ndtri((1 + LEVEL) / 2) + special.ndtri(_POWER))
    exact = n * (z * standard_error / difference) ** 2
    if exact > 1e9:
        return None
    unit: int = 10 ** max(0, math.floor(math.log10(max(exact, 1))) - 1)
    return math.ceil(exact / unit) * unit
