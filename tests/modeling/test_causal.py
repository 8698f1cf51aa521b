from typing import Any

import pytest
import torch
from torch import Tensor

from tgsent.modeling import causal
from tgsent.modeling.family import IGNORE, SpecialIds, token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded
from tiny_models import encode, examples, tiny_model, tiny_spec

PAD, END = 0, 9
IDS = SpecialIds(pad=PAD, end=END, decoder_start=PAD)
LONG = Encoded(prompt=(1, 2, 3), target=(4, END))
SHORT = Encoded(prompt=(5,), target=(6, END))
_ = IGNORE

LOSSES = ("label", "full", "padded")


@pytest.fixture(scope="module", params=["gpt2", "gpt-neo"])
def trial(request: pytest.FixtureRequest) -> tuple[LoadedModel, list[Encoded]]:
    """A tiny model without dropout, and examples of several lengths."""
    spec = tiny_spec(request.param)
    loaded = tiny_model(spec)
    return loaded, encode(loaded, spec, examples(14))


@pytest.mark.parametrize(
    ("loss", "pad_to", "columns", "labels"),
    [
        ("label", None, [0, 1, 2, 3], [[_, _, 4, END], [6, END, _, _]]),
        ("full", None, [0, 1, 2, 3], [[2, 3, 4, END], [6, END, _, _]]),
        ("padded", None, [0, 1, 2, 3], [[2, 3, 4, END], [6, END, PAD, PAD]]),
        ("label", 7, [0, 1, 2, 3], [[_, _, 4, END], [6, END, _, _]]),
        ("full", 7, [0, 1, 2, 3], [[2, 3, 4, END], [6, END, _, _]]),
        (
            "padded",
            7,
            [0, 1, 2, 3, 4, 5],
            [[2, 3, 4, END, PAD, PAD], [6, END, PAD, PAD, PAD, PAD]],
        ),
    ],
)
def test_collate(
    loss: str, pad_to: int | None, columns: list[int], labels: list[list[int]]
) -> None:
    batch = causal.collate([LONG, SHORT], IDS, loss, pad_to)
    more = [PAD] * ((pad_to or 5) - 5)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, END, *more], [5, 6, END, PAD, PAD, *more]],
        "attention_mask": [[1, 1, 1, 1, 1, *more], [1, 1, 1, 0, 0, *more]],
        "logits_to_keep": columns,
        "labels": labels,
    }


def test_collate_keeps_only_columns_with_labels() -> None:
    batch = causal.collate([LONG], IDS, "label", 8)
    assert batch["logits_to_keep"].tolist() == [2, 3]
    assert batch["labels"].tolist() == [[4, END]]
    assert batch["input_ids"].shape == (1, 8)


def test_an_end_token_that_also_pads_still_counts_where_it_ends_the_target() -> None:
    ids = SpecialIds(pad=END, end=END, decoder_start=END)
    batch = causal.collate([LONG, SHORT], ids, "label", None)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, END], [5, 6, END, END, END]]
    assert batch["labels"].tolist() == [[_, _, 4, END], [6, END, _, _]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_prompt_batch_pads_on_the_left() -> None:
    batch = causal.prompt_batch([(1, 2, 3), (5,)], IDS)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3], [PAD, PAD, 5]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
    }
    generated = torch.tensor([[1, 2, 3, 7, END], [PAD, PAD, 5, 8, 8]])
    assert causal.new_tokens(generated, batch).tolist() == [[7, END], [8, 8]]


def plain_loss(loaded: LoadedModel, example: Encoded, loss: str, padding: int) -> Tensor:
    """Loss of one example, from the logits of the text alone: no batch, no mask, no columns."""
    text = [*example.prompt, *example.target, *[loaded.ids.pad] * padding]
    mask = [1] * len(example) + [0] * padding
    logits = loaded.model(
        torch.tensor([text]), attention_mask=torch.tensor([mask]) if padding else None
    ).logits[0]
    log_probabilities = logits.log_softmax(dim=-1)
    first = len(example.prompt) if loss == "label" else 1
    last = len(text) if loss == "padded" else len(example)
    picked = [log_probabilities[at - 1, text[at]] for at in range(first, last)]
    return -torch.stack(picked).sum()


@pytest.mark.parametrize("pad_to", [None, 60])
@pytest.mark.parametrize("loss", LOSSES)
def test_token_losses_equal_a_plain_computation(
    trial: tuple[LoadedModel, list[Encoded]], loss: str, pad_to: int | None
) -> None:
    """Padding to the longest, or further, changes no example's loss."""
    loaded, encoded = trial
    width = pad_to or max(map(len, encoded))
    batch = causal.collate(encoded, loaded.ids, loss, pad_to)
    with torch.no_grad():
        plain = [
            plain_loss(loaded, e, loss, width - len(e) if loss == "padded" else 0) for e in encoded
        ]
        losses = token_losses(loaded.model, batch)
    assert losses.shape == batch["labels"].shape
    torch.testing.assert_close(losses.sum(dim=1), torch.stack(plain), rtol=1e-5, atol=1e-5)


def gradients(loaded: LoadedModel, batches: list[dict[str, Any]]) -> list[Tensor]:
    loaded.model.zero_grad()
    for batch in batches:
        token_losses(loaded.model, batch).sum().backward()
    return [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("loss", ["label", "full"])
def test_gradient_of_a_padded_batch_is_the_sum_over_its_examples(
    trial: tuple[LoadedModel, list[Encoded]], loss: str
) -> None:
    loaded, encoded = trial
    together = gradients(loaded, [causal.collate(encoded, loaded.ids, loss, 60)])
    alone = gradients(loaded, [causal.collate([e], loaded.ids, loss, None) for e in encoded])
    assert len(together) == len(list(loaded.model.parameters()))
    assert any(g.abs().max() > 1e-3 for g in together)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_left_padded_generation_equals_unpadded(
    trial: tuple[LoadedModel, list[Encoded]],
) -> None:
    loaded, encoded = trial
    prompts = [e.prompt for e in encoded]
    assert len(set(map(len, prompts))) > 3
    batch = causal.prompt_batch(prompts, loaded.ids)
    settings = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5}
    together = causal.new_tokens(loaded.model.generate(**batch, **settings), batch).tolist()
    alone = [
        loaded.model.generate(torch.tensor([p]), **settings)[0, len(p) :].tolist() for p in prompts
    ]
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) > 3
