"""What `auto` becomes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tgsent.config import TrainingConfig
from tgsent.errors import UnavailableError
from tgsent.modeling import causal, seq2seq
from tgsent.modeling.family import Family
from tgsent.training import recipe
from tgsent.training.recipe import Recipe

BILLION = 10**9


def resolve(
    family: Family = causal, parameters: int = BILLION, examples: int = 100, **training: Any
) -> Recipe:
    settings = TrainingConfig.model_validate({"device": "cpu", **training})
    return recipe.resolve(settings, family, parameters, examples)


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
    assert resolve(family, parameters).learning_rate == rate


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
        ({"learning_rate": 0.5}, causal, 0.5),
        ({"learning_rate": 0.5, "init": "tiny", "lora": {}}, causal, 0.5),
    ],
)
def test_other_ways_of_training_have_one_rate(
    training: dict[str, Any], family: Family, rate: float, parameters: int
) -> None:
    assert resolve(family, parameters, **training).learning_rate == rate


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [
        (0, 50, 0), (0.1, 50, 5), (0.25, 10, 2), (0.99, 10, 10), (1, 50, 1), (100.0, 50, 100),
        ("auto", 50, 5),
    ],
)  # fmt: skip
def test_warmup_steps(warmup: float | str, total: int, steps: int) -> None:
    resolved = resolve(examples=total, batch_size=1, epochs=1, warmup_steps=warmup)
    assert resolved.warmup_steps == steps


def test_steps_are_counted_with_the_last_batch_of_each_epoch() -> None:
    resolved = resolve(examples=41, batch_size=8, epochs=3)
    assert (resolved.steps_per_epoch, resolved.total_steps) == (6, 18)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, (1.0, None, "longest", "label")),
        ({"max_grad_norm": None}, (None, None, "longest", "label")),
        ({"padding": "max_tokens", "max_tokens": 60}, (1.0, 60, "max_tokens", "label")),
        ({"loss": "full"}, (1.0, None, "longest", "full")),
        ({"loss": "full", "loss_on_padding": True}, (1.0, None, "longest", "padded")),
    ],
)
def test_clipping_padding_and_counted_tokens(
    training: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    got = resolve(seq2seq, **training)
    assert (got.max_grad_norm, got.pad_to, got.padding, got.counted) == expected


def has_devices(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "device", "resolved"),
    [
        (True, True, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (False, False, "auto", "cpu"),
        (True, True, "cpu", "cpu"),
        (True, False, "cuda", "cuda"),
        (False, True, "mps", "mps"),
    ],
)
def test_resolve_device(
    cuda: bool, mps: bool, device: str, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_devices(monkeypatch, cuda=cuda, mps=mps)
    assert recipe.resolve_device(device) == resolved


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has_devices(monkeypatch, cuda=False, mps=False)
    with pytest.raises(UnavailableError, match=f"there is no {device} device"):
        recipe.resolve_device(device)


@pytest.mark.parametrize(
    ("amx", "avx512", "resolved"),
    [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16"), (True, True, "bf16")],
)
def test_auto_precision_on_cpu_is_what_the_processor_has(
    amx: bool, avx512: bool, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert recipe.resolve_precision(TrainingConfig(), "cpu") == resolved
    assert recipe.resolve_precision(TrainingConfig(), "mps") == "fp32"
    assert recipe.resolve_precision(TrainingConfig(init="tiny"), "cpu") == "fp32"


@pytest.mark.parametrize(
    ("precision", "device"),
    [("fp32", "cpu"), ("bf16", "cpu"), ("fp32", "cuda"), ("bf16", "cuda"), ("fp16", "cuda")],
)
def test_a_named_precision_is_taken(precision: Any, device: str) -> None:
    assert recipe.resolve_precision(TrainingConfig(precision=precision), device) == precision


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_fp16_needs_cuda(device: str) -> None:
    with pytest.raises(UnavailableError, match=f"fp16 needs a cuda device.* on {device}"):
        recipe.resolve_precision(TrainingConfig(precision="fp16"), device)
