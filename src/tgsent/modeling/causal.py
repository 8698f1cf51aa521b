"""Causal language models (GPT-2, GPT-Neo and their kin): prompt and target are one text."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tgsent.modeling.batches import (
    IGNORE,
    Batch,
    Counted,
    SpecialIds,
    cache_argument,
    log_likelihood,
    pad,
)
from tgsent.records import Encoded

is_seq2seq: bool = False
auto_class: Any = AutoModelForCausalLM
padding_side: Literal["left", "right"] = "left"


def collate(
    examples: Sequence[Encoded], ids: SpecialIds, counted: Counted, pad_to: int | None
) -> Batch:
    """Pad on the right; the label of a position is the token that follows it."""
    texts = [(*e.prompt, *e.target) for e in examples]
    input_ids = pad(texts, ids.pad, pad_to)  # (B, T)
    attention_mask = pad([[1] * len(text) for text in texts], 0, pad_to)  # (B, T)
    if counted == "padded":
        labels = input_ids.roll(-1, dims=1)
        labels[:, -1] = IGNORE
    else:
        labels = pad([_next_tokens(e, counted) for e in examples], IGNORE, input_ids.shape[1])
    # only columns that hold a label somewhere go through the output head, the costliest layer
    columns = (labels != IGNORE).any(dim=0).nonzero().flatten()
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "logits_to_keep": columns,
        "labels": labels[:, columns],  # (B, columns)
    }


def _next_tokens(example: Encoded, counted: Counted) -> list[int]:
    before = len(example.prompt) - 1
    prompt = list(example.prompt[1:]) if counted == "full" else [IGNORE] * before
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
    """Read the prompts once, and score each target as their continuation in the KV cache."""
    del ids
    mask = batch["attention_mask"]  # (B, T)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    first = _read(model, batch["input_ids"], mask, positions, cache, keep=1)  # (B, 1, vocabulary)
    columns = []
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)  # (target,)
        logits = first
        if len(target) > 1:
            next_ids = tokens[:-1].expand(len(mask), -1)  # (B, target - 1)
            more = _continue(model, next_ids, mask, positions[:, -1:], cache)
            logits = torch.cat([first, more], dim=1)  # (B, target, vocabulary)
        columns.append(log_likelihood(logits, tokens))
    return torch.stack(columns, dim=1)


def _continue(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, last: Tensor, cache: DynamicCache
) -> Tensor:
    """Read tokens (B, T) after the prompts in the cache, and leave the cache as it was.

    A cache of full attention is cropped afterwards. Sliding windows and recurrent states cannot be
    cropped: they are copied, and the tokens are read one at a time, as Mamba requires. `last`
    (B, 1) is the position of each prompt's last token. Return the logits (B, T, vocabulary).
    """
    mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    positions = last + torch.arange(1, ids.shape[1] + 1, device=mask.device)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        logits = _read(model, ids, mask, positions, cache)
        cache.crop(-ids.shape[1])
        return logits
    cache, parts = copy.deepcopy(cache), []
    # without attention layers, the mask covers the new token alone
    attends = any(isinstance(layer, DynamicLayer) for layer in cache.layers)
    for k in range(ids.shape[1]):
        column = slice(k, k + 1)
        seen = mask[:, : mask.shape[1] - ids.shape[1] + k + 1] if attends else mask[:, -1:]
        parts.append(_read(model, ids[:, column], seen, positions[:, column], cache))
    return torch.cat(parts, dim=1)


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
    """Remove the prompt, with which the output begins."""
    return generated[:, batch["input_ids"].shape[1] :]
