"""What the families of models have in common: their protocol, batches, and what logits say."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, PreTrainedModel

from tgsent.records import Encoded

Counted = Literal["label", "full", "padded"]
"""Tokens that count in the loss: the label and the EOS token; the prompt too; the padding too."""

IGNORE = -100
"""Label of a position that does not count in the loss."""

Batch = dict[str, Tensor]
"""Arguments of the model's forward, and `labels` (B, T): the token that each of the T logits it
returns is to predict, or IGNORE."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens around prompts and targets."""

    pad: int
    end: int
    """Ends every target."""
    decoder_start: int
    """What the decoder of a seq2seq model reads first."""


class Family(Protocol):
    """How models of one family read prompts, are trained and generate.

    The modules `causal` and `seq2seq` implement it. Code that depends on the family calls these
    functions; where that is not enough, it asks `is_seq2seq`.
    """

    is_seq2seq: bool
    """Whether an encoder reads the prompt and a decoder writes the target."""

    def collate(
        self, examples: Sequence[Encoded], ids: SpecialIds, counted: Counted, pad_to: int | None
    ) -> Batch:
        """Make a batch for training, padded to `pad_to` tokens or to the longest text."""
        ...

    def prompt_batch(self, prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
        """Make a batch to generate from."""
        ...

    def target_logits(
        self, model: PreTrainedModel, batch: Batch, targets: Sequence[tuple[int, ...]]
    ) -> Iterator[Tensor]:
        """Yield the logits of every target after every prompt: (B, target, vocabulary).

        The prompts are read once, however many targets there are.
        """
        ...

    def new_tokens(self, generated: Tensor, batch: Batch) -> Tensor:
        """Return the tokens after the prompt in the output of `generate` (B, T)."""
        ...


def pad(
    sequences: Sequence[Sequence[int]], value: int, length: int | None = None, *, left: bool = False
) -> Tensor:
    """Stack sequences to (B, T), padded with `value` to `length` or to the longest."""
    width = max(map(len, sequences)) if length is None else length
    return torch.tensor(
        [
            [value] * (width - len(s)) + list(s) if left else list(s) + [value] * (width - len(s))
            for s in sequences
        ],
        dtype=torch.long,
    )


def inputs(
    sequences: Sequence[Sequence[int]], value: int, length: int | None = None, *, left: bool = False
) -> Batch:
    """Pad sequences as `pad` does; return them with their attention mask."""
    seen = [[1] * len(sequence) for sequence in sequences]
    return {
        "input_ids": pad(sequences, value, length, left=left),  # (B, T)
        "attention_mask": pad(seen, 0, length, left=left),  # (B, T)
    }


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the negative log-likelihood of each label, 0 where it is IGNORE: (B, T)."""
    arguments = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"]
    logits = model(**arguments, use_cache=False).logits  # (B, T, vocabulary)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return losses.view_as(labels)


def log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Add up the log-probabilities of `tokens` (T) in `logits` (B, T, vocabulary): (B)."""
    log_probabilities = logits.float().log_softmax(dim=-1)
    chosen = tokens.view(1, -1, 1).expand(len(logits), -1, 1)
    return log_probabilities.gather(2, chosen).sum(dim=(1, 2))


def cached(model: PreTrainedModel, cache: Cache) -> dict[str, object]:
    """Return the forward's arguments for a cache: transformers 5.24 renamed one of them."""
    accepted = inspect.signature(model.forward).parameters
    names = ("cache", "past_key_values", "cache_params")  # the last: Mamba's, before 5.24
    name = next((name for name in names if name in accepted), "past_key_values")
    return {name: cache, "use_cache": True}
