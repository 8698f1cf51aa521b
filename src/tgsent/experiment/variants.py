"""Which variants a sweep tries: all combinations of some values, or some drawn at random."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tgsent.config import SweepConfig, SweepRange

if TYPE_CHECKING:
    from optuna import Trial

Settings = Mapping[str, object]
"""The values that a variant changes, by dotted key."""

_MISSES = 1000
"""After so many draws without a new combination, none is assumed to be left."""


def listed(sweep: SweepConfig) -> list[Settings]:
    """Return the variants of a grid, or those drawn at random, each once."""
    if sweep.method == "grid":
        values = [
            list(range(int(v.low), int(v.high) + 1)) if isinstance(v, SweepRange) else v
            for v in sweep.keys.values()
        ]
        return [dict(zip(sweep.keys, chosen, strict=True)) for chosen in itertools.product(*values)]
    rng = random.Random(sweep.seed)
    found: list[Settings] = []
    misses = 0
    while len(found) < (sweep.variants or 0) and misses < _MISSES:
        settings = {
            key: _draw(values, rng) if isinstance(values, SweepRange) else rng.choice(values)
            for key, values in sweep.keys.items()
        }
        misses = misses + 1 if settings in found else 0
        if not misses:
            found.append(settings)
    return found


def _draw(values: SweepRange, rng: random.Random) -> float:
    if values.is_whole and not values.log:
        return rng.randint(int(values.low), int(values.high))
    if not values.log:
        return rng.uniform(values.low, values.high)
    drawn = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return round(drawn) if values.is_whole else drawn


def suggested(trial: Trial, key: str, values: Sequence[object] | SweepRange) -> object:
    """Return the value that Optuna suggests."""
    if not isinstance(values, SweepRange):  # Optuna takes few types, so it draws an index
        return values[trial.suggest_categorical(key, range(len(values)))]
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def rounds(sweep: SweepConfig) -> tuple[list[int], list[float]]:
    """Return the number of variants in each round, and the share of the texts they train on.

    In successive halving, the last round, with at most `halving` variants, trains on all texts;
    each round before it on `halving` times fewer (Jamieson & Talwalkar 2016; the resource is the
    number of texts).
    """
    counts = [sweep.variants or 0 if sweep.method == "tpe" else len(listed(sweep))]
    halving = sweep.halving
    while halving and counts[-1] > halving:
        counts.append(math.ceil(counts[-1] / halving))
    last = len(counts) - 1
    return counts, [float(halving or 1) ** (number - last) for number in range(len(counts))]
