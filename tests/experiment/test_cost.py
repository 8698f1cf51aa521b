from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from tgsent.experiment import cost
from tgsent.records import Split
from tiny_models import examples, tiny_spec

TEXTS = examples(80)
SPLIT = Split(1, 1, tuple(TEXTS[:60]), tuple(TEXTS[60:]), "5" * 64, 0)


@pytest.mark.parametrize(
    ("sizes", "seconds", "expected"),
    [
        (range(10, 1010), lambda size: 0.5 + 0.01 * size, 500 + 0.01 * sum(range(10, 1010))),
        ([7] * 100, lambda _: 2.0, 200.0),
        ([5], lambda size: size, 5.0),
        ([1, 2, 3], lambda size: 4.0 - size, 6.0),  # noise: no part takes less for being longer
    ],
)
def test_all_parts_take_what_the_measured_ones_tell(
    sizes: Sequence[int],
    seconds: Callable[[int], float],
    expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []
    monkeypatch.setattr(cost, "timeit", lambda work, number: number * work())

    def work(part: int) -> float:
        measured.append(part)
        return seconds(sizes[part])

    assert cost._extrapolated(list(sizes), work) == pytest.approx(expected)
    assert len(measured) <= 6
    assert sizes[measured[0]] == max(sizes)  # which needs the most memory, and warms up


@pytest.mark.parametrize("model", ["gpt2", "gpt-neo", "t5"])
def test_a_trial_is_measured_in_a_few_steps(model: str) -> None:
    found = cost.measure(tiny_spec(model), SPLIT)
    for seconds in (found.loading_seconds, found.training_seconds, found.evaluation_seconds):
        assert 0 < seconds < 60
    assert found.peak_memory_bytes > 50_000_000
    assert math.isclose(
        found.seconds,
        found.loading_seconds + found.training_seconds + found.evaluation_seconds,
    )


def test_twice_the_epochs_take_twice_the_time() -> None:
    one, ten = (
        cost.measure(tiny_spec("gpt2", training={"epochs": epochs}), SPLIT).training_seconds
        for epochs in (1, 10)
    )
    assert 3 < ten / one < 30
    assert cost.measure(tiny_spec("gpt2", training={"epochs": 0}), SPLIT).training_seconds == 0


def test_lora_and_full_padding_are_measured_as_well() -> None:
    for training in ({"lora": {"r": 2}}, {"padding": "max_tokens"}, {"gradient_accumulation": 4}):
        assert cost.measure(tiny_spec("gpt2", training=training), SPLIT).training_seconds > 0
