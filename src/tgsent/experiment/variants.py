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
"""The values that a variant changes, by dotted key."""

_MISSES = 1000
"""After so many draws without a new combination, none is assumed to be left."""


def count(sweep: SweepConfig) -> int:
    """Return the number of variants."""
    if sweep.method == "tpe":
        return sweep.variants or 0
    return len(listed(sweep))


def listed(sweep: SweepConfig) -> list[Settings]:
    """Return the variants of a grid, or those drawn at random, each once."""
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
    """Return the value that Optuna suggests."""
    if not isinstance(values, SweepRange):  # Optuna takes few types, so it draws an index
        return values[trial.suggest_categorical(key, range(len(values)))]
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def rungs(variants: int, halving: int | None) -> list[int]:
    """Return the number of variants in each round of successive halving.

    The last round, with at most `halving` variants, trains on all texts; each round before it on
    `halving` times fewer (Jamieson & Talwalkar 2016; the resource is the number of texts).
    """
    counts = [variants]
    while halving and counts[-1] > halving:
        counts.append(math.ceil(counts[-1] / halving))
    return counts


def counts(sweep: SweepConfig) -> list[int]:
    """Return the number of variants in each round of this sweep."""
    return rungs(count(sweep), sweep.halving)


def shares(counts: Sequence[int], halving: int | None) -> list[float]:
    """Return the share of the training texts that each of these rounds trains on."""
    return [float(halving or 1) ** (number + 1 - len(counts)) for number in range(len(counts))]
