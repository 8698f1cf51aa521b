"""Which weights are trained: all, all but the embeddings, or adapters."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tgsent.config import LoraConfig, TrainingConfig
from tgsent.errors import ConfigError


def prepare(model: PreTrainedModel, training: TrainingConfig) -> Callable[[], object]:
    """Set up `model` in place for training; return the function to call after training.

    It merges adapters, if there are any, into the weights, so that the model has its
    original architecture again. Raises ConfigError where the model cannot be trained that way.
    """
    if training.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    merge = _add_adapters(model, training.lora) if training.lora else lambda: None
    if training.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                "training.gradient_checkpointing: models of type"
                f' "{model.config.model_type}" do not support it'
            )
        # the name in older versions of transformers 5 is gradient_checkpointing_enable
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.disable_input_require_grads()  # the reentrant kind alone needs these gradients
    return merge


def _add_adapters(model: PreTrainedModel, lora: LoraConfig) -> Callable[[], object]:
    """Put adapters on the layers that `lora.target` names, freeze the rest; return the merge."""
    import peft  # takes seconds to import, and not everyone has it
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as ATTENTION

    if lora.target == "attention" and model.config.model_type not in ATTENTION:
        raise ConfigError(
            "training.lora.target: peft names no attention layers for models of type"
            f' "{model.config.model_type}"; take all-linear, or name the layers'
        )
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_target_modules(model, lora),
        # GPT-2's layers hold their weights the other way round
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    # the bare tuner, not get_peft_model: the model stays of its own class
    try:
        adapters = peft.LoraModel(model, config, "default")
    except ValueError as error:
        raise ConfigError(f"training.lora.target: {error}") from None
    tied = model.config.tie_word_embeddings

    def merge() -> None:
        # peft compares the output head with the encoder's embeddings. T5Gemma ties its head to the
        # decoder's, so that peft would wrongly mark it as untied
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
            adapters.merge_and_unload()
        model.config.tie_word_embeddings = tied

    return merge


def _target_modules(model: PreTrainedModel, lora: LoraConfig) -> list[str] | None:
    """Return the names of the layers of `lora.target`; None for those that peft names itself.

    The output head is none of them, nor are three projections of a Mamba layer: its kernels read
    their weights directly, and would bypass an adapter.
    """
    if lora.target == "attention":
        return None
    head = model.get_output_embeddings()
    fused = {
        f"{name}.{projection}"
        for name, module in model.named_modules()
        if hasattr(module, "conv1d")
        for projection in ("x_proj", "dt_proj", "out_proj")
    }
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name not in fused
    ]
    if lora.target == "all-linear":
        return linear
    for target in lora.target:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ConfigError(
                f'training.lora.target: models of type "{model.config.model_type}" have no'
                f' linear layer "{target}"; there are {known}'
            )
    return list(lora.target)
