"""Causal language models (GPT-2, GPT-Neo and their kin): prompt and label are one text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tgsent.finetune.family import IGNORE, Batch, Counted, SpecialIds, pad
from tgsent.records import Encoded


def collate(
    examples: Sequence[Encoded], ids: SpecialIds, loss: Counted, pad_to: int | None
) -> Batch:
    """Pad on the right; the label of a position is the token that follows it."""
    texts = [(*e.prompt, *e.target) for e in examples]
    input_ids = pad(texts, ids.pad, pad_to)
    if loss == "padded":
        labels = input_ids.roll(-1, dims=1)
        labels[:, -1] = IGNORE
    else:
        labels = pad([_next_tokens(e, loss) for e in examples], IGNORE, input_ids.shape[1])
    attention_mask = pad([[1] * len(text) for text in texts], 0, pad_to)
    # only columns that hold a label somewhere go through the output head, the dearest layer
    counted = (labels != IGNORE).any(dim=0).nonzero().flatten()
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "logits_to_keep": counted,
        "labels": labels[:, counted],
    }


def _next_tokens(example: Encoded, loss: Counted) -> list[int]:
    before = len(example.prompt) - 1
    prompt = list(example.prompt[1:]) if loss == "full" else [IGNORE] * before
    return [*prompt, *example.target, IGNORE]


def prompt_batch(prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
    """Pad on the left, so that every answer begins right after its prompt.

    `generate` counts positions from the first token that is not masked.
    """
    return {
        "input_ids": pad(prompts, ids.pad, left=True),
        "attention_mask": pad([[1] * len(p) for p in prompts], 0, left=True),
    }


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Cut the prompt off."""
    return generated[:, batch["input_ids"].shape[1] :]
