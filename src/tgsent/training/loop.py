"""The training loop, the only one: batches, optimizer, schedule, and what is logged."""

from __future__ import annotations

import contextlib
import ctypes
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from tgsent.config import TrainingConfig
from tgsent.errors import DivergedError, StoppedError, UnavailableError
from tgsent.modeling.family import IGNORE, Batch, Counted, token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded, Progress
from tgsent.training import interrupts, processes
from tgsent.training.checkpoint import Checkpoints, Position, shared

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


def make_accelerator(training: TrainingConfig, track_in: Path | None = None) -> Accelerator:
    """Resolve device and precision; trackers that write files write them in `track_in`.

    Raises UnavailableError for a device or precision that this machine does not have.
    """
    device = resolve_device(training.device)
    precision = resolve_precision(training, device)
    if device == "cpu":
        keep_freed_memory()
    # accelerate keeps device and precision in a singleton; models of one run may differ in both
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=(list(training.report_to) or None) if processes.is_main() else None,
        project_dir=track_in,
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


def resolve_precision(training: TrainingConfig, device: str) -> str:
    """Give `fp32`, `bf16` or `fp16`.

    `auto` is bf16 where the device computes it natively, but fp32 for tiny models, whose matrices
    are too small to gain from it, and with the package SimpleT5. Raises UnavailableError for fp16
    without a cuda device.
    """
    precision = training.precision
    if precision == "auto" and (training.init == "tiny" or training.backend == "simplet5"):
        return "fp32"
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
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Fine-tune `model` in place; its mode afterwards is evaluation.

    The loss of a step is the mean over the counted tokens of the whole batch, however many parts
    it is computed in, and however many processes share them. Goes on from the last of the
    checkpoints, and so to the same model as without a stop. Raises DivergedError at once where the
    loss is not finite, StoppedError after the step in which a signal came.
    """
    steps_per_epoch = math.ceil(len(examples) / training.batch_size)
    total_steps = steps_per_epoch * training.epochs
    factor = linear_schedule(warmup_steps(training, total_steps), total_steps)
    model, optimizer = prepare(
        model, make_optimizer(model, learning_rate, training.weight_decay), accelerator
    )
    state = (model, optimizer, accelerator)
    at = checkpoints.restore(*state, progress) if checkpoints else Position()
    at = shared(at, *state, seed)
    if at.step:
        progress.line(f"{title}: goes on after step {at.step} of {total_steps}")
    model.train()
    lengths = [len(example) for example in examples]
    log_every = max(1, total_steps // 100)
    started = time.perf_counter() - at.seconds
    with interrupts.deferred():
        for epoch in range(at.step // steps_per_epoch + 1, training.epochs + 1):
            batches = epoch_batches(
                lengths,
                training.batch_size,
                seed * 1_000_003 + epoch,
                grouped=padding(training) == "longest",
            )
            if not (done := at.step % steps_per_epoch):
                at.epoch_loss = 0.0
            ahead, epoch_started = sum(map(len, batches[done:])), time.perf_counter()
            with progress.task(f"{title}, epoch {epoch}/{training.epochs}", len(examples)) as task:
                task.advance(len(examples) - ahead)
                for indices in batches[done:]:
                    rate = learning_rate * factor(at.step)
                    batch = [examples[i] for i in indices]
                    loss = take_step(*state, batch, collate, training, rate)
                    at.step += 1
                    if not math.isfinite(loss):
                        raise _diverged(f"the loss is {loss}", title, at.step, total_steps)
                    at.epoch_loss += loss
                    if at.step % log_every == 0 or at.step == total_steps:
                        row = {"epoch": epoch, "loss": loss, "learning_rate": rate}
                        at.log.append({"step": at.step, **row})
                        accelerator.log(row, step=at.step)
                    task.advance(len(batch), f"loss {loss:.3f}")
                    at.seconds = time.perf_counter() - started
                    _between_steps(at, state, checkpoints, title, total_steps)
            speed = ahead / (time.perf_counter() - epoch_started)
            shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
            progress.line(
                f"{title}: epoch {epoch}/{training.epochs}, mean loss"
                f" {at.epoch_loss / steps_per_epoch:.4f}, {shown} examples/s"
            )
            if not _is_finite(model):
                raise _diverged("some weights are not finite", title, at.step, total_steps)
            if checkpoints:
                checkpoints.save(at, *state)
            _stop_if_asked(at, state, checkpoints, title, total_steps)
    model.eval()
    return Trained(tuple(at.log), at.step, at.seconds)


def prepare(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """Put both on the device, in its precision; gradients are added up over processes here."""
    # as for evaluation: else it would be wrapped to add up gradients while they are computed, for
    # which every weight must have one, in each part of each batch
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    return prepared, accelerator.prepare_optimizer(optimizer)


def take_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    batch: Sequence[Encoded],
    collate: Collate,
    training: TrainingConfig,
    learning_rate: float,
) -> float:
    """Take one optimizer step, unless the loss is not finite; give the loss."""
    loss = _accumulate_gradients(model, batch, collate, training, accelerator)
    if math.isfinite(loss):
        if (clip_to := max_grad_norm(training)) is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip_to)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss


def _between_steps(
    at: Position,
    state: tuple[PreTrainedModel, torch.optim.Optimizer, Accelerator],
    checkpoints: Checkpoints | None,
    title: str,
    total_steps: int,
) -> None:
    """Write a checkpoint where one is due or a signal has come; stop in the latter case."""
    if checkpoints and checkpoints.due and not interrupts.requested():
        checkpoints.save(at, *state)
    _stop_if_asked(at, state, checkpoints, title, total_steps)


def _stop_if_asked(
    at: Position,
    state: tuple[PreTrainedModel, torch.optim.Optimizer, Accelerator],
    checkpoints: Checkpoints | None,
    title: str,
    total_steps: int,
) -> None:
    """Stop where a signal has come to any process; the checkpoint is written before."""
    (asked,) = processes.total(interrupts.requested())
    if asked:
        if checkpoints:
            checkpoints.save(at, *state)
        where = f"{title} after step {at.step} of {total_steps}"
        kept = "the same command goes on from there" if checkpoints else interrupts.GOING_ON
        raise StoppedError(f"interrupted: {where}; {kept}")


def _diverged(what: str, title: str, step: int, total_steps: int) -> DivergedError:
    return DivergedError(
        f"{title}: {what} at step {step} of {total_steps};"
        " lower training.learning_rate, or set training.precision to fp32"
    )


def _is_finite(model: torch.nn.Module) -> bool:
    """Look at what the last step has made of the weights, which no loss tells any more."""
    return all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)


def _accumulate_gradients(
    model: PreTrainedModel,
    batch: Sequence[Encoded],
    collate: Collate,
    training: TrainingConfig,
    accelerator: Accelerator,
) -> float:
    """Add up the gradients of the batch's parts; give its mean loss per counted token.

    Of several processes, each computes every n-th text. One that is left without any computes
    one that does not count, so that all have gradients of the same weights.
    """
    own = batch[processes.rank() :: processes.count()]
    counts = 1 if own else 0
    own = own or batch[:1]
    size = math.ceil(len(own) / training.gradient_accumulation)
    parts = [collate(own[i : i + size]) for i in range(0, len(own), size)]
    counted = counts * sum(int((part["labels"] != IGNORE).sum()) for part in parts)
    (all_counted,) = processes.total(counted)
    found = 0.0
    for part in parts:
        part = {name: tensor.to(accelerator.device) for name, tensor in part.items()}  # noqa: PLW2901
        loss = counts * token_losses(model, part).sum() / all_counted
        accelerator.backward(loss)
        found += loss.item()
    processes.add_up([p.grad for p in model.parameters() if p.grad is not None])
    (loss_of_all,) = processes.total(found)
    return loss_of_all


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
    warmup = training.warmup_steps
    if warmup == "auto":
        warmup = 0.1 if training.backend == "native" else 0.0
    return round(warmup * total_steps) if warmup < 1 else int(warmup)


def max_grad_norm(training: TrainingConfig) -> float | None:
    """Resolve `max_grad_norm: auto`."""
    if training.max_grad_norm != "auto":
        return training.max_grad_norm
    return 1.0 if training.backend == "native" else None


def padding(training: TrainingConfig) -> Literal["longest", "max_tokens"]:
    """Resolve `padding: auto`."""
    if training.padding != "auto":
        return training.padding
    return "longest" if training.backend == "native" else "max_tokens"


def pad_to(training: TrainingConfig) -> int | None:
    """Give the length to which every text is padded; None where that is its batch's longest."""
    return training.max_tokens if padding(training) == "max_tokens" else None


def linear_schedule(warmup: int, total: int) -> Callable[[int], float]:
    """Give the factor of the learning rate at each step: linear up from 0, then linear down to 0.

    The same as transformers' `get_linear_schedule_with_warmup`, whose module takes long to import.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return factor


def collator(loaded: LoadedModel, training: TrainingConfig) -> Collate:
    """Give what makes a batch of encoded texts, with the tokens that the recipe counts."""
    counted: Counted = "padded" if training.loss_on_padding else training.loss
    length = pad_to(training)

    def collate(batch: Sequence[Encoded]) -> Batch:
        return loaded.family.collate(batch, loaded.ids, counted, length)

    return collate
