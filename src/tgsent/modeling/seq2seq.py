"""Encoder-decoder models (T5 and its kin): the encoder reads the prompt, the decoder the label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

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
    """Pad on the right; the decoder reads its start token (T5: the padding token) and the target.

    Only the target is predicted here, so that every kind of `loss` means the whole target.
    """
    del loss
    targets = [e.target for e in examples]
    return {
        **_encoder_inputs([e.prompt for e in examples], ids, pad_to),
        "decoder_input_ids": pad(
            [(ids.decoder_start, *target[:-1]) for target in targets], ids.pad
        ),
        "labels": pad(targets, IGNORE),
    }


def prompt_batch(prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
    """Pad on the right: the encoder's positions are relative."""
    return _encoder_inputs(prompts, ids, None)


def log_likelihoods(
    model: PreTrainedModel, batch: Batch, targets: Sequence[tuple[int, ...]], ids: SpecialIds
) -> Tensor:
    """Encode the prompts once; the decoder's view of them is kept from target to target."""
    mask = batch["attention_mask"]
    encoded = model.get_encoder()(**batch)
    config = model.config.get_text_config(decoder=True)
    cross = DynamicCache()
    columns = []
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)
        start = tokens.new_full((1,), ids.decoder_start)
        read = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:-1]]).expand(len(mask), -1),
            **{
                cache_argument(model): EncoderDecoderCache(DynamicCache(config=config), cross),
                "use_cache": True,
            },
        )
        columns.append(sum_of_chosen(read.logits, tokens))
    return torch.stack(columns, dim=1)


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Cut the start token off."""
    del batch
    return generated[:, 1:]


def _encoder_inputs(
    prompts: Sequence[tuple[int, ...]], ids: SpecialIds, pad_to: int | None
) -> Batch:
    return {
        "input_ids": pad(prompts, ids.pad, pad_to),
        "attention_mask": pad([[1] * len(p) for p in prompts], 0, pad_to),
    }
