"""What training changes, and what it keeps for the backward pass."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tgsent.backends import TrialFolders
from tgsent.config import LoraConfig, RunConfig, TrainingConfig
from tgsent.data import dataset, splits
from tgsent.errors import ConfigError, UnavailableError
from tgsent.modeling import loading, speedups, tiny
from tgsent.modeling.family import token_losses
from tgsent.records import Example, Split
from tgsent.training import adapters
from tiny_models import (
    FAMILIES,
    LABELS,
    Silent,
    check,
    encode,
    examples,
    run_trial,
    tiny_model,
    tiny_spec,
)

TEXTS = examples(60)
SPLIT = Split(1, 1, tuple(TEXTS[:48]), tuple(TEXTS[48:]), sha256="5" * 64, overlap=0)
SMALL = {"r": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def sample() -> Split:
    """850 of the shipped made-up tweets to train on, 150 to test on."""
    config = RunConfig.model_validate(
        {"trials": 1, "data": {"path": "sample", "sample_size": 1_000, "test_fraction": 0.15}}
    )
    (split,) = splits.TrialSplits(dataset.load_dataset(config.data), config)
    return split


def gradients_and_saved_bytes(model: str, **training: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one batch, and the bytes kept for its backward pass, weights left out."""
    spec = tiny_spec(model, training={"loss": "full", **training})
    loaded = tiny_model(spec)
    adapters.prepare(loaded.model, spec.training)
    own = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    encoded = encode(loaded, spec, examples(16))
    batch = loaded.family.collate(encoded, loaded.ids, "full", None)
    loaded.model.train()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = token_losses(loaded.model, batch).mean()
    size = sum(kept.values())
    loss.backward()
    named = loaded.model.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}, size


@pytest.mark.parametrize("lora", [None, SMALL])
@pytest.mark.parametrize("model", FAMILIES)
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(
    model: str, lora: dict[str, Any] | None
) -> None:
    plain, plain_bytes = gradients_and_saved_bytes(model, lora=lora)
    less, less_bytes = gradients_and_saved_bytes(model, lora=lora, gradient_checkpointing=True)
    assert less_bytes < 0.6 * plain_bytes
    assert plain.keys() == less.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(less[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_trial_dropout_and_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny.architecture("gpt2", "gpt2", 64)
    config.embd_pdrop = config.resid_pdrop = config.attn_pdrop = 0.1
    monkeypatch.setattr(tiny, "architecture", lambda *_: config)
    # it is left out beside checkpointing, and where it is not, all copies of a prefix drop the same
    monkeypatch.setattr(speedups, "read_prefix_once", lambda _: None)
    plain, less = (
        run_trial(tiny_spec("gpt2", training={"gradient_checkpointing": on}), SPLIT, Silent())
        for on in (False, True)
    )
    assert [row["loss"] for row in less.log] == pytest.approx([row["loss"] for row in plain.log])


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("target", ["attention", "all-linear", None])
def test_lora_trains_as_many_parameters_as_its_matrices_have(
    model: str, target: str | None
) -> None:
    """Two layers, in T5 one and one; an adapter of rank r on a matrix n x m has r (n + m)."""
    r, width = 3, 128
    square, fourfold, double = 2 * width, 5 * width, 3 * width  # n + m of each shape
    attention, everything = {
        # query, key and value in one matrix, the output, and the two of the feed-forward part
        "gpt2": (2 * 4 * width, 2 * (4 * width + square + 2 * fourfold)),
        # query and value; then key and output too
        "gpt-neo": (2 * 2 * square, 2 * (4 * square + 2 * fourfold)),
        # encoder, decoder, and from it to the encoder
        "t5": (3 * 2 * square, 3 * 4 * square + 2 * 2 * double),
    }[model]
    expected = r * (attention if target == "attention" else everything)
    lora = {"r": r} if target is None else {"r": r, "target": target}
    spec = tiny_spec(model, training={"lora": lora})
    loaded = tiny_model(spec)
    parameters = loaded.model.num_parameters()
    merge = adapters.prepare(loaded.model, spec.training)
    assert loaded.model.num_parameters(only_trainable=True) == expected
    assert loaded.model.num_parameters() == parameters + expected
    merge()
    assert loaded.model.num_parameters() == parameters


@pytest.mark.parametrize("model", FAMILIES)
def test_merged_adapters_answer_as_they_did_beside_the_model(model: str) -> None:
    spec = tiny_spec(model, training={"lora": SMALL})
    loaded = tiny_model(spec)
    batch = loaded.family.collate(encode(loaded, spec, examples(8)), loaded.ids, "full", None)
    before = token_losses(loaded.model, batch)
    names = loaded.model.state_dict().keys()
    merge = adapters.prepare(loaded.model, spec.training)
    for name, parameter in loaded.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loaded.model.eval()
    beside = token_losses(loaded.model, batch)
    merge()
    assert loaded.model.state_dict().keys() == names
    torch.testing.assert_close(token_losses(loaded.model, batch), beside, rtol=1e-4, atol=1e-4)
    assert (beside - before).abs().max() > 0.1


def opposite(split: Split) -> Split:
    """The same texts with the labels exchanged."""
    other = dict(zip(LABELS, reversed(LABELS), strict=True))
    parts = ([Example(e.text, other[e.label]) for e in part] for part in (split.train, split.test))
    train, test = map(tuple, parts)
    return dataclasses.replace(split, train=train, test=test)


ADAPTERS = {
    "init": "pretrained",
    "lora": {"r": 16, "alpha": 64, "dropout": 0.0, "target": "attention"},
    "learning_rate": 3e-3,
    "gradient_checkpointing": True,
}


@pytest.mark.parametrize(
    ("model", "precision"), [*((family, "fp32") for family in FAMILIES), ("gpt2", "bf16")]
)
def test_adapters_teach_a_trained_model_the_opposite_and_are_saved_merged(
    model: str, precision: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    native = {"epochs": 10, "warmup_steps": 4, "precision": precision}
    before = run_trial(tiny_spec(model, training=native), SPLIT, Silent(), TrialFolders(first))
    spec = tiny_spec(str(first), training={**ADAPTERS, "epochs": 20, "precision": precision})
    after = run_trial(spec, opposite(SPLIT), Silent(), TrialFolders(second))
    assert before.metrics.macro_f1 > 0.9
    assert after.metrics.macro_f1 > 0.9
    assert after.metrics.trainable_parameters < after.metrics.parameters / 10
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        name
        for name in one
        if re.search({"gpt2": "c_attn", "gpt-neo": "[qv]_proj", "t5": "[.][qv][.]"}[model], name)
        and not name.endswith("bias")
    }


@pytest.fixture(scope="module")
def contrary(tmp_path_factory: pytest.TempPathFactory, sample: Split) -> str:
    """A tiny model that has learned the opposite of the sample."""
    folder = tmp_path_factory.mktemp("contrary")
    native = {"epochs": 6, "learning_rate": 2e-3, "batch_size": 16}
    result = run_trial(
        tiny_spec("gpt2", training=native), opposite(sample), Silent(), TrialFolders(folder)
    )
    assert result.metrics.macro_f1 > 0.7
    return str(folder)


@pytest.mark.parametrize(
    "changes",
    [{"lora": ADAPTERS["lora"], "gradient_checkpointing": True}, {"freeze_embeddings": True}],
)
def test_a_model_learns_on_the_sample(
    changes: dict[str, Any], contrary: str, sample: Split
) -> None:
    """It begins with most answers wrong, so that chance alone would not do either."""
    recipe = {"init": "pretrained", "learning_rate": 3e-3, "epochs": 3, "batch_size": 16}
    spec = tiny_spec(contrary, training={**recipe, **changes})
    assert run_trial(spec, sample, Silent()).metrics.macro_f1 > 0.7


def test_a_model_learns_on_the_sample_with_gradient_checkpointing(sample: Split) -> None:
    training = {
        "epochs": 6,
        "learning_rate": 2e-3,
        "batch_size": 16,
        "gradient_checkpointing": True,
    }
    result = run_trial(tiny_spec("gpt2", training=training), sample, Silent())
    assert result.metrics.macro_f1 > 0.7
    assert result.metrics.trainable_parameters == result.metrics.parameters


@pytest.mark.parametrize("model", FAMILIES)
def test_frozen_embeddings_and_a_tied_head_stay_bit_for_bit_and_the_rest_learns(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[torch.nn.Module, torch.Tensor]] = []
    load = loading.load

    def remember(*arguments: Any) -> loading.LoadedModel:
        loaded = load(*arguments)
        kept.append((loaded.model, loaded.model.get_input_embeddings().weight.detach().clone()))
        return loaded

    monkeypatch.setattr(loading, "load", remember)
    training = {"freeze_embeddings": True, "epochs": 3, "learning_rate": 3e-3}
    result = run_trial(tiny_spec(model, training=training), SPLIT, Silent())
    ((network, before),) = kept
    assert torch.equal(network.get_input_embeddings().weight, before)
    assert torch.equal(network.get_output_embeddings().weight, before)
    frozen = before.numel()
    assert result.metrics.trainable_parameters == result.metrics.parameters - frozen
    assert result.log[-1]["loss"] < result.log[0]["loss"]


def saved(folder: Path) -> str:
    loaded = tiny_model(tiny_spec("gpt2"))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("key", ["lora", "freeze_embeddings"])
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_a_new_start_token_that_would_stay_untrained_is_refused(
    key: str, init: str, tmp_path: Path
) -> None:
    model = saved(tmp_path)
    training = {"init": init, key: {} if key == "lora" else True}
    spec = tiny_spec(model, training=training)
    for token, refused in (("<|endoftext|>", False), ("<|new|>", True), (None, False)):
        prompt = spec.prompt.model_copy(update={"start_token": token})
        one = spec.model_copy(update={"prompt": prompt})
        if not refused:
            check(one)
            continue
        with pytest.raises(ConfigError, match=rf"start_token.*new to .*\n?.*training\.{key}"):
            check(one)


def test_without_peft_lora_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check(tiny_spec("gpt2"))
    with pytest.raises(UnavailableError, match=r"pip install 'tgsent\[lora\]'") as caught:
        check(tiny_spec("gpt2", training={"lora": {}}))
    assert caught.value.exit_code == 3


def test_an_architecture_that_peft_does_not_know() -> None:
    class Odd(LlamaConfig):
        model_type = "nobody-knows"

    with torch.device("meta"):
        model = LlamaForCausalLM(
            Odd(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        )
    with pytest.raises(ConfigError, match=r'peft names no attention .* "nobody-knows"; take all-l'):
        adapters.prepare(model, TrainingConfig(lora=LoraConfig(target="attention")))
    adapters.prepare(model, TrainingConfig(lora=LoraConfig()))
    assert model.num_parameters(only_trainable=True) == 16 * (4 * (8 + 8) + 3 * (8 + 8))


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("all-linear", {*(f"{x}_proj" for x in "qkvo"), "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "v_proj"}),
        (["up_proj", "self_attn.q_proj"], {"up_proj", "q_proj"}),
    ],
)
def test_which_layers_of_a_llama_get_adapters(target: str | list[str], layers: set[str]) -> None:
    """The output head gets none."""
    model = llama()
    before = model(torch.arange(9)[None]).logits
    training = TrainingConfig.model_validate({"lora": {"target": target, "dropout": 0.0}})
    merge = adapters.prepare(model, training)
    trained = {n.split(".lora_")[0].rsplit(".", 1)[-1]: p for n, p in model.named_parameters()
               if p.requires_grad}  # fmt: skip
    assert trained.keys() == layers
    merge()
    torch.testing.assert_close(model(torch.arange(9)[None]).logits, before)


def test_unknown_layers_are_named_with_those_there() -> None:
    training = TrainingConfig.model_validate({"lora": {"target": ["q_proj", "c_attn"]}})
    with pytest.raises(ConfigError, match='"llama" have no linear layer "c_attn"; there are down'):
        adapters.prepare(llama(), training)


def test_a_model_that_cannot_be_checkpointed() -> None:
    loaded = tiny_model(tiny_spec("gpt2"))
    loaded.model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match='"gpt2" do not support it'):
        adapters.prepare(loaded.model, TrainingConfig(gradient_checkpointing=True))
