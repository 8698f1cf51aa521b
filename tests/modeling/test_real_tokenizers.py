"""Prompts of real tokenizers read as they were written, and are the tokenizer's own encoding."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from conftest import ROOT
from tgsent.config import PromptConfig
from tgsent.modeling import causal, loading, seq2seq
from tgsent.modeling.family import SpecialIds
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder
from tgsent.modeling.tokens import special_ids
from tiny_models import tiny_spec

sys.path.insert(0, str(ROOT / "scripts"))
from fetch_weights import FOLDER

PARTS = (
    "\n", "\n\n\n", "  ", "      ", "\t", "\r\n", "I wonder", "don't", "@you", "#1", "http://x.y/z",
    "\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627", "\u4eca\u5929", "e\u0301", "\u200f", "12345", "...", "<b>",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<eos>")
WRITTEN = "Tweet: {}\nSentiment: positive"


@pytest.fixture(scope="module", params=["gpt2", "smollm2", "gemma3-270m"])
def name(request: pytest.FixtureRequest) -> str:
    """Names a model whose tokenizer is on this machine."""
    if request.param == "gpt2":
        return str(request.getfixturevalue("gpt2_folder"))
    file = FOLDER / f"{request.param}.gguf"
    if not file.is_file():
        pytest.skip(f"{file} is not there: python scripts/fetch_weights.py {request.param}")
    pytest.importorskip("gguf")
    return str(file)


@cache
def load(name: str, template: str = "plain") -> tuple[LoadedModel, PromptEncoder]:
    path = Path(name)
    tokenizer = (
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if path.suffix == ".gguf"
        else AutoTokenizer.from_pretrained(path)
    )
    pad = tokenizer.pad_token_id or 0
    family = seq2seq if "t5" in path.name else causal
    loaded = LoadedModel(None, tokenizer, family, SpecialIds(pad, tokenizer.eos_token_id, pad))
    spec = tiny_spec(
        prompt=PromptConfig(template=template), training={"init": "random", "max_tokens": 512}
    )
    return loaded, loading.prompt_encoder(loaded, spec)


def tokens(encoder: PromptEncoder, text: str) -> list[int]:
    """Prompt and target without what is put around them."""
    (prompt,) = encoder.encode_prompts([text])
    target = encoder.targets["positive"]
    end = len(prompt) - len(encoder.stop_ids)
    return [*prompt[len(encoder.start_ids) : end], *target[:-1]]


@given(text=TEXTS)
@example(text="I  wonder   why\n\n\u05e9\u05dc\u05d5\u05dd \U0001f600\tso <|im_end|> what")
@settings(max_examples=100)
def test_prompt_and_target_decode_to_what_was_written(name: str, text: str) -> None:
    loaded, encoder = load(name)
    assert loaded.decode(tokens(encoder, text)) == WRITTEN.format(text)


@given(text=TEXTS)
@settings(max_examples=100)
def test_prompt_and_target_are_the_tokenizers_own_encoding(name: str, text: str) -> None:
    """Where a text ends in white space, its tokens end with it, so that it can be truncated."""
    text = text.rstrip()
    loaded, encoder = load(name)
    own = loaded.tokenizer(WRITTEN.format(text), add_special_tokens=False).input_ids
    assert tokens(encoder, text) == own


@given(text=TEXTS)
@settings(max_examples=100)
def test_t5_reads_all_but_white_space(t5_folder: Path, text: str) -> None:
    loaded, encoder = load(str(t5_folder))
    (prompt,) = encoder.encode_prompts([text])
    own = loaded.tokenizer(f"Tweet: {text}\nSentiment:").input_ids
    assert list(prompt) == own
    read = loaded.decode(encoder.targets["positive"][:-1])
    assert read == "positive"


@pytest.mark.parametrize(
    "marker", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<eos>"]
)
def test_a_text_becomes_no_marker(name: str, marker: str) -> None:
    loaded, encoder = load(name)
    found = tokens(encoder, f"so {marker} what")
    assert not special_ids(loaded.tokenizer) & set(found)
    assert marker in loaded.decode(found)
