import copy
import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

from tgsent.config import EvaluationConfig, TrialSpec
from tgsent.evaluation.generate import classify, corrected, label_prior
from tgsent.modeling import causal, loading
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import parse, render_target
from tgsent.records import Encoded, Example, Prediction
from tiny_models import (
    FAMILIES,
    LABELS,
    Silent,
    encode,
    examples,
    set_dropout,
    tiny_model,
    tiny_spec,
)

DECODINGS = ("free", "constrained", "score")
FORKED = ("very good", "very bad")  # labels that share their first token


@cache
def model(name: str, labels: tuple[str, str] = LABELS) -> tuple[LoadedModel, TrialSpec]:
    spec = tiny_spec(name, labels=labels)
    train = [*examples(24, labels), *[Example("very very good, very very bad", labels[0])] * 8]
    return tiny_model(spec, train), spec


def answers(
    loaded: LoadedModel, spec: TrialSpec, texts: list[Example], decoding: str, batch_size: int
) -> tuple[Prediction, ...]:
    evaluation = EvaluationConfig(decoding=decoding, batch_size=batch_size)
    spec = spec.model_copy(update={"evaluation": evaluation})
    return classify(loaded, loading.prompt_encoder(loaded, spec), texts, spec, Silent())


@pytest.mark.parametrize("labels", [LABELS, FORKED])
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_do_not_depend_on_the_batch_size(
    name: str, decoding: str, labels: tuple[str, str]
) -> None:
    loaded, spec = model(name, labels)
    texts = examples(30, labels)
    one = answers(loaded, spec, texts, decoding, 1)
    assert [(p.text, p.label) for p in one] == [(e.text, e.label) for e in texts]
    if decoding != "constrained":  # a model that always says the same would show nothing
        assert len({(p.generated, p.probabilities) for p in one}) > 1
    for size in (7, 64):
        other = answers(loaded, spec, texts, decoding, size)
        assert [(p.text, p.predicted, p.generated) for p in other] == [
            (p.text, p.predicted, p.generated) for p in one
        ]
        for p, q in zip(one, other, strict=True):
            assert p.probabilities == pytest.approx(q.probabilities, abs=1e-5)


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_follow_their_texts(name: str, decoding: str) -> None:
    loaded, spec = model(name)
    texts = examples(20)
    forth = answers(loaded, spec, texts, decoding, 7)
    back = answers(loaded, spec, texts[::-1], decoding, 7)[::-1]
    assert [(p.text, p.label, p.generated) for p in forth] == [
        (p.text, p.label, p.generated) for p in back
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_no_label_is_kept_as_generated(name: str) -> None:
    loaded, spec = model(name)
    said = answers(loaded, spec, examples(20), "free", 7)
    assert all(p.predicted == parse(spec.prompt, LABELS, p.generated) for p in said)
    unparsed = [p.generated for p in said if p.predicted is None]
    assert len(set(unparsed)) > 1
    assert all(p.probabilities is None for p in said)


def spy_on_generation(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The new tokens of every row, the model's own choices and what fills the row up after them."""
    rows: list[list[int]] = []
    generate = loaded.model.generate

    def spy(**arguments: Any) -> torch.Tensor:
        generated: torch.Tensor = generate(**arguments)
        rows.extend(loaded.family.new_tokens(generated, arguments).tolist())
        return generated

    monkeypatch.setattr(loaded.model, "generate", spy)
    return rows


@pytest.mark.parametrize("decoding", ["free", "constrained"])
@pytest.mark.parametrize("labels", [LABELS, FORKED])
@pytest.mark.parametrize("name", FAMILIES)
def test_never_more_tokens_than_the_longest_target(
    name: str, labels: tuple[str, str], decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, spec = model(name, labels)
    longest = max(map(len, loading.prompt_encoder(loaded, spec).targets.values()))
    rows = spy_on_generation(loaded, monkeypatch)
    said = answers(loaded, spec, examples(12, labels), decoding, 12)
    assert len(rows) == len(said) == 12
    assert max(map(len, rows)) <= longest
    if decoding == "free":
        assert max(map(len, rows)) == longest


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_at_the_end_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says the end token at once says nothing, in one step."""
    loaded, spec = model(name)
    rows = spy_on_generation(loaded, monkeypatch)

    def end_first(module: Any, inputs: Any, output: Any) -> Any:
        output.logits[..., loaded.ids.end] = 1e4
        return output

    hook = loaded.model.register_forward_hook(end_first)
    said = answers(loaded, spec, examples(5), "free", 5)
    hook.remove()
    assert rows == [[loaded.ids.end]] * 5
    assert [(p.generated, p.predicted) for p in said] == [("", None)] * 5


@pytest.mark.parametrize("name", FAMILIES)
def test_what_follows_the_end_token_is_no_part_of_the_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, spec = model(name)
    positive = loading.prompt_encoder(loaded, spec).targets["positive"]
    row = [*positive, positive[0], loaded.ids.pad]

    def generate(**arguments: Any) -> torch.Tensor:
        ids = arguments["input_ids"]
        start = ids if loaded.family is causal else ids[:, :1]
        return torch.cat([start, torch.tensor([row] * len(ids))], dim=1)

    monkeypatch.setattr(loaded.model, "generate", generate)
    said = answers(loaded, spec, examples(3), "free", 3)
    assert [p.predicted for p in said] == ["positive"] * 3
    assert [p.generated.strip() for p in said] == ["positive"] * 3


@pytest.mark.parametrize("labels", [LABELS, FORKED])
@pytest.mark.parametrize("decoding", ["constrained", "score"])
@pytest.mark.parametrize("name", FAMILIES)
def test_constrained_and_score_always_give_a_label(
    name: str, decoding: str, labels: tuple[str, str]
) -> None:
    loaded, spec = model(name, labels)
    said = answers(loaded, spec, examples(20, labels), decoding, 7)
    assert {p.predicted for p in said} <= set(labels)
    for p in said:
        assert p.predicted is not None
        assert p.generated.split() == render_target(spec.prompt, p.predicted).split()


def log_likelihood(loaded: LoadedModel, example: Encoded) -> float:
    """Of a target, from the logits of one text alone."""
    prompt = torch.tensor([example.prompt])
    target = torch.tensor(example.target)
    if loaded.family is causal:
        text = torch.cat([prompt[0], target])[None]
        logits = loaded.model(text).logits[0, len(example.prompt) - 1 : -1]
    else:
        read = torch.tensor([[loaded.ids.decoder_start, *example.target[:-1]]])
        logits = loaded.model(prompt, decoder_input_ids=read).logits[0]
    return float(logits.log_softmax(-1).gather(1, target[:, None]).sum())


@torch.no_grad()
def plain_probabilities(loaded: LoadedModel, spec: TrialSpec, text: str) -> list[float]:
    encoded = encode(loaded, spec, [Example(text, label) for label in spec.labels])
    return torch.tensor([log_likelihood(loaded, e) for e in encoded]).softmax(0).tolist()


@pytest.mark.parametrize("labels", [LABELS, FORKED, ("good", "very bad")])
@pytest.mark.parametrize("name", FAMILIES)
def test_score_gives_the_likelihoods_of_the_labels(name: str, labels: tuple[str, str]) -> None:
    loaded, spec = model(name, labels)
    said = answers(loaded, spec, examples(12, labels), "score", 5)
    for p in said:
        assert p.probabilities is not None
        assert sum(p.probabilities) == pytest.approx(1)
        assert p.probabilities == pytest.approx(plain_probabilities(loaded, spec, p.text), abs=1e-4)
        assert p.predicted == labels[p.probabilities.index(max(p.probabilities))]


@pytest.mark.parametrize("name", FAMILIES)
def test_constrained_takes_the_likelier_branch_where_labels_part(name: str) -> None:
    """`very good` and `very bad` begin alike, so that what follows decides."""
    loaded, spec = model(name, FORKED)
    good, bad = (loading.prompt_encoder(loaded, spec).targets[label] for label in FORKED)
    assert good[0] == bad[0]
    said = answers(loaded, spec, examples(12, FORKED), "constrained", 5)
    for p in said:
        encoded = encode(loaded, spec, [Example(p.text, label) for label in FORKED])
        assert p.predicted == greedy(loaded, encoded)


@torch.no_grad()
def greedy(loaded: LoadedModel, encoded: list[Encoded]) -> str:
    """The label that greedy choice among the two targets' tokens ends in."""
    one, other = (e.target for e in encoded)
    fork = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    ends = [Encoded(e.prompt, e.target[: fork + 1]) for e in encoded]
    likelier = log_likelihood(loaded, ends[0]) > log_likelihood(loaded, ends[1])
    return FORKED[0] if likelier else FORKED[1]


def test_a_model_in_training_mode_answers_without_dropout() -> None:
    loaded, spec = model("gpt2")
    expected = answers(loaded, spec, examples(6), "score", 6)
    noisy = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).train())
    set_dropout(noisy.model, 0.5)
    assert answers(noisy, spec, examples(6), "score", 6) == expected


def test_probabilities_are_divided_by_the_prior_and_sum_to_one_again() -> None:
    """Probabilities of 0.9 and 0.1 with a prior of 0.75 and 0.25: 1.2 and 0.4, so 0.75 and 0.25."""
    likelihoods = torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.6, 0.4]], dtype=torch.float64).log()
    found = corrected(likelihoods, (0.75, 0.25))
    expected = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert torch.equal(corrected(likelihoods, None), likelihoods.softmax(dim=1))
    assert corrected(likelihoods, (1.0, 0.0)).isfinite().all()


def zero_shot(name: str, calibration: str, decoding: str = "score") -> TrialSpec:
    spec = model(name)[1]
    evaluation = EvaluationConfig.model_validate({"decoding": decoding, "calibration": calibration})
    training = spec.training.model_copy(update={"epochs": 0})
    return spec.model_copy(update={"evaluation": evaluation, "training": training})


def biased(name: str) -> LoadedModel:
    """A model whose head prefers one label, whatever the text."""
    spec = tiny_spec(name)
    loaded = tiny_model(spec)
    preferred = loading.prompt_encoder(loaded, spec).targets["positive"][0]

    def prefer(module: Any, inputs: Any, output: Any) -> Any:
        output.logits[..., preferred] += 30.0
        return output

    loaded.model.register_forward_hook(prefer)
    return loaded


@pytest.mark.parametrize("name", FAMILIES)
def test_calibration_takes_a_models_own_preference_away(name: str) -> None:
    loaded, texts = biased(name), examples(20)
    said = {}
    for calibration in ("none", "contextual", "auto"):
        spec = zero_shot(name, calibration)
        encoder = loading.prompt_encoder(loaded, spec)
        prior = label_prior(loaded, encoder, spec)
        assert (prior is None) == (calibration == "none")
        said[calibration] = classify(loaded, encoder, texts, spec, Silent(), prior)
        assert encoder.truncated == 0
    assert {p.predicted for p in said["none"]} == {"positive"}
    assert {p.predicted for p in said["contextual"]} == set(LABELS)
    assert said["auto"] == said["contextual"]
    for p in said["contextual"]:
        assert p.probabilities is not None
        assert sum(p.probabilities) == pytest.approx(1)


def test_the_prior_is_the_mean_over_texts_without_content() -> None:
    loaded, spec = model("gpt2")[0], zero_shot("gpt2", "contextual")
    prior = label_prior(loaded, loading.prompt_encoder(loaded, spec), spec)
    alone = [plain_probabilities(loaded, spec, text) for text in ("N/A", "[MASK]", "")]
    mean = [sum(column) / 3 for column in zip(*alone, strict=True)]
    assert prior == pytest.approx(mean, abs=1e-5)


def test_an_empty_prompt_is_left_out_of_the_prior() -> None:
    spec = zero_shot("gpt2", "contextual")
    prompt = spec.prompt.model_copy(update={"input": "{text}"})
    spec = spec.model_copy(update={"prompt": prompt})
    loaded = tiny_model(spec)
    loaded.tokenizer.bos_token = None
    prior = label_prior(loaded, loading.prompt_encoder(loaded, spec), spec)
    assert prior is not None
    assert sum(prior) == pytest.approx(1)


@pytest.mark.parametrize(
    ("decoding", "epochs", "calibrated"),
    [("score", 0, True), ("score", 1, False), ("free", 0, False), ("constrained", 0, False)],
)
def test_auto_calibrates_models_that_are_not_trained(
    decoding: str, epochs: int, calibrated: bool
) -> None:
    spec = zero_shot("gpt2", "auto", decoding)
    training = spec.training.model_copy(update={"epochs": epochs})
    spec = spec.model_copy(update={"training": training})
    assert (spec.calibration == "contextual") == calibrated
    assert spec.model_copy(update={"model": "tfidf"}).calibration == "none"
