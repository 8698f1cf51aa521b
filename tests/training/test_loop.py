import copy
import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup

from tgsent.config import TrainingConfig
from tgsent.errors import TrialError
from tgsent.modeling import causal, loading
from tgsent.modeling.family import Batch
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded
from tgsent.training import loop
from tgsent.training.checkpoint import Position
from tgsent.training.recipe import resolve
from tiny_models import FAMILIES, Silent, encode, examples, set_dropout, tiny_spec

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


def train(
    loaded: LoadedModel,
    encoded: Sequence[Encoded],
    training: TrainingConfig,
    *,
    learning_rate: float = 2e-3,
    collate: Callable[[Sequence[Encoded]], Batch] | None = None,
    progress: Silent | None = None,
) -> Position:
    recipe = resolve(training, loaded.family, loaded.model.num_parameters(), len(encoded))
    if collate is not None:
        family = SimpleNamespace(collate=lambda batch, **_: collate(batch))
        loaded = dataclasses.replace(loaded, family=family)
    return loop.train(
        loaded,
        encoded,
        dataclasses.replace(recipe, learning_rate=learning_rate),
        seed=3,
        accelerator=loop.make_accelerator(training),
        progress=progress or Silent(),
        title="a trial",
    )


@cache
def fresh(model: str) -> LoadedModel:
    torch.manual_seed(0)
    loaded = loading.load(tiny_spec(model), examples(40))
    set_dropout(loaded.model, 0.0)
    return loaded


def prepared(model: str, **training: Any) -> tuple[LoadedModel, list[Encoded], TrainingConfig]:
    """A freshly initialised tiny model without dropout, and 40 examples."""
    spec = tiny_spec(model, training=training)
    loaded = dataclasses.replace(fresh(model), model=copy.deepcopy(fresh(model).model))
    return loaded, encode(loaded, spec, examples(40)), spec.training


@given(LENGTHS, st.integers(1, 9), st.booleans(), st.integers(0, 2**40))
def test_every_example_is_in_one_batch_of_an_epoch(
    lengths: list[int], batch_size: int, grouped: bool, seed: int
) -> None:
    batches = loop.epoch_batches(lengths, batch_size, seed, grouped=grouped)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    sizes = sorted(map(len, batches), reverse=True)
    full, rest = divmod(len(lengths), batch_size)
    assert sizes == [batch_size] * full + [rest] * bool(rest)
    assert batches == loop.epoch_batches(lengths, batch_size, seed, grouped=grouped)


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_differ_between_epochs(grouped: bool) -> None:
    lengths = [i % 30 for i in range(200)]
    one, other = (loop.epoch_batches(lengths, 8, seed, grouped=grouped) for seed in (1, 2))
    assert sorted(map(sorted, one)) != sorted(map(sorted, other))


def test_batches_do_not_depend_on_or_touch_the_global_generator() -> None:
    random.seed(1)
    one = loop.epoch_batches([1, 2, 3, 4], 2, 5, grouped=False)
    assert random.random() == random.Random(1).random()
    assert one == loop.epoch_batches([1, 2, 3, 4], 2, 5, grouped=False)


def test_grouped_batches_are_of_about_one_length_and_in_random_order() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(10, 60) for _ in range(1_000)]

    def spreads(grouped: bool) -> list[int]:
        return [
            max(lengths[i] for i in batch) - min(lengths[i] for i in batch)
            for batch in loop.epoch_batches(lengths, 8, 1, grouped=grouped)
        ]

    assert max(spreads(True)) <= 5 < 25 < sum(spreads(False)) / 125
    batches = loop.epoch_batches(lengths[:400], 8, 1, grouped=True)
    means = [sum(lengths[i] for i in batch) / 8 for batch in batches]
    rising = sum(one < other for one, other in pairwise(means))
    assert 10 < rising < 40  # of 49; sorted by length it would be all


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 10), (1, 4), (3, 10), (10, 10), (5, 3)])
def test_linear_schedule_is_that_of_transformers(warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = get_linear_schedule_with_warmup(optimizer, warmup, total).lr_lambdas[0]
    training = TrainingConfig(epochs=1, warmup_steps=warmup, learning_rate=1e-3, batch_size=1)
    ours = resolve(training, causal, 1, total)
    assert [ours.rate_at(step) for step in range(total + 2)] == pytest.approx(
        [1e-3 * factor(step) for step in range(total + 2)]
    )


@pytest.mark.parametrize("model", FAMILIES)
def test_only_matrices_are_decayed_and_each_parameter_once(model: str) -> None:
    spec = tiny_spec(model)
    network = loading.describe(spec, examples(10)).model
    decayed, plain = loop.make_optimizer(network, 0.01, 0.1).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert (decayed["lr"], plain["lr"]) == (0.01, 0.01)
    named = {id(p): name for name, p in network.named_parameters()}
    names = [[named[id(p)] for p in group["params"]] for group in (decayed, plain)]
    assert sorted(names[0] + names[1]) == sorted(named.values())
    assert all(name.endswith(".bias") or "norm" in name or ".ln_" in name for name in names[1])
    assert not any(name.endswith(".bias") or "norm" in name or ".ln_" in name for name in names[0])
    embeddings = network.get_input_embeddings().weight
    assert sum(p is embeddings for p in decayed["params"]) == 1


def test_frozen_parameters_are_left_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    decayed, plain = loop.make_optimizer(layer, 0.01, 0.1).param_groups
    assert decayed["params"] == []
    assert plain["params"] == [layer.bias]


@pytest.mark.parametrize("model", FAMILIES)
def test_training_lowers_the_loss_and_logs_each_step(model: str) -> None:
    epochs = range(1, 29)
    loaded, encoded, training = prepared(model, epochs=len(epochs), batch_size=6, warmup_steps=2)
    progress = Silent()
    trained = train(loaded, encoded, training, progress=progress)
    total = len(epochs) * math.ceil(40 / 6)
    assert trained.step == total
    assert trained.seconds > 0
    assert [row["step"] for row in trained.log] == list(range(1, total + 1))
    assert [row["epoch"] for row in trained.log] == [e for e in epochs for _ in range(7)]
    rates = [2e-3 * min(step / 2, (total - step) / (total - 2)) for step in range(total)]
    assert [row["learning_rate"] for row in trained.log] == pytest.approx(rates)
    losses = [row["loss"] for row in trained.log]
    assert sum(losses[-7:]) < sum(losses[:7]) / 2
    assert not loaded.model.training
    assert [line.partition(",")[0] for line in progress.lines] == [
        f"a trial: epoch {epoch}/28" for epoch in epochs
    ]


def test_every_epoch_has_other_batches() -> None:
    loaded, encoded, training = prepared("gpt2", epochs=3, batch_size=10)
    batches: list[frozenset[Encoded]] = []

    def collate(batch: Sequence[Encoded]) -> Batch:
        batches.append(frozenset(batch))
        return loaded.family.collate(batch, loaded.ids, "label", None)

    train(loaded, encoded, training, collate=collate)
    epochs = [set(batches[start : start + 4]) for start in (0, 4, 8)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(frozenset.union(*epoch) == frozenset(encoded) for epoch in epochs)


def test_long_training_logs_about_a_hundred_rows_and_the_last_step() -> None:
    loaded, encoded, training = prepared("gpt2", epochs=52, batch_size=2)
    trained = train(loaded, encoded[:8], training)
    assert [row["step"] for row in trained.log] == [*range(2, 208, 2), 208]


def test_first_loss_is_the_mean_over_the_counted_tokens_of_an_untrained_model() -> None:
    loaded, encoded, training = prepared("gpt2", batch_size=40, loss="full")
    (row,) = train(loaded, encoded, training).log
    assert row["loss"] == pytest.approx(math.log(len(loaded.tokenizer)), rel=0.05)


Gradients = list[list[torch.Tensor]]


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """The gradients of all parameters that each optimizer step got."""
    steps: Gradients = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *arguments: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        steps.append([p.grad.clone() for p in parameters])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    return steps


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("parts", [3, 64])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    model: str, parts: int, gradients: Gradients
) -> None:
    """The parts hold unequal numbers of tokens, and their gradients still add up."""
    for accumulation in (1, parts):
        loaded, encoded, training = prepared(
            model,
            batch_size=40,
            loss="full",
            max_grad_norm=None,
            gradient_accumulation=accumulation,
        )
        train(loaded, encoded, training)
    whole, added = gradients
    assert max(float(g.abs().max()) for g in whole) > 1e-2
    for one, other in zip(whole, added, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_step_has_a_gradient_of_its_own(gradients: Gradients) -> None:
    """Steps too small to change the model see one gradient, not the sum of all so far."""
    prepared_model = prepared("gpt2", batch_size=40, epochs=3, max_grad_norm=None)
    train(*prepared_model, learning_rate=1e-20)
    for step in gradients[1:]:
        for one, other in zip(gradients[0], step, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def norms(gradients: Gradients) -> list[float]:
    return [float(torch.nn.utils.get_total_norm(step)) for step in gradients]


def test_gradients_are_clipped_to_max_grad_norm(gradients: Gradients) -> None:
    train(*prepared("gpt2", max_grad_norm=0.01))
    assert norms(gradients) == pytest.approx([0.01] * 5, rel=1e-3)


def test_without_max_grad_norm_nothing_is_clipped(gradients: Gradients) -> None:
    train(*prepared("gpt2", max_grad_norm=None))
    assert len(gradients) == 5
    assert min(norms(gradients)) > 0.5


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_at_that_step(poison: float) -> None:
    loaded, encoded, training = prepared("gpt2", batch_size=8)
    steps = 0

    def collate(batch: Sequence[Encoded]) -> Batch:
        nonlocal steps
        steps += 1
        if steps == 3:
            loaded.model.get_input_embeddings().weight.data.fill_(poison)
        return loaded.family.collate(batch, loaded.ids, training.loss, None)

    with pytest.raises(
        TrialError, match=r"^a trial: the loss is (nan|inf) at step 3 of 5; lower training"
    ):
        train(loaded, encoded, training, collate=collate)
    assert steps == 3


def test_a_learning_rate_far_too_large_ends_the_trial() -> None:
    loaded, encoded, training = prepared("gpt2", warmup_steps=0)
    with pytest.raises(TrialError, match="the loss is"):
        train(loaded, encoded, training, learning_rate=1e38)


def test_weights_that_the_last_step_ruined_end_the_trial() -> None:
    loaded, encoded, training = prepared("gpt2", batch_size=40, warmup_steps=0)
    with pytest.raises(TrialError, match=r"some weights are not finite at step 1 of 1; lower"):
        train(loaded, encoded, training, learning_rate=1e39)


def test_one_process_trains_in_one_precision_after_the_other() -> None:
    def losses(precision: str) -> list[float]:
        loaded, encoded, training = prepared("gpt2", precision=precision)
        return [row["loss"] for row in train(loaded, encoded, training).log]

    fp32, bf16, fp32_again = losses("fp32"), losses("bf16"), losses("fp32")
    assert fp32 == fp32_again
    assert fp32 != bf16
    assert bf16 == pytest.approx(fp32, rel=0.1)


def test_make_accelerator_takes_what_the_config_says() -> None:
    for precision, mixed in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        made = loop.make_accelerator(TrainingConfig(device="cpu", precision=precision))
        assert (made.device.type, made.mixed_precision) == ("cpu", mixed)
