"""The training loop of every model but those of the package SimpleT5.

`train` goes through epochs and batches; `take_step` does one step: forward, backward, clip, step.
Then come log and checkpoint. All settings are plain numbers here: `recipe.py` resolves them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from tgsent.errors import DivergedError, StoppedError
from tgsent.modeling.batches import IGNORE, Batch, token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded, Progress
from tgsent.training import distributed, interrupts
from tgsent.training.checkpoint import Checkpoints, TrainState, synchronize
from tgsent.training.recipe import Recipe

Collate = Callable[[Sequence[Encoded]], Batch]

# A bucket is a shuffled run of this many batches that is sorted by length: long enough that the
# texts of a batch are of one length, short enough that batches differ from epoch to epoch.
_BATCHES_PER_BUCKET = 50

_LOG_ROWS = 100  # about as many as a curve needs


@dataclass(frozen=True)
class Trained:
    """What training leaves behind beside the model."""

    log: tuple[dict[str, Any], ...]
    steps: int
    seconds: float


def train(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    collate: Collate,
    recipe: Recipe,
    *,
    seed: int,
    accelerator: Accelerator,
    progress: Progress,
    title: str,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Fine-tune `model` in place, and leave it in evaluation mode.

    Training resumes from the last checkpoint, and then gives the same model as without a stop.
    Raises DivergedError at once where the loss is not finite, StoppedError after the step in which
    a signal came.
    """
    state = prepare(model, recipe, accelerator)
    if checkpoints:
        checkpoints.restore(state, progress)
    synchronize(state, seed)
    if state.step:
        progress.line(f"{title}: goes on after step {state.step} of {recipe.total_steps}")
    factor = linear_schedule(recipe.warmup_steps, recipe.total_steps)
    started = time.perf_counter() - state.seconds
    state.model.train()
    with interrupts.deferred():  # a signal stops training between two steps, not within one
        for epoch in range(state.step // recipe.steps_per_epoch + 1, recipe.epochs + 1):
            done = state.step % recipe.steps_per_epoch  # steps of this epoch before a stop
            if not done:
                state.epoch_loss = 0.0
            batches = _batches_of_epoch(examples, recipe, seed, epoch)[done:]
            remaining, epoch_started = sum(map(len, batches)), time.perf_counter()
            with progress.task(f"{title}, epoch {epoch}/{recipe.epochs}", len(examples)) as task:
                task.advance(len(examples) - remaining)
                for batch in batches:
                    rate = recipe.learning_rate * factor(state.step)
                    loss = take_step(state, batch, collate, recipe, rate)
                    state.step += 1
                    state.epoch_loss += loss
                    if not math.isfinite(loss):
                        raise _diverged(f"the loss is {loss}", title, state, recipe)
                    _log(state, recipe, epoch, loss, rate)
                    task.advance(len(batch), f"loss {loss:.3f}")
                    state.seconds = time.perf_counter() - started
                    if checkpoints and checkpoints.due and not interrupts.requested():
                        checkpoints.save(state)
                    _stop_if_requested(state, checkpoints, title, recipe)
            speed = remaining / (time.perf_counter() - epoch_started)
            progress.line(f"{title}: {_summary(state, recipe, epoch, speed)}")
            if not _is_finite(state.model):
                raise _diverged("some weights are not finite", title, state, recipe)
            if checkpoints:
                checkpoints.save(state)
            _stop_if_requested(state, checkpoints, title, recipe)
    state.model.eval()
    return Trained(tuple(state.log), state.step, state.seconds)


def take_step(
    state: TrainState,
    batch: Sequence[Encoded],
    collate: Collate,
    recipe: Recipe,
    learning_rate: float,
) -> float:
    """Take one optimizer step, unless the loss is not finite; return the loss."""
    loss = _compute_gradients(state, batch, collate, recipe)
    if not math.isfinite(loss):
        return loss
    if recipe.max_grad_norm is not None:
        state.accelerator.clip_grad_norm_(state.model.parameters(), recipe.max_grad_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return loss


def _compute_gradients(
    state: TrainState, batch: Sequence[Encoded], collate: Collate, recipe: Recipe
) -> float:
    """Run forward and backward; return the mean loss per counted token of the whole batch.

    Apart from rounding and dropout, neither loss nor gradients depend on the number of parts or of
    processes. Of n processes, each computes every n-th text.
    """
    texts = batch[distributed.rank() :: distributed.world_size()]
    # a process that is left without a text computes one that does not count, because all processes
    # must have gradients of the same weights
    weight = 1 if texts else 0
    texts = texts or batch[:1]
    size = math.ceil(len(texts) / recipe.parts)
    parts = [collate(texts[i : i + size]) for i in range(0, len(texts), size)]
    tokens = weight * sum(int((part["labels"] != IGNORE).sum()) for part in parts)
    (all_tokens,) = distributed.sums(tokens)
    batch_loss = 0.0
    for part in parts:
        inputs = {name: tensor.to(state.accelerator.device) for name, tensor in part.items()}
        losses = token_losses(state.model, inputs)  # forward: (B, T), 0 for uncounted tokens
        loss = weight * losses.sum() / all_tokens  # (), this part's share of the mean
        state.accelerator.backward(loss)  # adds to the gradients of the parts before
        batch_loss += loss.item()
    distributed.all_reduce([p.grad for p in state.model.parameters() if p.grad is not None])
    (batch_loss,) = distributed.sums(batch_loss)
    return batch_loss


def _log(state: TrainState, recipe: Recipe, epoch: int, loss: float, rate: float) -> None:
    every = max(1, recipe.total_steps // _LOG_ROWS)
    if state.step % every == 0 or state.step == recipe.total_steps:
        row = {"epoch": epoch, "loss": loss, "learning_rate": rate}
        state.log.append({"step": state.step, **row})
        state.accelerator.log(row, step=state.step)


def _summary(state: TrainState, recipe: Recipe, epoch: int, speed: float) -> str:
    mean, digits = state.epoch_loss / recipe.steps_per_epoch, 0 if speed >= 10 else 1
    return f"epoch {epoch}/{recipe.epochs}, mean loss {mean:.4f}, {speed:.{digits}f} examples/s"


def _stop_if_requested(
    state: TrainState, checkpoints: Checkpoints | None, title: str, recipe: Recipe
) -> None:
    """Save a checkpoint and raise StoppedError where a signal has come to any process."""
    (requests,) = distributed.sums(interrupts.requested())
    if requests:
        if checkpoints:
            checkpoints.save(state)
        where = f"{title} after step {state.step} of {recipe.total_steps}"
        kept = "the same command goes on from there" if checkpoints else interrupts.GOING_ON
        raise StoppedError(f"interrupted: {where}; {kept}")


def _is_finite(model: torch.nn.Module) -> bool:
    """Check the weights, as no loss is computed after the last step."""
    return all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)


def _diverged(what: str, title: str, state: TrainState, recipe: Recipe) -> DivergedError:
    return DivergedError(
        f"{title}: {what} at step {state.step} of {recipe.total_steps};"
        " lower training.learning_rate, or set training.precision to fp32"
    )


def _batches_of_epoch(
    examples: Sequence[Encoded], recipe: Recipe, seed: int, epoch: int
) -> list[list[Encoded]]:
    lengths = [len(example) for example in examples]
    batches = epoch_batches(
        lengths, recipe.batch_size, seed * 1_000_003 + epoch, grouped=recipe.pad_to is None
    )
    return [[examples[i] for i in indices] for indices in batches]


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
        bucket = batch_size * _BATCHES_PER_BUCKET
        for start in range(0, len(order), bucket):
            order[start : start + bucket] = sorted(
                order[start : start + bucket], key=lengths.__getitem__
            )
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if grouped:
        rng.shuffle(batches)
    return batches


def linear_schedule(warmup: int, total: int) -> Callable[[int], float]:
    """Return the learning rate's factor for each step: linear up from 0, then linear down to 0.

    The same as transformers' `get_linear_schedule_with_warmup`, whose module takes long to import.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return factor


def collator(loaded: LoadedModel, recipe: Recipe) -> Collate:
    """Return the function that makes a batch of encoded texts."""

    def collate(batch: Sequence[Encoded]) -> Batch:
        return loaded.family.collate(batch, loaded.ids, recipe.counted, recipe.pad_to)

    return collate


def prepare(model: PreTrainedModel, recipe: Recipe, accelerator: Accelerator) -> TrainState:
    """Put model and optimizer on the accelerator's device, in its precision."""
    optimizer = make_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    # in evaluation mode the model is not wrapped in DistributedDataParallel, which needs a gradient
    # of every weight from each part of each batch; gradients are added up above instead
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    return TrainState(prepared, accelerator.prepare_optimizer(optimizer), accelerator)


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
