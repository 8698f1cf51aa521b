from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tgsent.config import RunConfig, load
from tgsent.data.dataset import load_dataset, make_splits
from tgsent.runs import signature

BASE = ("data.sample_size=200", "data.test_fraction=0.2")


def sign(*overrides: str, precision: str = "fp32", commit: str | None = None, **more: Any) -> str:
    config: RunConfig = load(
        "smoke", models=more.get("models", ["gpt2"]), overrides=[*BASE, *overrides]
    )
    dataset = load_dataset(config.data)
    splits = make_splits(dataset, config)
    return signature.of_run(
        signature.of_trial(spec, splits[spec.trial - 1], commit, precision)
        for spec in config.trial_specs(dataset.labels)
    )


@pytest.mark.parametrize(
    "override",
    [
        "seed=2", "data.sample_seed=2", "data.sample_size=201", "data.test_fraction=0.3",
        "data.deduplicate=false", "data.extra_test_size=10",
        "data.labels={0: bad, 4: good}", "prompt.input='{text} ='",
        "prompt.target=' : {label}'", "prompt.shots=2",
        "training.epochs=7", "training.learning_rate=0.1", "training.lora={}", "trials=3",
        "training.init=random", "evaluation.decoding=score",
    ],
)  # fmt: skip
def test_what_a_score_depends_on_changes_the_signature(override: str) -> None:
    assert sign(override) != sign()


@pytest.mark.parametrize(
    "override",
    [
        "training.device=cpu", "evaluation.batch_size=3", "output.dir=elsewhere", "name=other",
        "output.save_model=all", "output.checkpoint_minutes=1", "models=[{model: gpt2, as: mine}]",
    ],
)  # fmt: skip
def test_how_a_run_is_carried_out_does_not(override: str) -> None:
    assert sign(override) == sign()


def test_model_commit_and_precision_count() -> None:
    assert len({sign(), sign(models=["t5"]), sign(commit="a" * 40), sign(precision="bf16")}) == 4


def test_texts_count(tmp_path: Any) -> None:
    def data(last: str) -> str:
        path = tmp_path / "data.csv"
        rows = [f"text {i},{'good' if i % 2 else 'bad'}" for i in range(200)]
        path.write_text("\n".join(["text,label", *rows, last]), "utf-8")
        return sign(f"data.path={path}", "data.sample_size=null")

    assert data("one,good") == data("one,good") != data("two,good")


def test_it_is_one_line_of_keys_and_values() -> None:
    line = sign(commit="b" * 40)
    parts = dict(part.split(":", 1) for part in line.split("|"))
    assert list(parts) == [
        "tgsent", "data", "sample", "repeats", "test", "extra", "labels", "split", "seed", "model",
        "init", "backend", "recipe", "precision", "prompt", "decoding", "metric",
    ]  # fmt: skip
    assert parts["sample"] == "200@1"
    assert parts["model"] == "gpt2@bbbbbbbbbbbb"
    assert parts["seed"] == "1+2"
    assert (parts["decoding"], parts["metric"]) == ("free", "macro_f1")


def test_many_trials_are_signed_briefly() -> None:
    assert "|seed:1+2+3|" in sign("trials=3")
    assert len(sign("trials=9")) < 400


def test_settings_of_training_do_not_change_a_baselines_signature() -> None:
    assert sign("training.epochs=7", models=["tfidf"]) == sign(models=["tfidf"])
    assert sign("seed=2", models=["tfidf"]) != sign(models=["tfidf"])


def test_the_model_cannot_break_the_line() -> None:
    config = load("smoke", models=["a|b"], overrides=BASE)
    (spec, _) = config.trial_specs(("x", "y"))
    split = make_splits(load_dataset(config.data), config)[0]
    assert "model:a_b|" in signature.of_trial(spec, dataclasses.replace(split), None, "fp32")
