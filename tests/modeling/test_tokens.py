"""How much of the texts a tokenizer passes on to the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tgsent.experiment.plan import plan_model
from tgsent.modeling import loading
from tgsent.modeling.tokens import Legibility, legibility
from tgsent.records import Example, Split
from tiny_models import FAMILIES, LABELS, Silent, examples, run_trial, tiny_model, tiny_spec

STRANGE = ("去起我们", "朋饭失望", "一起开心", "难过吃饭")


def measured(model: str, texts: Sequence[str], max_tokens: int = 64) -> Legibility:
    spec = tiny_spec(model, training={"max_tokens": max_tokens})
    loaded = tiny_model(spec)
    return legibility(loaded.tokenizer, loading.prompt_encoder(loaded, spec), texts)


def test_texts_in_a_script_that_t5_has_never_seen() -> None:
    """A run of unknown characters is one token."""
    found = measured("t5", STRANGE)
    assert found == Legibility("<unk>", unknown_share=0.5, merged=4, merged_into=1)
    assert found.warnings == (
        "50 % of the texts' tokens are <unk>; 4 different texts become 1 token sequence",
    )


@pytest.mark.parametrize("model", ["gpt2", "gpt-neo"])
def test_byte_level_tokenizers_know_every_text(model: str) -> None:
    found = measured(model, STRANGE)
    assert (found.unknown_share, found.merged, found.warnings) == (0, 0, ())


@pytest.mark.parametrize("model", FAMILIES)
def test_nothing_is_said_of_texts_that_can_be_told_apart(model: str) -> None:
    assert measured(model, [example.text for example in examples(24)]).warnings == ()


@pytest.mark.parametrize("model", FAMILIES)
def test_texts_that_differ_beyond_what_fits_are_not_merged(model: str) -> None:
    texts = [f"{'really ' * 50}{word}" for word in ("great", "awful")]
    assert measured(model, texts, max_tokens=32).merged == 0


@pytest.mark.parametrize("model", FAMILIES)
def test_equal_texts_and_white_space_make_no_different_texts(model: str) -> None:
    assert measured(model, ["it is great", "it is great", " it  is\ngreat "]).warnings == ()


def test_few_unknown_tokens_are_no_reason_to_warn() -> None:
    assert Legibility("<unk>", 0.05, 0, 0).warnings == ()
    assert Legibility("<unk>", 0.06, 0, 0).warnings == ("6 % of the texts' tokens are <unk>",)
    assert Legibility("<unk>", 0.0, 1200, 2).warnings == (
        "1,200 different texts become 2 token sequences",
    )


def strange_split() -> Split:
    """The test texts alone are in a strange script."""
    test = [Example(text, LABELS[i % 2]) for i, text in enumerate(STRANGE)]
    return Split(1, 1, tuple(examples(24)), tuple(test), sha256="5" * 64, overlap=0)


def test_a_run_warns() -> None:
    warnings = run_trial(tiny_spec("t5"), strange_split(), Silent()).metrics.warnings
    assert "4 different texts become 1 token sequence" in warnings
    warnings = run_trial(tiny_spec("gpt2"), strange_split(), Silent()).metrics.warnings
    assert not any("token" in warning for warning in warnings)


def test_a_dry_run_warns_and_shows_what_the_model_reads(t5_folder: Path, tmp_path: Path) -> None:
    """T5's own tokenizer, with a small model."""
    for file in t5_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    small = {"num_layers": 1, "num_decoder_layers": 1, "d_model": 32, "d_ff": 32, "num_heads": 2}
    config = json.loads((tmp_path / "config.json").read_bytes()) | small
    (tmp_path / "config.json").write_text(json.dumps(config))
    chinese = [Example(f"{text} good", LABELS[i % 2]) for i, text in enumerate(STRANGE)]
    split = Split(1, 1, tuple(chinese), tuple(chinese[:2]), sha256="5" * 64, overlap=0)
    plan = plan_model(tiny_spec(str(tmp_path), training={"init": "random"}), split)
    assert plan.training_prompt == "Tweet: <unk> good Sentiment:</s> -> negative</s>"
    assert plan.test_prompt == "Tweet: <unk> good Sentiment:</s> ->"
    assert plan.unknown_share == pytest.approx(1 / 3)
    assert plan.warnings == (
        "33 % of the texts' tokens are <unk>; 4 different texts become 1 token sequence",
    )
