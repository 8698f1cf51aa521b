"""Encoder-decoder models (T5 and its kin): the encoder reads the prompt, the decoder the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from tgsent.modeling.family import IGNORE, Batch, Counted, SpecialIds, cached, inputs, pad
from tgsent.records import Encoded

is_seq2seq: bool = True


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
        **inputs([e.prompt for e in examples], ids.pad, pad_to),
        "decoder_input_ids": pad(read, ids.pad),  # (B, target)
        "labels": pad(targets, IGNORE),  # (B, target)
    }


def prompt_batch(prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
    """Pad on the right: the encoder's positions are relative."""
    return inputs(prompts, ids.pad)


def target_logits(
    model: PreTrainedModel, batch: Batch, targets: Sequence[tuple[int, ...]]
) -> Iterator[Tensor]:
    """Encode the prompts once, and keep the decoder's keys and values of them for all targets."""
    mask = batch["attention_mask"]  # (B, T)
    encoded = model.get_encoder()(**batch)
    config = model.config.get_text_config(decoder=True)
    cross = DynamicCache()
    for target in targets:
        tokens = torch.tensor(target, device=mask.device)  # (target,)
        start = tokens.new_full((1,), model.generation_config.decoder_start_token_id)
        output = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:-1]]).expand(len(mask), -1),
            **cached(model, EncoderDecoderCache(DynamicCache(config=config), cross)),
        )
        yield output.logits


def new_tokens(generated: Tensor, batch: Batch) -> Tensor:
    """Remove the start token, with which the output begins."""
    del batch
    return generated[:, 1:]
