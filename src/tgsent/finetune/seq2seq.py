"""Encoder-decoder models (T5 and its kin): the encoder reads the prompt, the decoder the label."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tgsent.finetune.family import IGNORE, Batch, Counted, SpecialIds, pad
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
