"""What a model family must offer; the modules `causal` and `seq2seq` do."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tgsent.records import Encoded

Counted = Literal["label", "full", "padded"]
"""Tokens that count in the loss: the label and the end token; the prompt too; the padding too."""

IGNORE = -100
"""Label of a position that does not count in the loss."""

Batch = dict[str, Tensor]
"""Arguments of the model's forward, and `labels` (B, T): the token that each of the T logits it
returns is to predict, or IGNORE."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that hold the others together."""

    pad: int
    end: int
    """Ends every target."""
    decoder_start: int
    """What the decoder of a seq2seq model reads first."""


class Family(Protocol):
    """Batches, and generation."""

    def collate(
        self, examples: Sequence[Encoded], ids: SpecialIds, loss: Counted, pad_to: int | None
    ) -> Batch:
        """Make a batch for training or for the likelihood of given targets."""
        ...

    def prompt_batch(self, prompts: Sequence[tuple[int, ...]], ids: SpecialIds) -> Batch:
        """Make a batch to generate from."""
        ...

    def log_likelihoods(
        self,
        model: PreTrainedModel,
        batch: Batch,
        targets: Sequence[tuple[int, ...]],
        ids: SpecialIds,
    ) -> Tensor:
        """Give the log-likelihood of every target after every prompt of the batch: (B, targets).

        The prompts are read once, however many targets there are.
        """
        ...

    def new_tokens(self, generated: Tensor, batch: Batch) -> Tensor:
        """Cut what `generate` gave (B, T) to the tokens that follow the prompt."""
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


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the negative log-likelihood of each label, 0 where it is IGNORE: (B, T)."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"]
    logits = model(**inputs, use_cache=False).logits  # (B, T, vocabulary)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return losses.view_as(labels)


def cache_argument(model: PreTrainedModel) -> str:
    """Give the name by which the model's forward takes its cache: transformers 5.24 renamed it."""
    accepted = inspect.signature(model.forward).parameters
    names = ("cache", "past_key_values", "cache_params")  # the last: Mamba's, before 5.24
    return next((name for name in names if name in accepted), "past_key_values")


def sum_of_chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    """Add up the log-probabilities of `tokens` (T) in `logits` (B, T, vocabulary): (B)."""
    log_probabilities = logits.float().log_softmax(dim=-1)
    chosen = tokens.view(1, -1, 1).expand(len(logits), -1, 1)
    return log_probabilities.gather(2, chosen).sum(dim=(1, 2))
