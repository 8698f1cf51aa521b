"""The training loop, the only one: batches, optimizer, schedule, and what is logged."""

from __future__ import annotations

import contextlib
import ctypes
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from tgsent.config import TrainingConfig
from tgsent.errors import TrialError, UnavailableError
from tgsent.finetune.family import IGNORE, Batch, token_losses
from tgsent.records import Encoded, Progress

Collate = Callable[[Sequence[Encoded]], Batch]

# A bucket is a shuffled run of this many batches that is sorted by length: long enough that the
# texts of a batch are of one length, short enough that batches differ from epoch to epoch.
_BATCHES_PER_BUCKET = 50


@dataclass(frozen=True)
class Trained:
    """What training leaves behind beside the model."""

    log: tuple[dict[str, Any], ...]
    steps: int
    seconds: float


# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def make_accelerator(training: TrainingConfig) -> Accelerator:
    """Resolve device and precision.

    Raises UnavailableError for a device or precision that this machine does not have.
    """
    device = resolve_device(training.device)
    precision = resolve_precision(training.precision, device)
    if device == "cpu":
        keep_freed_memory()
    # accelerate keeps device and precision in a singleton; models of one run may differ in both
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    return Accelerator(
        cpu=device == "cpu", mixed_precision="no" if precision == "fp32" else precision
    )


def keep_freed_memory() -> None:
    """Have the C library keep what is freed instead of giving it back to the system.

    Every step allocates and frees the same large tensors, and each page that comes from the system
    anew costs a fault. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)  # large blocks from the heap, too
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def resolve_device(device: str) -> str:
    """Give `cpu`, `cuda` or `mps`; raises UnavailableError where it is not on this machine."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise UnavailableError(
            f"training.device: there is no {device} device on this machine;"
            " take what there is with --set training.device=auto"
        )
    return device


def resolve_precision(precision: str, device: str) -> str:
    """Give `fp32`, `bf16` or `fp16`; `auto` is bf16 where the device computes it natively."""
    if precision == "auto":
        if device == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # oneDNN also takes bf16 on processors that only emulate it, several times slower
            native = device == "cpu" and (
                torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
            )
        return "bf16" if native else "fp32"
    if precision == "fp16" and device != "cuda":
        raise UnavailableError(
            f"training.precision: fp16 needs a cuda device, and this run is on {device};"
            " take bf16, fp32 or auto"
        )
    return precision


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, *, grouped: bool
) -> list[list[int]]:
    """Give the indices of each batch of one epoch; every example stands in exactly one.

    With `grouped`, examples of about one length share a batch, and batches come in random order.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    if grouped:
        bucket = batch_size * _BATCHES_PER_BUCKET
        for start in range(0, len(order), bucket):
            order[start : start + bucket] = sorted(
                order[start : start + bucket], key=lengths.__getitem__
            )
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if grouped:
        rng.shuffle(batches)
    return batches


def train(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    collate: Collate,
    training: TrainingConfig,
    *,
    learning_rate: float,
    seed: int,
    accelerator: Accelerator,
    progress: Progress,
    title: str,
) -> Trained:
    """Fine-tune `model` in place; its mode afterwards is evaluation.

    The loss of a step is the mean over the counted tokens of the whole batch, however many parts
    it is computed in. Raises TrialError at once where the loss is not finite.
    """
    steps_per_epoch = math.ceil(len(examples) / training.batch_size)
    clip_to = max_grad_norm(training)
    total_steps = steps_per_epoch * training.epochs
    optimizer = make_optimizer(model, learning_rate, training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, linear_schedule(warmup_steps(training, total_steps), total_steps)
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    lengths = [len(example) for example in examples]
    log: list[dict[str, Any]] = []
    log_every = max(1, total_steps // 100)
    step = 0
    started = time.perf_counter()
    for epoch in range(1, training.epochs + 1):
        batches = epoch_batches(
            lengths,
            training.batch_size,
            seed * 1_000_003 + epoch,
            grouped=padding(training) == "longest",
        )
        epoch_started, losses = time.perf_counter(), 0.0
        with progress.task(f"{title}, epoch {epoch}/{training.epochs}", len(examples)) as task:
            for indices in batches:
                batch = [examples[i] for i in indices]
                loss = _accumulate_gradients(model, batch, collate, training, accelerator)
                step += 1
                if not math.isfinite(loss):
                    raise TrialError(
                        f"{title}: the loss is {loss} at step {step} of {total_steps};"
                        " lower training.learning_rate, or set training.precision to fp32"
                    )
                if clip_to is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip_to)
                rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses += loss
                if step % log_every == 0 or step == total_steps:
                    log.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate})
                task.advance(len(batch), f"loss {loss:.3f}")
        rate = len(examples) / (time.perf_counter() - epoch_started)
        progress.line(
            f"{title}: epoch {epoch}/{training.epochs}, mean loss {losses / steps_per_epoch:.4f},"
            f" {rate:.0f} examples/s"
        )
    seconds = time.perf_counter() - started
    model.eval()
    return Trained(tuple(log), step, seconds)


def _accumulate_gradients(
    model: PreTrainedModel,
    batch: Sequence[Encoded],
    collate: Collate,
    training: TrainingConfig,
    accelerator: Accelerator,
) -> float:
    """Add up the gradients of the batch's parts; give its mean loss per counted token."""
    size = math.ceil(len(batch) / training.gradient_accumulation)
    parts = [collate(batch[i : i + size]) for i in range(0, len(batch), size)]
    counted = sum(int((part["labels"] != IGNORE).sum()) for part in parts)
    total = 0.0
    for part in parts:
        part = {name: tensor.to(accelerator.device) for name, tensor in part.items()}  # noqa: PLW2901
        loss = token_losses(model, part).sum() / counted
        accelerator.backward(loss)
        total += loss.item()
    return total


def make_optimizer(
    model: torch.nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Make AdamW; matrices are decayed, biases and norms (one dimension) are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        fused=True,
    )


def warmup_steps(training: TrainingConfig, total_steps: int) -> int:
    """Resolve `warmup_steps`: `auto`, or a share of all steps, to a number of steps."""
    warmup = 0.1 if training.warmup_steps == "auto" else training.warmup_steps
    return round(warmup * total_steps) if warmup < 1 else int(warmup)


def max_grad_norm(training: TrainingConfig) -> float | None:
    """Resolve `max_grad_norm: auto`."""
    return 1.0 if training.max_grad_norm == "auto" else training.max_grad_norm


def padding(training: TrainingConfig) -> Literal["longest", "max_tokens"]:
    """Resolve `padding: auto`."""
    if training.padding != "auto":
        return training.padding
    return "longest" if training.backend == "native" else "max_tokens"


def linear_schedule(warmup: int, total: int) -> Callable[[int], float]:
    """Give the factor of the learning rate at each step: linear up from 0, then linear down to 0.

    The same as transformers' `get_linear_schedule_with_warmup`, whose module takes long to import.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return factor
