"""Faster parts for the library's models: the same numbers, and dropout of the same distribution.

`scripts/bench_tries.py` measures each; `docs/benchmarks.md` has the results, and what was not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.activations import NewGELUActivation

from tgsent.modeling.family import cached

_LAST_MLP = {"gpt2": "transformer.h.{}.mlp", "gpt_neo": "transformer.h.{}.mlp"}
"""The MLP of the last block, which works on each position separately, by tested architecture."""


def apply(model: PreTrainedModel) -> None:
    """Change `model` in place; parameters, their names and the configuration stay as they are."""
    fuse_gelu(model)
    draw_less_for_dropout(model)
    read_prefix_once(model)
    skip_unread_positions(model)  # last, as read_prefix_once changes the positions asked for


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


def read_prefix_once(model: PreTrainedModel) -> None:
    """Let GPT-2 and GPT-Neo read once, in training, the prefix that all texts of a batch share."""
    if model.config.model_type in _LAST_MLP:
        model.register_forward_pre_hook(_read_prefix_once, with_kwargs=True)


def skip_unread_positions(model: PreTrainedModel) -> None:
    """Run the last block's MLP only at the positions whose logits are asked for.

    No other position is read after it: the final norm and the head take each by itself.
    """
    if place := _LAST_MLP.get(model.config.model_type):
        last = model.config.num_hidden_layers - 1
        _OnlyWhereAsked(model, model.get_submodule(place.format(last)))


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for an element on a CPU; torch draws a double there.

    The dropped share is therefore a multiple of 2**-16, and the kept values are scaled for it.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name for it
        """Drop elements of a tensor of any shape, in training only."""
        if not self.training or input.device.type != "cpu":
            return functional.dropout(input, self.p, self.training)
        size, dropped = input.numel(), min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        # a value is kept if its 16 bits, as a number from -2**15, are not among the lowest
        keep = bits.view(torch.int16)[:size].view(input.shape) >= dropped - 2**15
        return torch.mul(input, keep).mul_(2**16 / (2**16 - dropped))


def _read_prefix_once(
    model: PreTrainedModel, args: tuple[object, ...], named: dict[str, Tensor]
) -> tuple[tuple[object, ...], dict[str, object]] | None:
    """Read the prefix as one text, and the rest of every text as its continuation in the KV cache.

    All copies of the prefix then share their dropout. Only on a CPU, because on other devices two
    small passes take longer than one, and without gradient checkpointing, which supports no cache.
    """
    if args or not model.training or named.get("use_cache") or _is_checkpointing(model):
        return None
    ids, asked = named["input_ids"], named.get("logits_to_keep")  # (B, T), (columns,)
    if not isinstance(asked, Tensor) or len(ids) < 2 or ids.device.type != "cpu":
        return None
    same = ((ids == ids[0]) & (named["attention_mask"] == 1)).all(dim=0)
    length = min(int(same.long().cumprod(dim=0).sum()), int(asked.min()))
    if not length:
        return None
    with_cache = cached(model, cache := DynamicCache(config=model.config))
    model(input_ids=ids[:1, :length], logits_to_keep=1, **with_cache)
    cache.batch_repeat_interleave(len(ids))
    rest = {"input_ids": ids[:, length:], "logits_to_keep": asked - length}
    return args, {**named, **rest, **with_cache}


def _is_checkpointing(model: PreTrainedModel) -> bool:
    """Check for gradient checkpointing, which transformers 5.24 renamed."""
    new, old = "is_activation_checkpointing", "is_gradient_checkpointing"
    return bool(getattr(model, new if hasattr(model, new) else old))


class _OnlyWhereAsked:
    """Runs an MLP at some positions only; a wrapping module would rename its weights."""

    def __init__(self, model: PreTrainedModel, mlp: nn.Module) -> None:
        self.columns: Tensor | slice = slice(None)
        self.everywhere = mlp.forward
        model.register_forward_pre_hook(self.note, with_kwargs=True)
        mlp.forward = self.forward

    def note(self, _model: nn.Module, _args: object, named: dict[str, Tensor | int]) -> None:
        """Store which logits the caller asks for: some columns, or the last few, or (0) all."""
        kept = named.get("logits_to_keep", 0)
        self.columns = kept if isinstance(kept, Tensor) else slice(-kept if kept else None, None)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the columns that are asked for among zeros: (B, T, width)."""
        output: Tensor = self.everywhere(hidden[:, self.columns].contiguous())
        result = output.new_zeros(hidden.shape)
        result[:, self.columns] = output
        return result
