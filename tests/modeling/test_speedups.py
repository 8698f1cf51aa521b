"""Speed-ups give the library's own loss, gradients and answers, in fp32; dropout its shares."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPTNeoConfig,
    PreTrainedModel,
    T5Config,
)

from tgsent.modeling import causal, seq2seq, speedups
from tgsent.modeling.family import SpecialIds, token_losses
from tgsent.records import Encoded
from tgsent.training import adapters
from tiny_models import tiny_spec

IDS = SpecialIds(pad=0, end=1, decoder_start=0)
SMALL: dict[str, Any] = {
    "gpt2": GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=97,
        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, eos_token_id=1, bos_token_id=1,
    ),
    "gpt-neo": GPTNeoConfig(
        hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=64, window_size=8,
        attention_types=[[["global", "local"], 2]], vocab_size=97, eos_token_id=1, bos_token_id=1,
    ),
    "t5": T5Config(
        d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=2, vocab_size=97, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    ),
}  # fmt: skip


def plain_and_fast(name: str, attention: str = "eager") -> tuple[PreTrainedModel, PreTrainedModel]:
    """The library's model, and one with the same weights and the speed-ups."""
    torch.manual_seed(3)
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    config = copy.deepcopy(SMALL[name])
    plain = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
    for parameter in plain.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.2)
    fast = copy.deepcopy(plain)
    speedups.apply(fast)
    return plain.train(), fast.train()


def texts(count: int = 9) -> list[Encoded]:
    numbers = torch.Generator().manual_seed(5)

    def some(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 97, (length,), generator=numbers).tolist())

    head = some(3)  # as all prompts begin with the same words
    return [Encoded((*head, *some(2 * i)), (*some(1 + i % 2), IDS.end)) for i in range(count)]


def gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    losses = token_losses(model, batch)
    losses.mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": losses.detach(), **found}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("loss", ["label", "full", "padded"])
@pytest.mark.parametrize(
    ("name", "attention"),
    [("gpt2", "eager"), ("gpt2", "sdpa"), ("gpt-neo", "eager"), ("t5", "eager"), ("t5", "sdpa")],
)
def test_loss_and_every_gradient_are_the_librarys(name: str, loss: Any, attention: str) -> None:
    plain, fast = plain_and_fast(name, attention)
    batch = (seq2seq if name == "t5" else causal).collate(texts(), IDS, loss, None)
    assert_same(gradients(fast, batch), gradients(plain, batch))


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo"])
def test_a_shared_prefix_is_read_once(name: str) -> None:
    _, fast = plain_and_fast(name)
    read: list[tuple[int, ...]] = []
    fast.get_input_embeddings().register_forward_hook(
        lambda _, args, __: read.append(args[0].shape)
    )
    batch = causal.collate(texts()[1:], IDS, "label", None)
    width = batch["input_ids"].shape[1]
    token_losses(fast, batch)
    assert read == [(1, 3), (8, width - 3)]
    read.clear()
    token_losses(fast.eval(), batch)  # not in evaluation, where prompts are padded on the left
    token_losses(fast.train(), causal.collate(texts()[1:2], IDS, "label", None))
    assert read == [(8, width), (1, 8)]


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo"])
@pytest.mark.parametrize("training", [{"gradient_checkpointing": True}, {"lora": {}}])
def test_so_they_are_beside_other_ways_to_train(name: str, training: dict[str, Any]) -> None:
    settings = tiny_spec(name, training=training).training
    plain, fast = plain_and_fast(name)
    for model in (plain, fast):
        torch.manual_seed(4)
        adapters.prepare(model, settings)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    batch = causal.collate(texts(), IDS, "label", None)
    assert_same(gradients(fast, batch), gradients(plain, batch))


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo"])
@pytest.mark.parametrize("asked", [0, 1, 3, 100, torch.tensor([4, 2])])
def test_logits_are_the_librarys_wherever_they_are_asked_for(name: str, asked: Any) -> None:
    plain, fast = (model.eval() for model in plain_and_fast(name))
    ids = torch.arange(2, 26).view(2, 12)
    for kept in ({"logits_to_keep": asked}, {}):  # what was asked for before is forgotten
        torch.testing.assert_close(
            fast(input_ids=ids, **kept).logits, plain(input_ids=ids, **kept).logits
        )


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "t5"])
def test_answers_are_the_librarys(name: str) -> None:
    plain, fast = (model.eval() for model in plain_and_fast(name))
    prompts = [text.prompt for text in texts()]
    batch = (seq2seq if name == "t5" else causal).prompt_batch(prompts, IDS)
    one, other = (
        model.generate(**batch, do_sample=False, max_new_tokens=6, pad_token_id=0)
        for model in (fast, plain)
    )
    assert one.tolist() == other.tolist()


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "t5"])
def test_the_saved_model_is_the_librarys(name: str, tmp_path: Any) -> None:
    plain, fast = plain_and_fast(name)
    for folder, model in (("plain", plain), ("fast", fast)):
        model.save_pretrained(tmp_path / folder)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "fast" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_copy_of_a_model_works_by_itself() -> None:
    _, fast = plain_and_fast("gpt2")
    other = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    logits = other(input_ids=torch.arange(2, 14)[None], logits_to_keep=1).logits
    assert logits.abs().sum() > 0


# ---------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(1)
    values = torch.ones(1_000_003)
    dropped = speedups.Dropout(share)(values)
    deviation = (share * (1 - share) / len(values)) ** 0.5
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=5 * deviation + 2**-16)
    assert dropped.mean().item() == pytest.approx(1, abs=5 * deviation / (1 - share))
    assert len(dropped.unique()) == 2


def test_dropout_lets_the_gradient_through_where_it_let_the_value_through() -> None:
    torch.manual_seed(1)
    values = torch.randn(7, 5, 3, requires_grad=True)
    result = speedups.Dropout(0.3)(values)
    result.backward(torch.full_like(result, 2.0))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, 2 * (result / values).detach())


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(1)
    kept = speedups.Dropout(0.5)(torch.ones(400_000)) > 0
    for distance in range(1, 9):  # several share one draw of 64 bits
        both = (kept[:-distance] & kept[distance:]).float().mean().item()
        assert both == pytest.approx(0.25, abs=0.004), distance
    assert not torch.equal(speedups.Dropout(0.5)(torch.ones(400_000)) > 0, kept)


def test_dropout_follows_the_seed_and_rests_in_evaluation() -> None:
    layer, values = speedups.Dropout(0.4), torch.randn(64, 3)
    one, other = (torch.manual_seed(9) and layer(values) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(layer.eval()(values), values)


def test_dropout_of_a_full_size_model_is_replaced() -> None:
    config = copy.deepcopy(SMALL["gpt2"])
    config.resid_pdrop = config.embd_pdrop = 0.1
    model = AutoModelForCausalLM.from_config(config)
    speedups.apply(model)
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert kinds == [speedups.Dropout] * (1 + 2 * config.n_layer)


def test_a_block_that_is_computed_again_drops_the_same() -> None:
    config = copy.deepcopy(SMALL["gpt2"])
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.1
    model = AutoModelForCausalLM.from_config(config).train()
    speedups.draw_less_for_dropout(model)
    speedups.skip_unread_positions(model)
    batch = causal.collate(texts(), IDS, "label", None)
    torch.manual_seed(2)
    once = gradients(model, batch)
    adapters.prepare(model, tiny_spec("gpt2", training={"gradient_checkpointing": True}).training)
    torch.manual_seed(2)
    assert_same(gradients(model, batch), once)


def test_gelu_is_the_librarys() -> None:
    _, fast = plain_and_fast("gpt2")
    values = torch.linspace(-8, 8, 4001)
    act = fast.get_submodule("transformer.h.0.mlp.act")
    cube = 0.044715 * values**3
    plain = 0.5 * values * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (values + cube)))
    torch.testing.assert_close(act(values), plain, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(act(values), functional.gelu(values), atol=1e-5)
