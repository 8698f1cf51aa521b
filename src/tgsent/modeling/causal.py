"""Causal language models (GPT-2, GPT-Neo and their kin): prompt and label are one text."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tgsent.modeling.family import (
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
    """Read the prompts once; let each target follow them in the cache."""
    del ids
    mask = batch["attention_mask"]  # (B, T)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    read = _read(model, batch["input_ids"], mask, positions, cache, keep=1)  # (B, 1, vocabulary)
    columns = []
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)
        follow = tokens[:-1].expand(len(mask), -1)
        logits = read
        if len(target) > 1:
            following = _follow(model, follow, mask, positions[:, -1:], cache)
            logits = torch.cat([logits, following], dim=1)
        columns.append(sum_of_chosen(logits, tokens))
    return torch.stack(columns, dim=1)


def _follow(
    model: PreTrainedModel, follow: Tensor, mask: Tensor, last: Tensor, cache: DynamicCache
) -> Tensor:
    """Read tokens (B, T) after the prompts in the cache, and leave the cache as it was.

    A cache of full attention is cropped afterwards. Sliding windows and recurrent states cannot be
    cropped: they are copied, and the tokens are read one at a time, as Mamba requires. `last`
    (B, 1) is the position of each prompt's last token. Return the logits (B, T, vocabulary).
    """
    mask = torch.cat([mask, torch.ones_like(follow)], dim=1)
    positions = last + torch.arange(1, follow.shape[1] + 1, device=mask.device)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        logits = _read(model, follow, mask, positions, cache)
        cache.crop(-follow.shape[1])
        return logits
    cache, read = copy.deepcopy(cache), []
    # without attention layers, the mask covers the new token alone
    attends = any(isinstance(layer, DynamicLayer) for layer in cache.layers)
    for k in range(follow.shape[1]):
        column = slice(k, k + 1)
        seen = mask[:, : mask.shape[1] - follow.shape[1] + k + 1] if attends else mask[:, -1:]
        read.append(_read(model, follow[:, column], seen, positions[:, column], cache))
    return torch.cat(read, dim=1)


def _read(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache,
    keep: int = 0,
) -> Tensor:
    """Read tokens (B, T) after what is in the cache; return the logits of the last `keep`, or all.

    `position_ids` are passed only to models that accept them.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        logits_to_keep=keep,
        **({"position_ids": positions} if takes_positions else {}),
        **{cache_argument(model): cache, "use_cache": True},
    ).logits
    return logits


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Cut the prompt off."""
    return generated[:, batch["input_ids"].shape[1] :]
