"""The training settings as plain numbers: the only place where `auto` is resolved."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils import LoggerType

from tgsent.config import TrainingConfig
from tgsent.errors import UnavailableError
from tgsent.modeling.family import Counted, Family

Precision = Literal["fp32", "bf16", "fp16"]

# (maximum number of parameters, learning rate), in ascending order; docs/recipes.md has the links
_CAUSAL = (
    (0.5e9, 6.25e-5),  # Radford et al. 2018, fine-tuning GPT (117M)
    (2.0e9, 2.0e-5),  # the default of TRL's SFTTrainer; Stanford Alpaca, LLaMA 7B
    (math.inf, 1.0e-5),  # Stanford Alpaca, LLaMA 13B
)
_SEQ2SEQ = (
    (1.0e9, 3.0e-4),  # Hugging Face's T5 guide: 1e-4 and 3e-4 work with AdamW
    (math.inf, 1.0e-4),  # the same
)
_CAUSAL_LORA = 2.0e-4  # Hu et al. 2021, GPT-2; Dettmers et al. 2023, models of 7B and 13B
_SEQ2SEQ_LORA = 3.0e-4  # adapters need no lower rate than the model itself, whatever its size
_TINY = 1.0e-3  # measured: all three tiny models learn; above it two collapse in some runs
_RANDOM = 3.0e-4  # a usual value for training from nothing, not a measured one


@dataclass(frozen=True)
class Recipe:
    """The settings of a training, as plain numbers."""

    precision: Precision
    epochs: int
    batch_size: int
    """Examples per optimizer step."""
    parts: int
    """Parts in which a batch is computed to save memory."""
    steps_per_epoch: int
    warmup_steps: int
    learning_rate: float
    """The highest one, at the end of the warm-up."""
    weight_decay: float
    max_grad_norm: float | None
    """None: gradients are not clipped."""
    counted: Counted
    """Tokens that count in the loss."""
    pad_to: int | None
    """None: each batch is padded to its longest text, and made of texts of about one length."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear up from 0, then linear down to 0."""
        warmup, total = self.warmup_steps, self.total_steps
        falling = max(0.0, (total - step) / max(1, total - warmup))
        return self.learning_rate * (step / warmup if step < warmup else falling)

    @property
    def padding(self) -> Literal["longest", "max_tokens"]:
        """The resolved value of `training.padding`."""
        return "longest" if self.pad_to is None else "max_tokens"


def check_installed(training: TrainingConfig) -> None:
    """Raise UnavailableError where a package that the settings need is not installed."""
    packages: dict[str, str] = {name: name for name in training.report_to}
    if training.lora is not None:
        packages["lora"] = "peft"
    if unknown := set(training.report_to) - {str(name) for name in LoggerType}:
        raise UnavailableError(
            f"training.report_to: this accelerate knows no {min(unknown)};"
            " pip install -U accelerate"
        )
    missing = {e: name for e, name in packages.items() if not importlib.util.find_spec(name)}
    if missing:
        raise UnavailableError(
            f"training: {' and '.join(missing.values())} cannot be found;"
            f" pip install 'tgsent[{','.join(missing)}]' installs what is needed"
        )


def resolve(training: TrainingConfig, family: Family, parameters: int, examples: int) -> Recipe:
    """Resolve the settings for a model with so many parameters and so many training examples.

    Adapters are not counted in `parameters`. Raises UnavailableError for a device or precision
    that this machine does not have.
    """
    steps_per_epoch = math.ceil(examples / training.batch_size)
    warmup = 0.1 if training.warmup_steps == "auto" else training.warmup_steps
    if warmup < 1:  # a share of all steps
        warmup = round(warmup * (training.epochs * steps_per_epoch))
    return Recipe(
        precision=resolve_precision(training, resolve_device(training.device)),
        epochs=training.epochs,
        batch_size=training.batch_size,
        parts=training.gradient_accumulation,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=int(warmup),
        learning_rate=_learning_rate(training, family, parameters),
        weight_decay=training.weight_decay,
        max_grad_norm=1.0 if training.max_grad_norm == "auto" else training.max_grad_norm,
        counted="padded" if training.loss_on_padding else training.loss,
        pad_to=training.max_tokens if training.padding == "max_tokens" else None,
    )


def resolve_device(device: str) -> str:
    """Return `cpu`, `cuda` or `mps`; raise UnavailableError where this machine does not have it."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if not {"cuda": cuda, "mps": mps, "cpu": True}[device]:
        raise UnavailableError(
            f"training.device: there is no {device} device on this machine;"
            " take what there is with --set training.device=auto"
        )
    return device


def resolve_precision(training: TrainingConfig, device: str) -> Precision:
    """Return the precision in which a model is trained on this device.

    `auto` is bf16 where the device computes it natively, but fp32 for tiny models, whose matrices
    are too small to gain from it. Raises UnavailableError for fp16 without a cuda device.
    """
    precision = training.precision
    if precision == "fp16" and device != "cuda":
        raise UnavailableError(
            f"training.precision: fp16 needs a cuda device, and this run is on {device};"
            " take bf16, fp32 or auto"
        )
    if precision != "auto":
        return precision
    if training.init == "tiny":
        return "fp32"
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # oneDNN also takes bf16 on processors that only emulate it, several times slower
        native = device == "cpu" and (
            torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
        )
    return "bf16" if native else "fp32"


def _learning_rate(training: TrainingConfig, family: Family, parameters: int) -> float:
    if training.learning_rate != "auto":
        return training.learning_rate
    if training.init == "tiny":
        return _TINY
    if training.init == "random":
        return _RANDOM
    if training.lora is not None:
        return _SEQ2SEQ_LORA if family.is_seq2seq else _CAUSAL_LORA
    table = _SEQ2SEQ if family.is_seq2seq else _CAUSAL
    return next(rate for most, rate in table if parameters <= most)
