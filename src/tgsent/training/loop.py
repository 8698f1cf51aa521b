"""The training loop of every model but those of the package SimpleT5.

`train` goes through epochs and batches; `take_step` does one step: forward, backward, clip, step.
Then come log and checkpoint. All settings are plain numbers here: `recipe.py` resolves them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tgsent.config import TrainingConfig
from tgsent.errors import DivergedError, StoppedError
from tgsent.modeling.family import IGNORE, token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded, Progress
from tgsent.training import distributed, interrupts, memory
from tgsent.training.checkpoint import Checkpoints, Position, TrainState, synchronize
from tgsent.training.recipe import Recipe, resolve_device, resolve_precision

# A bucket is a shuffled run of this many batches that is sorted by length: long enough that the
# texts of a batch are of one length, short enough that batches differ from epoch to epoch.
_BATCHES_PER_BUCKET = 50

_LOG_ROWS = 100  # about as many as a curve needs


def train(
    loaded: LoadedModel,
    examples: Sequence[Encoded],
    recipe: Recipe,
    *,
    seed: int,
    accelerator: Accelerator,
    progress: Progress,
    title: str,
    checkpoints: Checkpoints | None = None,
) -> Position:
    """Fine-tune a model in place, and leave it in evaluation mode; return the last position.

    Training resumes from the last checkpoint, and then gives the same model as without a stop.
    Raises DivergedError at once where the loss is not finite, StoppedError after the step in which
    a signal came.
    """
    state = prepare(loaded, recipe, accelerator)
    if checkpoints:
        checkpoints.restore(state, progress)
    synchronize(state, seed)
    at = state.position
    if at.step:
        progress.line(f"{title}: resumes after step {at.step} of {recipe.total_steps}")
    lengths = [len(example) for example in examples]
    started = time.perf_counter() - at.seconds
    state.model.train()
    with interrupts.deferred():  # a signal stops training between two steps, not within one
        for epoch in range(at.step // recipe.steps_per_epoch + 1, recipe.epochs + 1):
            done = at.step % recipe.steps_per_epoch  # steps of this epoch before a stop
            if not done:
                at.epoch_loss = 0.0
            batches = epoch_batches(
                lengths, recipe.batch_size, seed * 1_000_003 + epoch, grouped=recipe.pad_to is None
            )[done:]
            remaining, epoch_started = sum(map(len, batches)), time.perf_counter()
            with progress.task(f"{title}, epoch {epoch}/{recipe.epochs}", len(examples)) as task:
                task.advance(len(examples) - remaining)
                for batch in batches:
                    rate = recipe.rate_at(at.step)
                    loss = take_step(state, [examples[i] for i in batch], rate)
                    at.step += 1
                    at.epoch_loss += loss
                    if not math.isfinite(loss):
                        raise _diverged(f"the loss is {loss}", title, state)
                    _log(state, epoch, loss, rate)
                    task.advance(len(batch), f"loss {loss:.3f}")
                    at.seconds = time.perf_counter() - started
                    epoch_ends = at.step % recipe.steps_per_epoch == 0
                    if checkpoints and (epoch_ends or checkpoints.due):
                        checkpoints.save(state)
                    _stop_if_requested(state, checkpoints, title)
            speed = remaining / (time.perf_counter() - epoch_started)
            mean = f"mean loss {at.epoch_loss / recipe.steps_per_epoch:.4f}"
            progress.line(f"{title}: epoch {epoch}/{recipe.epochs}, {mean}, {speed:.1f} examples/s")
    # no loss is computed after the last step
    if not all(p.isfinite().all() for p in state.model.parameters() if p.requires_grad):
        raise _diverged("some weights are not finite", title, state)
    state.model.eval()
    return at


def take_step(state: TrainState, batch: Sequence[Encoded], learning_rate: float) -> float:
    """Take one optimizer step, unless the loss is not finite; return the loss."""
    loss = _compute_gradients(state, batch)
    if not math.isfinite(loss):
        return loss
    if state.recipe.max_grad_norm is not None:
        state.accelerator.clip_grad_norm_(state.model.parameters(), state.recipe.max_grad_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return loss


def _compute_gradients(state: TrainState, batch: Sequence[Encoded]) -> float:
    """Run forward and backward; return the mean loss per counted token of the whole batch.

    Apart from rounding and dropout, neither loss nor gradients depend on the number of parts or of
    processes. Of n processes, each computes every n-th text.
    """
    texts = batch[distributed.rank() :: distributed.world_size()]
    # a process that is left without a text computes one that does not count, because all processes
    # must have gradients of the same weights
    weight = 1 if texts else 0
    texts = texts or batch[:1]
    size = math.ceil(len(texts) / state.recipe.parts)
    parts = [state.collate(texts[i : i + size]) for i in range(0, len(texts), size)]
    tokens = weight * sum(int((part["labels"] != IGNORE).sum()) for part in parts)
    all_tokens = sum(distributed.gather(tokens))
    batch_loss = 0.0
    for part in parts:
        inputs = {name: tensor.to(state.accelerator.device) for name, tensor in part.items()}
        losses = token_losses(state.model, inputs)  # forward: (B, T), 0 for uncounted tokens
        loss = weight * losses.sum() / all_tokens  # (), this part's share of the mean
        state.accelerator.backward(loss)  # adds to the gradients of the parts before
        batch_loss += loss.item()
    distributed.all_reduce([p.grad for p in state.model.parameters() if p.grad is not None])
    return sum(distributed.gather(batch_loss))


def _log(state: TrainState, epoch: int, loss: float, rate: float) -> None:
    step, total = state.position.step, state.recipe.total_steps
    if step % max(1, total // _LOG_ROWS) == 0 or step == total:
        row = {"epoch": epoch, "loss": loss, "learning_rate": rate}
        state.position.log.append({"step": step, **row})
        state.accelerator.log(row, step=step)


def _stop_if_requested(state: TrainState, checkpoints: Checkpoints | None, title: str) -> None:
    """Save a checkpoint and raise StoppedError where a signal has come to any process."""
    if any(distributed.gather(interrupts.requested())):
        if checkpoints:
            checkpoints.save(state)
        where = f"{title} after step {state.position.step} of {state.recipe.total_steps}"
        kept = "run the same command again to resume" if checkpoints else interrupts.RESUME
        raise StoppedError(f"interrupted: {where}; {kept}")


def _diverged(what: str, title: str, state: TrainState) -> DivergedError:
    return DivergedError(
        f"{title}: {what} at step {state.position.step} of {state.recipe.total_steps};"
        " lower training.learning_rate, or set training.precision to fp32"
    )


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, *, grouped: bool
) -> list[list[int]]:
    """Return the indices of each batch of one epoch; every example is in exactly one.

    With `grouped`, examples of about one length share a batch, and batches come in random order.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    if grouped:
        size = batch_size * _BATCHES_PER_BUCKET
        buckets = [order[i : i + size] for i in range(0, len(order), size)]
        order = [i for bucket in buckets for i in sorted(bucket, key=lengths.__getitem__)]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if grouped:
        rng.shuffle(batches)
    return batches


def make_accelerator(training: TrainingConfig, track_in: Path | None = None) -> Accelerator:
    """Return the accelerator for a device and a precision, before a model is loaded.

    Trackers that write files write them in `track_in`. Raises UnavailableError for a device or
    precision that this machine does not have.
    """
    device = resolve_device(training.device)
    precision = resolve_precision(training, device)
    if device == "cpu":
        memory.keep_freed_memory()
    # accelerate keeps device and precision in a singleton, with no public way to change them; the
    # models of one run may differ in both
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=(list(training.report_to) or None) if distributed.is_main() else None,
        project_dir=track_in,
    )


def prepare(loaded: LoadedModel, recipe: Recipe, accelerator: Accelerator) -> TrainState:
    """Put model and optimizer on the accelerator's device, in its precision."""
    optimizer = make_optimizer(loaded.model, recipe.learning_rate, recipe.weight_decay)
    return TrainState(
        # in evaluation mode the model is not wrapped in DistributedDataParallel, which needs a
        # gradient of every weight from each part of each batch; they are added up above instead
        accelerator.prepare_model(loaded.model, evaluation_mode=True),
        accelerator.prepare_optimizer(optimizer),
        accelerator,
        recipe,
        partial(
            loaded.family.collate, ids=loaded.ids, counted=recipe.counted, pad_to=recipe.pad_to
        ),
    )


def make_optimizer(
    model: torch.nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW; matrices are decayed, biases and norms (one dimension) are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        fused=True,
    )
