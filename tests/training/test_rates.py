"""The learning rate that `auto` becomes."""

from __future__ import annotations

from typing import Any

import pytest

from tgsent.config import TrainingConfig
from tgsent.modeling import causal, seq2seq
from tgsent.modeling.family import Family
from tgsent.training.rates import learning_rate

BILLION = 10**9


@pytest.mark.parametrize(
    ("family", "parameters", "rate"),
    [
        (causal, 124_439_808, 6.25e-5),
        (causal, BILLION // 2, 6.25e-5),
        (causal, BILLION // 2 + 1, 2e-5),
        (causal, 2 * BILLION, 2e-5),
        (causal, 2 * BILLION + 1, 1e-5),
        (causal, 70 * BILLION, 1e-5),
        (seq2seq, 222_903_552, 3e-4),
        (seq2seq, BILLION, 3e-4),
        (seq2seq, BILLION + 1, 1e-4),
    ],
)
def test_auto_is_by_family_and_size(family: Family, parameters: int, rate: float) -> None:
    assert learning_rate(TrainingConfig(), family, parameters) == rate


@pytest.mark.parametrize("parameters", [BILLION // 10, 10 * BILLION])
@pytest.mark.parametrize(
    ("training", "family", "rate"),
    [
        ({"lora": {}}, causal, 2e-4),
        ({"lora": {}}, seq2seq, 3e-4),
        ({"init": "tiny"}, causal, 1e-3),
        ({"init": "tiny"}, seq2seq, 1e-3),
        ({"init": "random"}, causal, 3e-4),
        ({"init": "random"}, seq2seq, 3e-4),
        ({"init": "random", "lora": {}}, causal, 3e-4),
        ({"backend": "simplet5"}, seq2seq, 1e-4),
        ({"learning_rate": 0.5}, causal, 0.5),
        ({"learning_rate": 0.5, "init": "tiny", "lora": {}}, causal, 0.5),
    ],
)
def test_other_ways_of_training_have_one_rate(
    training: dict[str, Any], family: Family, rate: float, parameters: int
) -> None:
    assert learning_rate(TrainingConfig.model_validate(training), family, parameters) == rate
