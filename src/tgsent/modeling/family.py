"""The two families of models, causal and seq2seq, and what one must offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tgsent.modeling import causal, seq2seq
from tgsent.modeling.batches import Batch, Counted, SpecialIds
from tgsent.records import Encoded


class Family(Protocol):
    """How models of one architecture read prompts, are trained and generate.

    The modules `causal` and `seq2seq` implement it. Code that depends on the family calls these
    functions; where that is not enough, it asks `is_seq2seq`.
    """

    is_seq2seq: bool
    """Whether an encoder reads the prompt and a decoder writes the target."""
    auto_class: Any
    """The class of transformers that builds and loads such models."""
    padding_side: Literal["left", "right"]
    """Of the saved tokenizer, for users who generate with it; tgsent pads by itself."""

    def collate(
        self, examples: Sequence[Encoded], ids: SpecialIds, counted: Counted, pad_to: int | None
    ) -> Batch:
        """Make a batch for training, padded to `pad_to` tokens or to the longest text."""
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
        """Compute the log-likelihood of every target after every prompt: (B, targets).

        The prompts are read once, however many targets there are.
        """
        ...

    def new_tokens(self, generated: Tensor, batch: Batch) -> Tensor:
        """Return the tokens after the prompt in the output of `generate` (B, T)."""
        ...


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a model."""
    return seq2seq if config.is_encoder_decoder else causal
