"""Causal language models (GPT-2, GPT-Neo and their kin): prompt and label are one text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tgsent.finetune.family import (
    IGNORE,
    Batch,
    Counted,
    SpecialIds,
    cache_argument,
    pad,
    sum_of_chosen,
)
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


def log_likelihoods(
    model: PreTrainedModel, batch: Batch, targets: Sequence[tuple[int, ...]], ids: SpecialIds
) -> Tensor:
    """Read the prompts once; let each target follow them in the cache, which then forgets it."""
    del ids
    mask = batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    with_cache = {cache_argument(model): cache, "use_cache": True}
    read = model(**batch, position_ids=positions, logits_to_keep=1, **with_cache)
    columns = []
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)
        follow = tokens[:-1].expand(len(mask), -1)
        following = model(
            input_ids=follow,
            attention_mask=torch.cat([mask, torch.ones_like(follow)], dim=1),
            position_ids=positions[:, -1:] + torch.arange(1, len(target), device=mask.device),
            **with_cache,
        )
        cache.crop(1 - len(target))
        logits = torch.cat([read.logits[:, -1:], following.logits], dim=1)
        columns.append(sum_of_chosen(logits, tokens))
    return torch.stack(columns, dim=1)


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Cut the prompt off."""
    return generated[:, batch["input_ids"].shape[1] :]
