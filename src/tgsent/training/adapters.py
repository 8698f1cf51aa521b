"""What training changes of a model: all of it, all but its embeddings, or adapters beside it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tgsent.config import LoraConfig, TrainingConfig
from tgsent.errors import ConfigError, UnavailableError


def check(training: TrainingConfig) -> None:
    """Raise UnavailableError where adapters are configured and peft is not installed."""
    if training.lora is not None and importlib.util.find_spec("peft") is None:
        raise UnavailableError(
            "training.lora: needs the package peft, which is not installed\n"
            "install it with: pip install 'tgsent[lora]'"
        )


def prepare(model: PreTrainedModel, training: TrainingConfig) -> Callable[[], object]:
    """Set up `model` in place for training; return the function to call after training.

    It merges adapters, if there are any, into the weights, so that the model has its first
    architecture again. Raises ConfigError where the model cannot be trained that way.
    """
    if training.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    merge = _add_adapters(model, training.lora) if training.lora else lambda: None
    if training.gradient_checkpointing:
        _checkpoint(model)
    return merge


def count(model: nn.Module) -> int:
    """Return the number of parameters that training changes; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _add_adapters(model: PreTrainedModel, lora: LoraConfig) -> Callable[[], object]:
    """Put adapters on the layers that `lora.target` names, and freeze the rest."""
    import peft  # takes seconds to import, and not everyone has it

    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_target_modules(model, lora),
        # GPT-2's layers hold their weights the other way round
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        # the bare tuner, not get_peft_model: the model stays of its own class
        adapters = peft.LoraModel(model, config, "default")
    except ValueError as error:
        if lora.target != "attention":
            raise
        raise ConfigError(
            "training.lora.target: peft names no attention layers for models of the kind"
            f' "{model.config.model_type}"; take all-linear, or name the layers'
        ) from error
    return partial(_merge, model, adapters.merge_and_unload)


def _merge(model: PreTrainedModel, merge_and_unload: Callable[[], object]) -> None:
    """Merge adapters into the weights, and keep the embeddings tied as they are.

    peft compares the output head with the encoder's embeddings. T5Gemma ties its head to the
    decoder's, so that peft would wrongly mark it as untied.
    """
    tied = model.config.tie_word_embeddings
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        merge_and_unload()
    model.config.tie_word_embeddings = tied


def _target_modules(model: PreTrainedModel, lora: LoraConfig) -> list[str] | None:
    """Return the names of the layers of `lora.target`; None for those that peft names itself."""
    if lora.target == "attention":
        return None
    linear = _linear_layers(model)
    if lora.target == "all-linear":
        return linear
    for target in lora.target:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ConfigError(
                f'training.lora.target: models of the kind "{model.config.model_type}" have no'
                f' linear layer "{target}"; there are {known}'
            )
    return list(lora.target)


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of all linear layers but the output head.

    Three projections of a Mamba layer are excluded: its kernels read their weights directly, and
    would bypass an adapter.
    """
    head = model.get_output_embeddings()
    fused = {
        f"{name}.{projection}"
        for name, module in model.named_modules()
        if hasattr(module, "conv1d")
        for projection in ("x_proj", "dt_proj", "out_proj")
    }
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not (head is not None and module.weight is head.weight)
        and name not in fused
    ]


def _checkpoint(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            "training.gradient_checkpointing: models of the kind"
            f' "{model.config.model_type}" do not support it'
        )
    # the name in older versions of transformers 5 is gradient_checkpointing_enable
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.disable_input_require_grads()  # the reentrant kind alone needs these gradients
