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
        low, high = self.interval
        return (low > 0 or high < 0) and self.adjusted_p_value < 1 - LEVEL

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
    def sentence(self) -> str:
        """The comparison in words."""
        one = self.better_first
        better, worse = one.first, one.second
        low, high = (100 * end for end in one.interval)
        numbers = f"{100 * one.difference:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
        if one.partly:
            which = "trial" if len(one.trials) == 1 else "trials"
            numbers += f" on {which} {', '.join(map(str, one.trials))} only"
        p_value = f"McNemar p = {one.adjusted_p_value:.2g}"
        if one.is_real:
            return f"{better} is better than {worse} on these texts: {numbers}; {p_value}"
        if low > 0 or high < 0:
            return (
                f"{better} has a higher macro-F1 than {worse} on these texts ({numbers}), but not"
                f" more right answers than chance gives ({p_value})"
            )
        more = f"; about {one.needed:,} test texts would be needed" if one.needed else ""
        if one.adjusted_p_value < 1 - LEVEL:
            more = f", though one has more answers right ({p_value})"
        return f"{better} and {worse} cannot be told apart on these data: {numbers}{more}"


def bootstrap(
    trials: Sequence[Mapping[str, Answers]], labels: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, NDArray[np.float64]]:
    """Draw weights for the test texts; return each model's mean macro-F1 over the trials per draw.

    Every trial is a mapping from all models to their answers to the same texts. This is the
    Bayesian bootstrap (Rubin 1981): instead of drawing texts with replacement, each gets a random
    weight, Exp(1), here stratified: within a trial the weights of each label's texts add up to
    their number. It gives the same spread, and no draw is without a rare label. All models, and
    all trials that test a text, see the same weight: it is one text, however often it was answered.
    Texts that were answered alike are interchangeable, and the sum of n weights is Gamma(n), so
    that these are drawn. Returns `(resamples,)` per model.

    With Exp(1) weights, the variance of a mean over n texts is proportional to 1 / (n + 1) instead
    of 1 / (n - 1). The weights of a label with n texts in a trial are therefore Gamma(1 - 2 / n),
    with a shape of at least 1/2.

    Of more than 100 trials there are fewer draws, down to 400: their mean varies little.
    """
    patterns = Counter((label, seen) for (_, label), seen in _by_text(trials).items())
    sizes = np.array(list(patterns.values()), dtype=float)  # (P,)
    shape = (len(trials), len(trials[0]), len(labels), len(labels) + 1)  # T, M, L, L + 1
    answers = _answers(list(patterns), labels, shape)
    # texts of each label in each trial, and how many they are in a trial that has any
    support = (answers.T @ sizes).reshape(shape)[:, :1].sum(axis=3, keepdims=True)  # (T, 1, L, 1)
    fewest = np.where(support > 0, support, np.inf).min(axis=(0, 1, 3))  # (L,)
    of_label = dict(zip(labels, np.maximum(0.5, 1 - 2 / fewest), strict=True))
    shapes = sizes * [of_label[label] for label, _ in patterns]
    resamples = max(min(resamples, _FEWEST_RESAMPLES), resamples * 100 // max(100, len(trials)))
    at_once = max(1, _CELLS_AT_ONCE // max(answers.shape))
    rng = np.random.default_rng(SEED)
    draws = []
    for start in range(0, resamples, at_once):
        weights = rng.standard_gamma(shapes, (min(at_once, resamples - start), len(sizes)))
        said = (weights @ answers).reshape(-1, *shape)  # (R, T, M, L, L + 1)
        drawn = said[:, :, :1].sum(axis=4, keepdims=True)  # (R, T, 1, L, 1)
        # each label has its number of texts, whatever it was given
        said *= np.divide(support, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        right = np.diagonal(said, axis1=3, axis2=4)  # (R, T, M, L)
        both = said[..., :-1].sum(axis=3) + support[..., 0]
        f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        draws.append(f1.mean(axis=(1, 3)))  # (R, M)
    return dict(zip(trials[0], np.concatenate(draws).T, strict=True))


def _answers(
    patterns: Sequence[tuple[str, _Seen]], labels: Sequence[str], shape: tuple[int, ...]
) -> sparse.csr_matrix:
    """Count the answers to the texts of each of P patterns: (P, T * M * L * (L + 1)).

    The columns are trial, model, label and answer, of which the last is for what is no label. A
    pattern is in few trials, so that most are zeros.
    """
    index: dict[str | None, int] = {label: i for i, label in enumerate(labels)}
    cells = [
        (row, trial, model, index[label], index.get(answer, len(labels)))
        for row, (label, seen) in enumerate(patterns)
        for trial, given in seen
        for model, answer in enumerate(given)
    ]
    rows, *places = np.array(cells).T
    columns = np.ravel_multi_index(tuple(places), shape)
    return sparse.csr_matrix(
        (np.ones(len(cells)), (rows, columns)), shape=(len(patterns), math.prod(shape))
    )


def _by_text(trials: Sequence[Mapping[str, Answers]]) -> dict[tuple[str, str], _Seen]:
    """Return for each text and label its trials, with the models' answers in each."""
    texts: dict[tuple[str, str], list[tuple[int, tuple[str | None, ...]]]] = defaultdict(list)
    for number, trial in enumerate(trials):
        for same in zip(*trial.values(), strict=True):  # what the models answered to one text
            text, label, _ = same[0]
            texts[text, label].append((number, tuple(answer for _, _, answer in same)))
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
    for pair in combinations(macro_f1, 2) if pairs is None else pairs:
        first, second = pair
        shared = [k for k in trials if first in trials[k] and second in trials[k]]
        if not shared:
            continue
        answers = [{name: trials[k][name] for name in pair} for k in shared]
        draws, texts = bootstrap(answers, labels), _by_text(answers)
        differences = draws[first] - draws[second]
        means = [float(np.mean([macro_f1[name][k] for k in shared])) for name in pair]
        difference = means[0] - means[1]
        ahead = [
            sum((one == label) - (other == label) for _, (one, other) in seen)
            for (_, label), seen in texts.items()
        ]
        only_first, only_second = sum(n > 0 for n in ahead), sum(n < 0 for n in ahead)
        p_value = mcnemar(only_first, only_second)
        found.append(
            Comparison(
                first=first,
                second=second,
                n=len(texts),
                difference=difference,
                interval=interval(differences),
                only_first=only_first,
                only_second=only_second,
                p_value=p_value,
                adjusted_p_value=p_value,  # replaced below, once all are known
                trials=tuple(shared),
                partly=bool({*macro_f1[first], *macro_f1[second]} - {*shared}),
                needed=needed(difference, float(differences.std(ddof=1)), len(texts)),
            )
        )
    adjusted = holm([one.p_value for one in found])
    return [replace(one, adjusted_p_value=p) for one, p in zip(found, adjusted, strict=True)]


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
    unit: int = 10 ** max(0, len(str(int(exact))) - 2)
    return math.ceil(exact / unit) * unit
