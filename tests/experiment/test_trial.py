import dataclasses
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tgsent.backends import TrialFolders
from tgsent.config import PromptConfig, TrialSpec
from tgsent.errors import UnavailableError
from tgsent.evaluation import metrics
from tgsent.evaluation.generate import classify
from tgsent.modeling import loading, speedups
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Example, Split
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tiny_models import FAMILIES, LABELS, Silent, examples, run_trial, tiny_spec

TEXTS = examples(60)
SPLIT = Split(1, 1, tuple(TEXTS[:48]), tuple(TEXTS[48:]), sha256="5" * 64, overlap=0)
MEASURED = {
    "train_seconds",
    "train_examples_per_second",
    "eval_seconds",
    "eval_examples_per_second",
    "peak_memory_bytes",
}


def run(spec: TrialSpec, save_to: Path | None = None, split: Split = SPLIT) -> TrialResult:
    return run_trial(spec, split, Silent(), TrialFolders(save_to))


def scores(result: TrialResult) -> dict[str, Any]:
    return {key: value for key, value in result.metrics.to_json().items() if key not in MEASURED}


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("model", FAMILIES)
def test_a_trial_depends_on_its_spec_and_split_alone(model: str) -> None:
    """Not on the state in which the random generators happen to be."""
    spec = tiny_spec(model, training={"epochs": 2})
    seed_everything(1)
    one = run(spec)
    seed_everything(2)
    other = run(spec)
    assert one.predictions == other.predictions
    assert one.log == other.log
    assert scores(one) == scores(other)


def test_training_does_not_depend_on_what_loading_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tiny_spec("gpt2"))
    load = loading.load

    def load_and_draw(spec: TrialSpec, train: tuple[Example, ...]) -> LoadedModel:
        loaded = load(spec, train)
        torch.rand(7)
        return loaded

    monkeypatch.setattr(loading, "load", load_and_draw)
    assert run(tiny_spec("gpt2")).log == expected.log


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (1, 2):
        run(tiny_spec("gpt2", seed=seed), tmp_path / str(seed))
    one, other = (load_file(tmp_path / str(seed) / "model.safetensors") for seed in (1, 2))
    assert one.keys() == other.keys()
    name = "transformer.wte.weight"
    assert (one[name] != other[name]).float().mean() > 0.99


def test_metrics_are_those_of_the_contract() -> None:
    spec = tiny_spec("gpt2", training={"epochs": 2, "batch_size": 10})
    result = run(spec)
    assert result.metrics.to_json().keys() >= MEASURED | {
        "model",
        "trial",
        "seed",
        "macro_f1",
        "accuracy",
        "per_label",
        "confusion",
        "unparsed",
        "n_train",
        "n_test",
        "parameters",
        "split_sha256",
        "signature",
    }
    assert (
        result.metrics.to_json().items()
        >= {
            **dataclasses.asdict(metrics.score(result.predictions, LABELS)),
            "model": "gpt2",
            "trial": 1,
            "seed": 1,
            "n_train": 48,
            "n_test": 12,
            "steps": 10,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "max_grad_norm": 1.0,
            "padding": "longest",
            "truncated": 0,
            "truncated_tokens": 0,
            "duplicates": 0,
            "dropped": 0,
            "overlap": 0,
            "device": "cpu",
            "precision": "fp32",
            "split_sha256": SPLIT.sha256,
            "fingerprint": spec.fingerprint,
        }.items()
    )
    assert all(getattr(result.metrics, key) > 0 for key in MEASURED)
    assert result.metrics.peak_memory_bytes > 50_000_000
    written = json.loads(json.dumps(result.metrics.to_json(), allow_nan=False))
    assert TypeAdapter(TrialMetrics).validate_python(written) == result.metrics
    assert [row["step"] for row in result.log] == list(range(1, 11))
    assert [(p.text, p.label) for p in result.predictions] == [
        (e.text, e.label) for e in SPLIT.test
    ]


def test_signature_names_what_the_score_depends_on() -> None:
    one, other = (run(tiny_spec("gpt2", decoding=d)).metrics for d in ("free", "score"))
    assert "|decoding:free|" in one.signature
    assert "|decoding:score|" in other.signature
    for part in ("|model:gpt2|", "|init:tiny|", "|seed:1|", "|split:555555555555"):
        assert part in one.signature


@pytest.mark.parametrize("model", ["gpt2", "tfidf"])
def test_extra_test_texts_are_answered_and_scored_apart(model: str) -> None:
    more = tuple(examples(100)[60:])
    plain = run(tiny_spec(model, training={"epochs": 4}))
    split = dataclasses.replace(SPLIT, extra=more, extra_sha256="e" * 64)
    extra = run(tiny_spec(model, training={"epochs": 4}), split=split)
    assert extra.predictions[:12] == plain.predictions
    assert [p.text for p in extra.predictions[12:]] == [e.text for e in more]
    assert extra.metrics.macro_f1 == plain.metrics.macro_f1
    assert extra.metrics.n_test == 12
    assert extra.metrics.all == metrics.score(extra.predictions, LABELS)
    assert extra.metrics.all.n_test == 52
    assert extra.metrics.extra_sha256 == "e" * 64
    assert "all" not in plain.metrics.to_json()


def test_truncated_texts_of_both_parts_are_counted() -> None:
    long = Example("really " * 100, "positive")
    split = dataclasses.replace(SPLIT, train=(*SPLIT.train, long), test=(*SPLIT.test, long, long))
    assert run(tiny_spec("gpt2"), split=split).metrics.truncated == 3


@pytest.mark.parametrize("model", FAMILIES)
def test_a_saved_model_gives_the_same_answers(model: str, tmp_path: Path) -> None:
    spec = tiny_spec(model, training={"epochs": 4}, decoding="score")
    result = run(spec, tmp_path / "model")
    saved = tiny_spec(str(tmp_path / "model"), training={"init": "pretrained"}, decoding="score")
    loaded = loading.load(saved, ())
    encoder = loading.prompt_encoder(loaded, saved)
    again = classify(loaded, encoder, SPLIT.test, saved, Silent())
    assert [p.predicted for p in again] == [p.predicted for p in result.predictions]
    for one, other in zip(again, result.predictions, strict=True):  # the library's plain model here
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)
    speedups.apply(loaded.model)
    assert classify(loaded, encoder, SPLIT.test, saved, Silent()) == result.predictions


def test_a_model_trained_in_bf16_is_saved_in_fp32(tmp_path: Path) -> None:
    result = run(tiny_spec("gpt2", training={"precision": "bf16"}), tmp_path)
    assert result.metrics.precision == "bf16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {
        torch.float32
    }


def test_a_tiny_tokenizer_learns_no_word_of_the_test_texts(tmp_path: Path) -> None:
    test = tuple(Example(f"marmalade marmalade {i}", LABELS[i % 2]) for i in range(12))
    run(tiny_spec("gpt2"), tmp_path, dataclasses.replace(SPLIT, test=test))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer(" marmalade").input_ids) > 1
    assert len(tokenizer(" positive").input_ids) == 1


def test_a_tiny_model_learns_to_answer() -> None:
    spec = tiny_spec("gpt2", training={"epochs": 10, "warmup_steps": 4})
    assert run(spec).metrics.macro_f1 > 0.9


@pytest.mark.parametrize("model", FAMILIES)
def test_a_recipe_like_the_articles_runs(model: str) -> None:
    training = {
        "padding": "max_tokens",
        "loss": "full",
        "loss_on_padding": True,
        "gradient_accumulation": 2,
        "max_grad_norm": None,
        "batch_size": 16,
        "warmup_steps": 100,
    }
    assert len(run(tiny_spec(model, training=training)).predictions) == 12


def test_loss_on_padding_is_the_mean_over_padding_too() -> None:
    """Padding is soon the easiest to predict, so that the mean over it is lower."""
    recipe = {"padding": "max_tokens", "loss": "full", "epochs": 2}
    with_padding, without = (
        run(tiny_spec("gpt2", training={**recipe, "loss_on_padding": counts})).log
        for counts in (True, False)
    )
    assert with_padding[-1]["loss"] < without[-1]["loss"]


def test_a_precision_that_is_not_there() -> None:
    with pytest.raises(UnavailableError, match="fp16 needs a cuda device"):
        run(tiny_spec("gpt2", training={"precision": "fp16"}))


def test_spec_split_and_result_can_be_pickled() -> None:
    spec = tiny_spec("gpt2", decoding="score")
    result = run(spec)
    for value in (spec, SPLIT, result):
        assert pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(spec)).fingerprint == spec.fingerprint


def test_a_model_trained_in_bf16_answers_alike_in_batches_of_any_size() -> None:
    training = {"precision": "bf16", "epochs": 2}
    one, many = (
        run(tiny_spec("gpt2", training=training, decoding="score", eval_batch_size=size))
        for size in (1, 64)
    )
    assert [p.predicted for p in one.predictions] == [p.predicted for p in many.predictions]
    for p, q in zip(one.predictions, many.predictions, strict=True):
        assert p.probabilities == pytest.approx(q.probabilities, abs=1e-5)


@pytest.mark.parametrize("model", FAMILIES)
def test_without_epochs_the_model_is_scored_as_it_is(model: str) -> None:
    result = run(tiny_spec(model, training={"epochs": 0}, prompt=PromptConfig(shots=2)))
    assert (result.metrics.steps, result.log) == (0, ())
    assert result.metrics.train_examples_per_second == 0
    assert len(result.predictions) == 12
