"""Causal language models (GPT-2, GPT-Neo and their kin): prompt and target are one text."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tgsent.modeling.family import IGNORE, Batch, Counted, SpecialIds, cached, inputs, pad
from tgsent.records import Encoded

is_seq2seq: bool = False


def collate(
    examples: Sequence[Encoded], ids: SpecialIds, counted: Counted, pad_to: int | None
) -> Batch:
    """Pad on the right; the label of a position is the token that follows it."""
    batch = inputs([(*e.prompt, *e.target) for e in examples], ids.pad, pad_to)
    if counted == "padded":
        labels = batch["input_ids"].roll(-1, dims=1)
        labels[:, -1] = IGNORE
    else:
        width = batch["input_ids"].shape[1]
        labels = pad([_next_tokens(e, counted) for e in examples], IGNORE, width)
    # only columns that hold a label somewhere go through the output head, the costliest layer
    columns = (labels != IGNORE).any(dim=0).nonzero().flatten()
    return {**batch, "logits_to_keep": columns, "labels": labels[:, columns]}  # (B, columns)


def _next_tokens(example: Encoded, counted: Counted) -> list[int]:
    before = len(example.prompt) - 1
    prompt = list(example.prompt[1:]) if counted == "full" else [IGNORE] * before
    return [*prompt, *example.target, IGNORE]


def prompt_batch(prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
    """Pad on the left, so that every answer begins right after its prompt.

    `generate` counts positions from the first token that is not masked.
    """
    return inputs(prompts, ids.pad, left=True)


def target_logits(
    model: PreTrainedModel, batch: Batch, targets: Sequence[tuple[int, ...]]
) -> Iterator[Tensor]:
    """Read the prompts once, and each target as their continuation in the KV cache."""
    mask = batch["attention_mask"]  # (B, T)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    first = _read(model, batch["input_ids"], mask, cache, keep=1)  # (B, 1, vocabulary)
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)  # (target,)
        more = _continue(model, tokens[:-1].expand(len(mask), -1), mask, cache)
        yield torch.cat([first, more], dim=1)


def _continue(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Read tokens (B, T) after the prompts in the cache, and leave the cache as it was.

    A cache of full attention is cropped afterwards. Sliding windows and recurrent states cannot be
    cropped: they are copied, and the tokens are read one at a time, as Mamba requires. Return the
    logits (B, T, vocabulary).
    """
    mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        logits = _read(model, ids, mask, cache)
        cache.crop(-ids.shape[1])
        return logits
    cache, parts = copy.deepcopy(cache), []
    # without attention layers, the mask covers the new token alone
    attends = any(isinstance(layer, DynamicLayer) for layer in cache.layers)
    for k in range(ids.shape[1]):
        seen = mask[:, : mask.shape[1] - ids.shape[1] + k + 1] if attends else mask[:, -1:]
        parts.append(_read(model, ids[:, k : k + 1], seen, cache))
    return torch.cat(parts, dim=1)


def _read(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache, keep: int = 0
) -> Tensor:
    """Read tokens (B, T) after what is in the cache; return the logits of the last `keep`, or all.

    Positions are passed only to models that accept them.
    """
    named = cached(model, cache)
    if "position_ids" in inspect.signature(model.forward).parameters:
        named["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    logits: Tensor = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep, **named).logits
    return logits


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Remove the prompt, with which the output begins."""
    return generated[:, batch["input_ids"].shape[1] :]
