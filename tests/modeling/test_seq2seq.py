import pytest
import torch
from torch import Tensor

from tgsent.modeling import seq2seq
from tgsent.modeling.family import IGNORE, SpecialIds, token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded
from tiny_models import encode, examples, tiny_model, tiny_spec

PAD, START, END = 0, 8, 9
IDS = SpecialIds(pad=PAD, end=END, decoder_start=START)
LONG = Encoded(prompt=(1, 2, 3, END), target=(4, END))
SHORT = Encoded(prompt=(5, END), target=(6, 7, END))
_ = IGNORE


@pytest.fixture(scope="module")
def trial() -> tuple[LoadedModel, list[Encoded]]:
    """A tiny T5 without dropout, and examples whose prompts and targets differ in length."""
    spec = tiny_spec("t5", labels=("negative", "very positive indeed"))
    train = examples(14, labels=("negative", "very positive indeed"))
    loaded = tiny_model(spec, train)
    encoded = encode(loaded, spec, train)
    assert len({len(e.target) for e in encoded}) == 2
    return loaded, encoded


@pytest.mark.parametrize("loss", ["label", "full", "padded"])
@pytest.mark.parametrize("pad_to", [None, 6])
def test_collate(loss: str, pad_to: int | None) -> None:
    batch = seq2seq.collate([LONG, SHORT], IDS, loss, pad_to)
    more = [PAD] * ((pad_to or 4) - 4)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3, END, *more], [5, END, PAD, PAD, *more]],
        "attention_mask": [[1, 1, 1, 1, *more], [1, 1, 0, 0, *more]],
        "decoder_input_ids": [[START, 4, PAD], [START, 6, 7]],
        "labels": [[4, END, _], [6, 7, END]],
    }


def test_prompt_batch_pads_on_the_right() -> None:
    batch = seq2seq.prompt_batch([LONG.prompt, SHORT.prompt], IDS)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3, END], [5, END, PAD, PAD]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
    }
    generated = torch.tensor([[START, 4, END], [START, 6, PAD]])
    assert seq2seq.new_tokens(generated, batch).tolist() == [[4, END], [6, PAD]]


def plain_loss(loaded: LoadedModel, example: Encoded) -> Tensor:
    """Loss of one target, from the logits of the example alone."""
    read = [loaded.ids.decoder_start, *example.target[:-1]]
    logits = loaded.model(
        torch.tensor([example.prompt]), decoder_input_ids=torch.tensor([read])
    ).logits[0]
    log_probabilities = logits.log_softmax(dim=-1)
    return -torch.stack([log_probabilities[at, i] for at, i in enumerate(example.target)]).sum()


@pytest.mark.parametrize("pad_to", [None, 80])
@pytest.mark.parametrize("loss", ["label", "full", "padded"])
def test_token_losses_equal_a_plain_computation(
    trial: tuple[LoadedModel, list[Encoded]], loss: str, pad_to: int | None
) -> None:
    """Padding to the longest, or further, changes no example's loss."""
    loaded, encoded = trial
    batch = seq2seq.collate(encoded, loaded.ids, loss, pad_to)
    with torch.no_grad():
        plain = torch.stack([plain_loss(loaded, e) for e in encoded])
        losses = token_losses(loaded.model, batch)
    assert losses.shape == batch["labels"].shape
    torch.testing.assert_close(losses.sum(dim=1), plain, rtol=1e-5, atol=1e-5)


def test_token_losses_equal_the_loss_of_transformers(
    trial: tuple[LoadedModel, list[Encoded]],
) -> None:
    loaded, encoded = trial
    batch = seq2seq.collate(encoded, loaded.ids, "label", None)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        expected = loaded.model(**inputs).loss  # mean; the decoder's input is made from the labels
        losses = token_losses(loaded.model, batch)
    mean = losses.sum() / (batch["labels"] != IGNORE).sum()
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)


def gradients(loaded: LoadedModel, parts: list[list[Encoded]], pad_to: int | None) -> list[Tensor]:
    loaded.model.zero_grad()
    for part in parts:
        batch = seq2seq.collate(part, loaded.ids, "label", pad_to)
        token_losses(loaded.model, batch).sum().backward()
    return [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]


def test_gradient_of_a_padded_batch_is_the_sum_over_its_examples(
    trial: tuple[LoadedModel, list[Encoded]],
) -> None:
    loaded, encoded = trial
    together = gradients(loaded, [encoded], 80)
    alone = gradients(loaded, [[e] for e in encoded], None)
    assert len(together) == len(list(loaded.model.parameters()))
    assert any(g.abs().max() > 1e-3 for g in together)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_padded_generation_equals_unpadded_and_starts_from_the_decoder_start(
    trial: tuple[LoadedModel, list[Encoded]],
) -> None:
    loaded, encoded = trial
    prompts = [e.prompt for e in encoded]
    batch = seq2seq.prompt_batch(prompts, loaded.ids)
    settings = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5}
    together = loaded.model.generate(**batch, **settings).tolist()
    alone = [loaded.model.generate(torch.tensor([p]), **settings)[0].tolist() for p in prompts]
    assert together == alone
    assert {tokens[0] for tokens in together} == {loaded.ids.decoder_start}
    assert loaded.ids.decoder_start == loaded.tokenizer.pad_token_id
    assert len({tuple(tokens) for tokens in alone}) > 3
