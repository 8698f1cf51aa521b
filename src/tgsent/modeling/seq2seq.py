"""Encoder-decoder models (T5 and its kin): the encoder reads the prompt, the decoder the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, PreTrainedModel

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

is_seq2seq: bool = True
auto_class: Any = AutoModelForSeq2SeqLM
padding_side: Literal["left", "right"] = "right"


def collate(
    examples: Sequence[Encoded], ids: SpecialIds, counted: Counted, pad_to: int | None
) -> Batch:
    """Pad on the right; the decoder reads its start token (T5: the padding token) and the target.

    Only the target is predicted, so that every value of `counted` means the whole target.
    """
    del counted
    targets = [e.target for e in examples]
    read = [(ids.decoder_start, *target[:-1]) for target in targets]
    return {
        **_encoder_inputs([e.prompt for e in examples], ids, pad_to),
        "decoder_input_ids": pad(read, ids.pad),  # (B, target)
        "labels": pad(targets, IGNORE),  # (B, target)
    }


def prompt_batch(prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
    """Pad on the right: the encoder's positions are relative."""
    return _encoder_inputs(prompts, ids, None)


def log_likelihoods(
    model: PreTrainedModel, batch: Batch, targets: Sequence[tuple[int, ...]], ids: SpecialIds
) -> Tensor:
    """Encode the prompts once, and keep the decoder's keys and values of them for all targets."""
    mask = batch["attention_mask"]  # (B, T)
    encoded = model.get_encoder()(**batch)
    config = model.config.get_text_config(decoder=True)
    cross = DynamicCache()
    columns = []
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)  # (target,)
        start = tokens.new_full((1,), ids.decoder_start)
        output = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:-1]]).expand(len(mask), -1),
            **{
                cache_argument(model): EncoderDecoderCache(DynamicCache(config=config), cross),
                "use_cache": True,
            },
        )
        columns.append(log_likelihood(output.logits, tokens))
    return torch.stack(columns, dim=1)


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Remove the start token, with which the output begins."""
    del batch
    return generated[:, 1:]


def _encoder_inputs(
    prompts: Sequence[tuple[int, ...]], ids: SpecialIds, pad_to: int | None
) -> Batch:
    return {
        "input_ids": pad(prompts, ids.pad, pad_to),
        "attention_mask": pad([[1] * len(p) for p in prompts], 0, pad_to),
    }
