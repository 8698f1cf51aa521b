"""Parts of the library's models done faster: the same numbers, dropout in distribution.

`scripts/bench_tries.py` measures what each brings; what was not kept is in `docs/benchmarks.md`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

_LAST_MLP = {"gpt2": "transformer.h.{}.mlp", "gpt_neo": "transformer.h.{}.mlp"}
"""Where an architecture has the layers that work position by position in its last block."""


def apply(model: PreTrainedModel) -> None:
    """Change `model` in place; parameters, their names and the configuration stay as they are."""
    fuse_gelu(model)
    draw_less_for_dropout(model)
    skip_unread_positions(model)


def fuse_gelu(model: PreTrainedModel) -> None:
    """Compute GPT's approximation of GELU in one kernel, where the library takes eight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NewGELUActivation):
            model.set_submodule(name, nn.GELU(approximate="tanh"))


def draw_less_for_dropout(model: PreTrainedModel) -> None:
    """Replace torch's dropout by the one below."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and 0 < module.p < 1:
            model.set_submodule(name, Dropout(module.p).train(module.training))


def skip_unread_positions(model: PreTrainedModel) -> None:
    """Run the last block's MLP only at the positions whose logits are asked for.

    No other position is read after it: the final norm and the head take each by itself.
    """
    if place := _LAST_MLP.get(model.config.model_type):
        last = model.config.num_hidden_layers - 1
        _OnlyWhereAsked(model, model.get_submodule(place.format(last)))


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for an element on a CPU; torch draws a double there.

    So the share that is dropped is a multiple of 2**-16, and what is kept is scaled for that share.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name for it
        """Drop elements of a tensor of any shape, in training only."""
        if not self.training or input.device.type != "cpu":
            return functional.dropout(input, self.p, self.training)
        dropped: Tensor = _Drop.apply(input, min(round(self.p * 2**16), 2**16 - 1))  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped: int) -> Tensor:
        """Keep a value where its 16 bits, as a number from -2**15, are not among the lowest."""
        size = values.numel()
        bits = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = bits.view(torch.int16)[:size].view(values.shape) >= dropped - 2**15
        ctx.scale = 2**16 / (2**16 - dropped)
        ctx.save_for_backward(keep)
        return torch.mul(values, keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Let through what was kept."""
        (keep,) = ctx.saved_tensors
        return torch.mul(gradient, keep).mul_(ctx.scale), None


class _OnlyWhereAsked:
    """Hooks that cut an MLP's input to some positions; a module would rename the weights."""

    def __init__(self, model: PreTrainedModel, mlp: nn.Module) -> None:
        self.columns: Tensor | slice = slice(None)
        self.shape = torch.Size()
        model.register_forward_pre_hook(self.note, with_kwargs=True)
        mlp.register_forward_pre_hook(self.cut)
        mlp.register_forward_hook(self.put_back)

    def note(self, _model: nn.Module, _args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep what the model's caller asks for: some columns, or a number of last ones, 0 all."""
        kept = named.get("logits_to_keep", 0)
        self.columns = kept if isinstance(kept, Tensor) else slice(-kept if kept else None, None)

    def cut(self, _mlp: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """Take the columns of what goes in: (B, T, width) to (B, columns, width)."""
        self.shape = args[0].shape
        return (args[0][:, self.columns].contiguous(),)

    def put_back(self, _mlp: nn.Module, _args: tuple[Tensor], output: Tensor) -> Tensor:
        """Put what comes out where it belongs, among zeros: (B, T, width)."""
        result = output.new_zeros(self.shape)
        result[:, self.columns] = output
        return result
