"""Every type of model in the table trains, answers and is saved, or is refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from architectures import ARCHITECTURES, Architecture, make_folder
from tgsent.backends import TrialFolders
from tgsent.config import EvaluationConfig, TrialSpec
from tgsent.errors import ConfigError, UnavailableError
from tgsent.evaluation.generate import classify
from tgsent.modeling import causal, loading
from tgsent.modeling.family import IGNORE, token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder
from tgsent.records import Split
from tgsent.training import adapters
from tiny_models import Silent, check, examples, run_trial, set_dropout, tiny_spec

WORKING = [a for a in ARCHITECTURES if not a.refused]
REFUSED = [a for a in ARCHITECTURES if a.refused]
TEXTS = examples(14)


def named(architecture: Architecture) -> str:
    return f"{architecture.model_type} ({architecture.tokenizer})"


@pytest.fixture(scope="module", params=WORKING, ids=named)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(request.param, tmp_path_factory.mktemp("model"))


def spec_of(folder: Path, **training: object) -> TrialSpec:
    return tiny_spec(str(folder), training={"init": "pretrained", **training})


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    loaded = loading.load(spec_of(folder), ())
    set_dropout(loaded.model, 0.0)
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def encoder(loaded: LoadedModel, folder: Path) -> PromptEncoder:
    return loading.prompt_encoder(loaded, spec_of(folder))


def test_loss_and_gradients_are_the_librarys(loaded: LoadedModel, encoder: PromptEncoder) -> None:
    encoded = encoder.encode_examples(TEXTS[:5])
    batch = loaded.family.collate(encoded, loaded.ids, "full", None)
    loss = token_losses(loaded.model, batch).sum() / (batch["labels"] != IGNORE).sum()
    if loaded.family is causal:
        texts = [torch.tensor([*e.prompt, *e.target]) for e in encoded]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        labels = torch.nn.utils.rnn.pad_sequence(texts, True, IGNORE)
    else:  # the library begins the decoder's input by itself
        inputs = {k: v for k, v in batch.items() if k in {"input_ids", "attention_mask"}}
        labels = batch["labels"]
    theirs = loaded.model(**inputs, labels=labels, use_cache=False).loss
    torch.testing.assert_close(loss, theirs)
    gradients = []
    for one in (loss, theirs):
        loaded.model.zero_grad()
        one.backward()
        gradients.append({n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad})
    loaded.model.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@torch.no_grad()
def logits_after(loaded: LoadedModel, prompt: Sequence[int], target: Sequence[int]) -> torch.Tensor:
    """The logits that predict each token of the target and the one after it, nothing cached."""
    tensor = torch.tensor([[*prompt]])
    if loaded.family is causal:
        both = torch.tensor([[*prompt, *target]])
        return loaded.model(input_ids=both, use_cache=False).logits[0, len(prompt) - 1 :]
    return loaded.model(
        input_ids=tensor,
        decoder_input_ids=torch.tensor([[loaded.ids.decoder_start, *target]]),
        use_cache=False,
    ).logits[0]


def naive(loaded: LoadedModel, encoder: PromptEncoder, decoding: str, text: str) -> object:
    """What a text is answered, one token at a time; probabilities for `score`."""
    (prompt,) = encoder.encode_prompts([text])
    targets = list(encoder.targets.values())
    if decoding == "score":
        likely = []
        for target in targets:
            logs = logits_after(loaded, prompt, target[:-1]).double().log_softmax(dim=-1)
            likely.append(sum(float(logs[k, token]) for k, token in enumerate(target)))
        return functional.softmax(torch.tensor(likely, dtype=torch.float64), dim=0).tolist()
    written: list[int] = []
    while len(written) < max(map(len, targets)):
        scores = logits_after(loaded, prompt, written)[-1]
        if decoding == "constrained":
            allowed = {t[len(written)] for t in targets if list(t[: len(written)]) == written}
            scores = torch.where(
                torch.tensor([i in allowed for i in range(len(scores))]), scores, -torch.inf
            )
        written.append(int(scores.argmax()))
        if written[-1] == loaded.ids.end:
            break
    return loaded.decode(written[:-1] if written[-1] == loaded.ids.end else written)


@pytest.mark.parametrize("decoding", ["free", "constrained", "score"])
def test_answers_are_those_of_naive_uncached_decoding(
    loaded: LoadedModel, encoder: PromptEncoder, folder: Path, decoding: str
) -> None:
    expected = [naive(loaded, encoder, decoding, example.text) for example in TEXTS]
    for batch_size in (1, 7):
        evaluation = EvaluationConfig(decoding=decoding, batch_size=batch_size)
        spec = spec_of(folder).model_copy(update={"evaluation": evaluation})
        found = classify(loaded, encoder, TEXTS, spec, Silent())
        if decoding == "score":
            for one, probabilities in zip(found, expected, strict=True):
                assert one.probabilities == pytest.approx(probabilities, abs=1e-4)
        else:
            assert [one.generated for one in found] == expected


def test_prompts_decode_to_what_was_written(loaded: LoadedModel, encoder: PromptEncoder) -> None:
    text = "I  wonder   why\n\n\u05e9\u05dc\u05d5\u05dd \U0001f600\tso  what"
    (prompt,) = encoder.encode_prompts([text])
    body = prompt[len(encoder.start_ids) : len(prompt) - len(encoder.stop_ids)]
    target = encoder.targets["positive"][:-1] if loaded.family is causal else ()
    written = f"Tweet: {text}\nSentiment:{' positive' if target else ''}"
    assert [*body, *target] == loaded.tokenizer(written, add_special_tokens=False).input_ids
    if type(loaded.tokenizer.backend_tokenizer.model).__name__ == "Unigram":  # T5's, umT5's
        written = " ".join(re.sub("[^\0-\u024f]+", "<unk>", written).split())
    assert loaded.decode([*body, *target]) == written


@pytest.mark.parametrize("lora", [None, {}], ids=["whole", "lora"])
def test_it_trains_predicts_and_is_saved_as_a_plain_folder(
    folder: Path, tmp_path: Path, lora: object
) -> None:
    spec = spec_of(folder, lora=lora, learning_rate=1e-2)
    split = Split(1, 1, tuple(TEXTS), tuple(TEXTS[:4]), "sha", 0)
    result = run_trial(spec, split, Silent(), TrialFolders(tmp_path))
    again = loading.load(spec_of(tmp_path), ())
    before = loading.load(spec, ()).model.state_dict()
    changed = [n for n, w in again.model.state_dict().items() if not torch.equal(w, before[n])]
    assert changed
    found = classify(again, loading.prompt_encoder(again, spec), TEXTS[:4], spec, Silent())
    assert [one.generated for one in found] == [one.generated for one in result.predictions]
    auto = AutoModelForCausalLM if again.family is causal else AutoModelForSeq2SeqLM
    plain = auto.from_pretrained(tmp_path).state_dict()
    assert plain.keys() == again.model.state_dict().keys()
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == again.ids.end


@pytest.mark.parametrize("architecture", REFUSED, ids=named)
def test_what_generates_no_text_is_refused_in_words(
    architecture: Architecture, tmp_path: Path
) -> None:
    spec = spec_of(make_folder(architecture, tmp_path), init="random")
    with pytest.raises(ConfigError, match=architecture.refused) as refused:
        check(spec)
    assert len(str(refused.value).splitlines()) <= 3


def of_type(model_type: str) -> Architecture:
    return next(a for a in ARCHITECTURES if a.model_type == model_type)


def change_config(folder: Path, **values: object) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return str(folder)


def test_positions_of_an_encoder_are_counted(tmp_path: Path) -> None:
    folder = str(make_folder(of_type("bart"), tmp_path))
    check(tiny_spec(folder, training={"init": "random", "max_tokens": 128}))
    with pytest.raises(ConfigError, match=r"max_tokens: 129 is more than the 128 positions of"):
        check(tiny_spec(folder, training={"init": "random", "max_tokens": 129}))


@pytest.mark.parametrize(
    ("model_type", "start"), [("t5", "<pad>"), ("bart", "</s>"), ("t5gemma", "<bos>")]
)
def test_a_decoder_starts_as_the_librarys_does(model_type: str, start: str, tmp_path: Path) -> None:
    folder = make_folder(of_type(model_type), tmp_path)
    loaded = loading.load(spec_of(folder), ())
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.ids.decoder_start) == start
    assert loaded.model.generation_config.decoder_start_token_id == loaded.ids.decoder_start


def test_a_decoder_start_of_the_generation_config_is_used(tmp_path: Path) -> None:
    folder = make_folder(of_type("t5gemma"), tmp_path)
    values = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(values | {"decoder_start_token_id": 5})
    )
    assert loading.load(spec_of(folder), ()).ids.decoder_start == 5


def test_a_bidirectional_model_that_was_made_a_decoder_is_taken(tmp_path: Path) -> None:
    folder = change_config(make_folder(of_type("roberta"), tmp_path), is_decoder=True)
    check(tiny_spec(folder, training={"init": "random"}))


@pytest.mark.parametrize(
    ("model_type", "values", "error"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "reads in both directions"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, r"are quantised \(fp8\)"),
        ("llama", {"hidden_size": "many"}, "cannot be loaded|no model can be built"),
        ("llama", {"num_attention_heads": 0}, "cannot be loaded|no model can be built"),
        ("llama", {"hidden_act": "nonsense"}, "cannot be loaded|no model can be built"),
        ("llama", {"rope_parameters": {"rope_type": "x"}}, "cannot be loaded|no model can be b"),
        ("t5", {"feed_forward_proj": "a-b-c-d"}, "cannot be loaded|no model can be built"),
        ("lfm2", {"layer_types": ["unheard of"] * 2}, "cannot be loaded|no model can be built"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_in_words(
    model_type: str, values: dict[str, object], error: str, tmp_path: Path
) -> None:
    folder = change_config(make_folder(of_type(model_type), tmp_path), **values)
    with pytest.raises((ConfigError, UnavailableError), match=error) as refused:
        check(tiny_spec(folder, training={"init": "random"}))
    assert len(str(refused.value).splitlines()) <= 3


def test_added_tokens_that_are_plain_text_stay_text(tmp_path: Path) -> None:
    """GPT-NeoX has tokens for runs of spaces, which used to tear the words behind them."""
    folder = make_folder(of_type("gpt_neox"), tmp_path)
    loaded = loading.describe(spec_of(folder), ())
    encoder = loading.prompt_encoder(loaded, spec_of(folder))
    (prompt,) = encoder.encode_prompts(["my phone is  great"])
    own = loaded.tokenizer("Tweet: my phone is  great", add_special_tokens=False).input_ids
    assert list(prompt[1 : len(own) + 1]) == own
    assert "  " in loaded.tokenizer.convert_ids_to_tokens(prompt)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mamba", "falcon_h1", "t5"])
def test_every_adapter_is_trained(model_type: str, tmp_path: Path) -> None:
    folder = make_folder(of_type(model_type), tmp_path)
    spec = spec_of(folder, lora={})
    loaded = loading.load(spec, ())
    adapters.prepare(loaded.model, spec.training)
    encoded = loading.prompt_encoder(loaded, spec).encode_examples(TEXTS[:4])
    batch = loaded.family.collate(encoded, loaded.ids, "label", None)
    token_losses(loaded.model.train(), batch).sum().backward()
    trained = {n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained
    assert [name for name, gradient in trained.items() if gradient is None] == []
