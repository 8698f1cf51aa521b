from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.config import SweepConfig
from tgsent.experiment.sweep import listed, rounds_of


def sweep(**settings: Any) -> SweepConfig:
    return SweepConfig.model_validate(settings)


def test_a_grid_has_every_combination_once_in_order() -> None:
    keys = {"training.loss": ["label", "full"], "training.epochs": {"low": 1, "high": 3}}
    assert listed(sweep(keys=keys)) == [
        {"training.loss": loss, "training.epochs": epochs}
        for loss in ("label", "full")
        for epochs in (1, 2, 3)
    ]


def test_random_draws_are_within_range_differ_and_depend_on_the_seed() -> None:
    keys = {
        "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "training.epochs": {"low": 1, "high": 4},
        "training.loss": ["label", "full"],
        "training.weight_decay": {"low": 0.0, "high": 0.5},
    }

    def drawn(seed: int) -> list[Any]:
        return listed(sweep(keys=keys, method="random", variants=200, seed=seed))

    found = drawn(1)
    assert found == drawn(1) != drawn(2)
    assert len(found) == 200
    rates = [one["training.learning_rate"] for one in found]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 60 < sum(rate < 1e-4 for rate in rates) < 140  # evenly by their logarithm
    assert {one["training.epochs"] for one in found} == {1, 2, 3, 4}
    assert all(isinstance(one["training.epochs"], int) for one in found)
    assert all(0 <= one["training.weight_decay"] <= 0.5 for one in found)


def test_what_is_drawn_is_never_drawn_twice_and_ends_with_the_last_combination() -> None:
    keys = {"training.loss": ["label", "full"], "training.epochs": {"low": 1, "high": 2}}
    found = listed(sweep(keys=keys, method="random", variants=50))
    assert len(found) == 4
    assert all(found.count(one) == 1 for one in found)


def rounds(variants: int, halving: int | None) -> tuple[list[int], list[float]]:
    keys = {"training.epochs": {"low": 1, "high": 10**6}}
    return rounds_of(sweep(keys=keys, method="random", variants=variants, halving=halving))


@pytest.mark.parametrize(
    ("variants", "halving", "expected"),
    [
        (12, None, [12]),
        (12, 3, [12, 4, 2]),
        (27, 3, [27, 9, 3]),
        (8, 2, [8, 4, 2]),
        (1, 2, [1]),
        (3, 3, [3]),
        (4, 3, [4, 2]),
    ],
)
def test_rounds_of_successive_halving(
    variants: int, halving: int | None, expected: list[int]
) -> None:
    counts, shares = rounds(variants, halving)
    assert counts == expected
    assert shares == [1 / (halving or 1) ** k for k in reversed(range(len(expected)))]


@given(st.integers(1, 500), st.integers(2, 6))
def test_each_round_keeps_a_share_and_the_last_is_small(variants: int, halving: int) -> None:
    counts, _ = rounds(variants, halving)
    assert counts[-1] <= halving
    assert all(b == math.ceil(a / halving) for a, b in itertools.pairwise(counts))
