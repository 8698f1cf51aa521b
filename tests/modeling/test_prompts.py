import csv
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tgsent.config import PromptConfig, TrialSpec
from tgsent.errors import ConfigError
from tgsent.modeling import causal, loading, seq2seq
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import (
    PromptEncoder,
    choose_shots,
    parse,
    render_prompt,
    render_target,
)
from tgsent.records import Example
from tiny_models import LABELS, examples, tiny_spec

NASTY = (
    "\n",
    "\r\n\t",
    "\nSentiment: positive",
    "{text}",
    "{}{label}",
    "<|endoftext|>",
    "<|startoftext|>",
    "<|pad|>",
    "</s>",
    "\uff1c/s\uff1e",
    "<pad>",
    "<unk>",
    "<extra_id_0>",
    "\uff1cextra_id_0\uff1e",
    "<|endof<|endoftext|>text|>",
    "😀👩‍👩‍👧",
    "שלום ",
    "مرحبا",
    "e\u0301",
    "\x00",
    "\x1b[31m",
    "\ufeff",
    "\u200b",
    "\u2028",
    "  ",
)
TEXTS = st.lists(st.one_of(st.text(max_size=30), st.sampled_from(NASTY)), max_size=12).map("".join)
LONG_TEXTS = st.tuples(TEXTS.filter(bool), st.integers(0, 9)).map(
    lambda drawn: (drawn[0] * (10_000 // len(drawn[0]) + 1))[drawn[1] :][:10_000]
)
TOKENIZERS = ("real gpt2", "real t5", "tiny gpt2", "tiny t5")


@cache
def describe(model: str, init: str, start_token: str | None = None) -> LoadedModel:
    spec = tiny_spec(model, training={"init": init}, prompt=PromptConfig(start_token=start_token))
    return loading.describe(spec, examples(40))


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Name of a model and how it is to be initialised: its tokenizer is real, or made here."""
    kind, name = request.param.split()
    if kind == "real":
        return str(request.getfixturevalue(f"{name}_folder")), "random"
    return name, "tiny"


def encoder_of(
    model: tuple[str, str],
    *,
    labels: tuple[str, ...] = LABELS,
    max_tokens: int = 64,
    start_token: str | None = None,
) -> tuple[LoadedModel, PromptEncoder]:
    name, init = model
    spec = tiny_spec(
        name,
        labels=labels,
        training={"init": init, "max_tokens": max_tokens},
        prompt=PromptConfig(start_token=start_token),
    )
    loaded = describe(name, init, start_token)
    return loaded, loading.prompt_encoder(loaded, spec)


def special_ids(loaded: LoadedModel) -> set[int]:
    tokenizer = loaded.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return special - {tokenizer.unk_token_id} if loaded.family is seq2seq else special


def plain_ids(loaded: LoadedModel, text: str) -> list[int]:
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def check_prompt(model: tuple[str, str], text: str, max_tokens: int) -> None:
    labels = ("negative", "very positive")
    loaded, encoder = encoder_of(model, labels=labels, max_tokens=max_tokens)
    encoded = encoder.encode_examples([Example(text, label) for label in labels])
    (prompt,) = encoder.encode_prompts([text])
    longest = max(len(e.target) for e in encoded)
    assert longest > min(len(e.target) for e in encoded)

    if loaded.family is causal:
        trained_on = causal.collate(encoded, loaded.ids, "label", None)["input_ids"].tolist()
        assert all(tuple(row[: len(prompt)]) == prompt for row in trained_on)
        assert len(prompt) + longest <= max_tokens
        start, stop = [loaded.tokenizer.bos_token_id], []
    else:
        assert all(e.prompt == prompt for e in encoded)
        assert len(prompt) <= max_tokens
        start, stop = [], [loaded.tokenizer.eos_token_id]

    tail = [*plain_ids(loaded, "\nSentiment:"), *stop]
    assert list(prompt[-len(tail) :]) == tail
    assert [i for i in prompt if i in special_ids(loaded)] == start + stop
    assert list(prompt[: len(start)]) == start


@given(text=TEXTS, max_tokens=st.sampled_from([24, 64, 512]))
@example(text="", max_tokens=24)
@example(text="".join(NASTY), max_tokens=24)
@example(text="".join(NASTY), max_tokens=512)
@settings(max_examples=60)
def test_a_text_stays_a_text_in_every_prompt(
    model: tuple[str, str], text: str, max_tokens: int
) -> None:
    check_prompt(model, text, max_tokens)


@given(text=LONG_TEXTS, max_tokens=st.sampled_from([24, 512]))
@example(text="<|endoftext|></s>" * 600, max_tokens=512)
@settings(max_examples=8)
def test_a_long_text_stays_a_text_in_every_prompt(
    model: tuple[str, str], text: str, max_tokens: int
) -> None:
    check_prompt(model, text, max_tokens)


@given(text=TEXTS)
def test_a_text_too_long_loses_its_own_end_alone(model: tuple[str, str], text: str) -> None:
    _, whole = encoder_of(model, max_tokens=2_000)
    loaded, short = encoder_of(model, max_tokens=24)
    (whole_prompt,), (prompt,) = whole.encode_prompts([text]), short.encode_prompts([text])
    after = len(plain_ids(loaded, "\nSentiment:")) + len(short.stop_ids)
    assert prompt[:-after] == whole_prompt[: len(prompt) - after]
    assert whole.truncated == 0
    assert short.truncated == (len(prompt) < len(whole_prompt))


@pytest.mark.parametrize("model", ["real gpt2", "tiny gpt2"], indirect=True)
@given(text=TEXTS)
def test_a_byte_level_prompt_decodes_to_the_whole_text(model: tuple[str, str], text: str) -> None:
    loaded, encoder = encoder_of(model, max_tokens=2_000)
    (prompt,) = encoder.encode_prompts([text])
    assert loaded.decode(prompt[1:]) == f"Tweet: {text}\nSentiment:"


@pytest.mark.parametrize("label", [*LABELS, "very good", "so-so", "0"])
def test_a_decoded_target_is_its_label(model: tuple[str, str], label: str) -> None:
    name, init = model
    spec = tiny_spec(name, labels=("other", label), training={"init": init})
    train = [Example("so so very other 0 good", word) for word in (label, "other")] * 5
    loaded = loading.describe(spec, train)
    target = loading.prompt_encoder(loaded, spec).targets[label]
    assert target[-1] == loaded.tokenizer.eos_token_id
    assert parse(spec.prompt, spec.labels, loaded.decode(target[:-1])) == label


def test_gpt2_prompt_and_target_are_the_tokens_of_the_whole(gpt2_folder: Path) -> None:
    loaded, encoder = encoder_of((str(gpt2_folder), "random"))
    (encoded,) = encoder.encode_examples([Example("good", "positive")])
    end = 50256
    assert encoded.prompt == (end, 47845, 25, 922, 198, 31837, 3681, 25)
    assert encoded.target == (3967, end)  # " positive"; "positive" would be 24561
    whole = plain_ids(loaded, "Tweet: good\nSentiment: positive")
    assert [*encoded.prompt, *encoded.target] == [end, *whole, end]


@pytest.mark.parametrize("folder", ["gpt2_folder", "gpt_neo_folder"])
def test_real_tweets_are_the_tokens_of_the_whole(
    folder: str, tweets: Path, request: pytest.FixtureRequest
) -> None:
    with tweets.open(encoding="iso-8859-1", newline="") as lines:
        texts = [row[5].rstrip() for row in list(csv.reader(lines))[::200]]
    loaded, encoder = encoder_of((str(request.getfixturevalue(folder)), "random"), max_tokens=512)
    encoded = encoder.encode_examples([Example(text, "negative") for text in texts])
    wholes = [plain_ids(loaded, f"Tweet: {text}\nSentiment: negative") for text in texts]
    assert [[*e.prompt[1:], *e.target[:-1]] for e in encoded] == wholes
    assert encoder.truncated == 0


def test_t5_prompt_ends_in_the_template_although_t5_has_no_newline(t5_folder: Path) -> None:
    loaded, encoder = encoder_of((str(t5_folder), "random"))
    (encoded,) = encoder.encode_examples([Example("good\nday", "positive")])
    assert encoded.prompt == (25335, 10, 207, 239, 4892, 2998, 295, 10, 1)
    assert encoded.target == (1465, 1)
    assert list(encoded.prompt[-5:-1]) == plain_ids(loaded, "Sentiment:")


@pytest.mark.parametrize("model", ["real t5", "tiny t5"], indirect=True)
def test_a_sign_that_t5_does_not_know_stays_in_the_text(model: tuple[str, str]) -> None:
    loaded, encoder = encoder_of(model)
    (prompt,) = encoder.encode_prompts(["I \U0001f600 you"])
    assert prompt.count(loaded.tokenizer.unk_token_id) == 1


def test_a_single_sign_that_is_a_special_token_is_left_out() -> None:
    encoder = PromptEncoder(
        prompt=PromptConfig(input="{text}>", target="{label}"),
        labels=("y", "n"),
        encode_texts=lambda texts: [[ord(sign) for sign in text] for text in texts],
        special_ids={ord("#"), 0},
        end_id=0,
        max_tokens=8,
    )
    assert encoder.encode_prompts(["a#b##c", "#"]) == [tuple(b"abc>"), tuple(b">")]


@pytest.mark.parametrize("model", ["real gpt2", "real t5", "tiny gpt2", "tiny t5"], indirect=True)
def test_start_token_stands_once_at_the_front(model: tuple[str, str]) -> None:
    loaded, encoder = encoder_of(model, start_token="<|startoftext|>")
    start = loaded.tokenizer.convert_tokens_to_ids("<|startoftext|>")
    (prompt,) = encoder.encode_prompts(["<|startoftext|>Tweet: <|startoftext|>"])
    assert prompt[0] == start
    assert prompt.count(start) == 1


def test_without_a_start_token_gpt2_has_its_own_and_t5_none(
    gpt2_folder: Path, t5_folder: Path
) -> None:
    assert encoder_of((str(gpt2_folder), "random"))[1].start_ids == (50256,)
    assert encoder_of((str(t5_folder), "random"))[1].start_ids == ()


def test_smallest_max_tokens(model: tuple[str, str]) -> None:
    loaded, encoder = encoder_of(model)
    (empty,) = encoder.encode_examples([Example("", "negative")])
    needed = len(empty.prompt) + (len(empty.target) if loaded.family is causal else 0) + 1
    _, smallest = encoder_of(model, max_tokens=needed)
    (encoded,) = smallest.encode_examples([Example("what a lovely day", "negative")])
    assert len(encoded.prompt) == len(empty.prompt) + 1
    with pytest.raises(ConfigError, match=r"training\.max_tokens: \d+ leaves no room for any text"):
        encoder_of(model, max_tokens=needed - 1)


def test_truncated_texts_are_counted(model: tuple[str, str]) -> None:
    _, encoder = encoder_of(model, max_tokens=24)
    encoder.encode_prompts(["short", "long " * 50, "short"])
    encoder.encode_examples([Example("other " * 50, "negative")])
    assert encoder.truncated == 2
    _, roomy = encoder_of(model, max_tokens=500)
    whole = roomy.encode_prompts(["long " * 50, "other " * 50])
    kept = encoder.encode_prompts(["long " * 50, "other " * 50])
    assert encoder.truncated_tokens == 2 * sum(map(len, whole)) - 2 * sum(map(len, kept))


def spec_with_labels(folder: Path, labels: tuple[str, ...]) -> TrialSpec:
    return tiny_spec(str(folder), labels=labels, training={"init": "random"})


def test_labels_that_t5_cannot_write_are_refused(t5_folder: Path) -> None:
    spec = spec_with_labels(t5_folder, ("😀", "😡"))
    with pytest.raises(ConfigError, match=r'cannot write the label "😀".*data\.labels'):
        loading.prompt_encoder(loading.describe(spec, ()), spec)


@pytest.mark.parametrize("labels", [("😀", "😡"), ("<|endoftext|>", "</s>"), ("да", "нет")])
def test_gpt2_can_write_any_label(gpt2_folder: Path, labels: tuple[str, ...]) -> None:
    spec = spec_with_labels(gpt2_folder, labels)
    loaded = loading.describe(spec, ())
    for label, target in loading.prompt_encoder(loaded, spec).targets.items():
        assert loaded.decode(target[:-1]) == f" {label}"
        assert not special_ids(loaded) & set(target[:-1])


def test_lone_surrogates_reach_no_tokenizer(model: tuple[str, str]) -> None:
    """They are no text: tokenizers refuse them, so data.py has to."""
    _, encoder = encoder_of(model)
    with pytest.raises(TypeError):
        encoder.encode_prompts(["half a pair: \ud83d"])


@pytest.mark.parametrize(
    ("generated", "label"),
    [
        (" positive", "positive"),
        ("positive", "positive"),
        ("\n negative \t", "negative"),
        ("very good", "very good"),
        ("  very \n good ", "very good"),
        ("Positive", None),
        ("POSITIVE", None),
        ("positive.", None),
        ("positive I think", None),
        ("positive positive", None),
        ("positive negative", None),
        ("verygood", None),
        ("very", None),
        ("positiv", None),
        ("", None),
        ("   ", None),
        ("<unk>", None),
    ],
)
def test_parse(generated: str, label: str | None) -> None:
    labels = ("negative", "positive", "very good")
    assert parse(PromptConfig(), labels, generated) == label


def test_parse_takes_the_whole_target_template() -> None:
    prompt = PromptConfig(target=" it is {label}!")
    assert parse(prompt, LABELS, "it is positive!") == "positive"
    assert parse(prompt, LABELS, "positive") is None


def test_words_stand_for_labels_in_prompts_alone() -> None:
    prompt = PromptConfig(words={"negative": "bad", "positive": "very good"})
    assert [render_target(prompt, label) for label in LABELS] == [" bad", " very good"]
    assert parse(prompt, LABELS, "very good") == "positive"
    assert parse(prompt, LABELS, "positive") is None


@given(label=st.text(min_size=1).map(lambda s: " ".join(s.split())).filter(bool))
def test_every_written_label_is_read_back(label: str) -> None:
    prompt = PromptConfig()
    assert parse(prompt, (label,), render_target(prompt, label)) == label


@pytest.mark.parametrize(
    ("template", "text", "prompt"),
    [
        ("Tweet: {text}\nSentiment:", "good", "Tweet: good\nSentiment:"),
        ("{x} {text} {{}}", "good", "{x} good {{}}"),
        ("{x} {text} {{}}", "{text} {x} {0} %s", "{x} {text} {x} {0} %s {{}}"),
        ("{text}", "", ""),
        ("{label}: {text}:", "{label}", "{label}: {label}:"),
    ],
)
def test_render_prompt(template: str, text: str, prompt: str) -> None:
    assert render_prompt(PromptConfig(input=template), text) == prompt


def test_render_target_keeps_braces_of_the_label() -> None:
    assert render_target(PromptConfig(target=" {x} {label}"), "{label}") == " {x} {label}"


def test_template_with_other_braces_is_encoded_as_written() -> None:
    prompt = PromptConfig(input="{x} {text} {{}}")
    spec = tiny_spec("gpt2", prompt=prompt)
    loaded = loading.describe(spec, examples(10))
    (ids,) = loading.prompt_encoder(loaded, spec).encode_prompts(["{text} a"])
    assert loaded.decode(ids[1:]) == "{x} {text} a {{}}"


@given(st.integers(0, 50), st.integers(0, 2**32))
def test_shots_are_training_texts_of_every_label_about_as_many(count: int, seed: int) -> None:
    train = examples(30)
    spec = tiny_spec(seed=seed, prompt=PromptConfig(shots=count))
    shots = choose_shots(train, spec)
    assert len(shots) == len(set(shots)) == min(count, 30)
    assert set(shots) <= set(train)
    counts = [sum(shot.label == label for shot in shots) for label in LABELS]
    assert abs(counts[0] - counts[1]) <= 1
    assert shots == choose_shots(train, spec)


def test_shots_stand_before_every_prompt_token_for_token(model: tuple[str, str]) -> None:
    loaded, plain = encoder_of(model)
    shots = [Example("so good", "positive"), Example("so bad", "negative")]
    spec = tiny_spec(model[0], training={"init": model[1], "max_tokens": 200})
    encoder = loading.prompt_encoder(loaded, spec, shots)
    (shown,) = encoder.encode_prompts(["what a day"])
    start, stop = plain.start_ids, plain.stop_ids
    parts: list[int] = [*start]
    for shot in shots:
        (one,) = plain.encode_examples([shot])
        body = one.prompt[len(start) : len(one.prompt) - len(stop)]
        parts += [*body, *one.target[:-1], *plain_ids(loaded, "\n\n")]
    (last,) = plain.encode_prompts(["what a day"])
    assert list(shown) == [*parts, *last[len(start) :]]


def test_shots_that_leave_no_room_are_refused(model: tuple[str, str]) -> None:
    loaded, _ = encoder_of(model)
    spec = tiny_spec(model[0], training={"init": model[1], "max_tokens": 64})
    with pytest.raises(ConfigError, match="leaves no room for any text"):
        loading.prompt_encoder(loaded, spec, [Example("long " * 40, "positive")] * 3)
