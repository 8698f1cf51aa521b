"""Which variants a sweep tries: all combinations of some values, or some drawn at random."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tgsent.config import SweepConfig, SweepRange

if TYPE_CHECKING:
    from optuna import Trial

Settings = Mapping[str, Any]
"""What makes a variant, by dotted key."""

_MISSES = 1000
"""Draws in a row that are no new combination: there is none left."""


def count(sweep: SweepConfig) -> int:
    """Give how many variants there are."""
    if sweep.method == "tpe":
        return sweep.variants or 0
    return len(listed(sweep))


def listed(sweep: SweepConfig) -> list[Settings]:
    """Give the variants of a grid, or those that are drawn at random, each once."""
    if sweep.method == "grid":
        values = [
            list(range(int(v.low), int(v.high) + 1)) if isinstance(v, SweepRange) else v
            for v in sweep.keys.values()
        ]
        return [dict(zip(sweep.keys, chosen, strict=True)) for chosen in itertools.product(*values)]
    return list(itertools.islice(_drawn(sweep), sweep.variants))


def _drawn(sweep: SweepConfig) -> Iterator[Settings]:
    rng = random.Random(sweep.seed)
    seen: list[Settings] = []
    misses = 0
    while misses < _MISSES:
        settings = {
            key: _draw(values, rng) if isinstance(values, SweepRange) else rng.choice(values)
            for key, values in sweep.keys.items()
        }
        if settings in seen:
            misses += 1
            continue
        misses = 0
        seen.append(settings)
        yield settings


def _draw(values: SweepRange, rng: random.Random) -> float:
    if values.is_whole and not values.log:
        return rng.randint(int(values.low), int(values.high))
    if not values.log:
        return rng.uniform(values.low, values.high)
    drawn = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return round(drawn) if values.is_whole else drawn


def suggested(trial: Trial, key: str, values: Sequence[Any] | SweepRange) -> Any:
    """Have Optuna choose a value."""
    if not isinstance(values, SweepRange):  # which may be anything, so that their places are drawn
        return values[trial.suggest_categorical(key, range(len(values)))]
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def rungs(variants: int, halving: int | None) -> list[int]:
    """Give how many variants are trained in each round of successive halving.

    The last of a model's rounds, in which as many are left as `halving` or fewer, trains on all
    texts; each round before it on so many times fewer (Jamieson & Talwalkar 2016; the resource is
    the number of training texts).
    """
    counts = [variants]
    while halving and counts[-1] > halving:
        counts.append(math.ceil(counts[-1] / halving))
    return counts


def counts(sweep: SweepConfig) -> list[int]:
    """Give how many variants each round of this sweep trains."""
    return rungs(count(sweep), sweep.halving)


def shares(counts: Sequence[int], halving: int | None) -> list[float]:
    """Give the share of the training texts that each of these rounds trains on."""
    return [float(halving or 1) ** (number + 1 - len(counts)) for number in range(len(counts))]
