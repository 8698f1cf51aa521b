"""Checkpoints: the state of a trial's training, from which a stopped run resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tgsent import files
from tgsent.modeling.family import Batch
from tgsent.records import Encoded, LogRow, Progress
from tgsent.training import distributed
from tgsent.training.recipe import Recipe

_FORMAT = 1
_KEPT = 2


@dataclass
class Position:
    """How far training has come."""

    step: int = 0
    """Optimizer steps taken."""
    epoch_loss: float = 0.0
    """Sum of the losses of this epoch's steps."""
    seconds: float = 0.0
    log: list[LogRow] = field(default_factory=list)
    """The rows of `log.jsonl` so far."""


@dataclass
class TrainState:
    """A model in training, and what belongs to it."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    recipe: Recipe
    collate: Callable[[Sequence[Encoded]], Batch]
    position: Position = field(default_factory=Position)


@dataclass
class Checkpoints:
    """The checkpoints of one trial: safetensors files, with all but tensors in their metadata."""

    folder: Path
    identity: dict[str, str]
    """Hashes of the settings and the split that a checkpoint must belong to."""
    seconds: float
    """Seconds between two checkpoints."""
    _saved: float = field(default_factory=time.monotonic, init=False)

    @property
    def due(self) -> bool:
        """Whether the next checkpoint is due."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, state: TrainState) -> None:
        """Write a checkpoint atomically, unless that of this step is already there.

        The last two are kept. Raises StorageError where it cannot be written.
        """
        path = self.folder / f"step-{state.position.step:09d}.safetensors"
        if path.exists():
            return
        with files.storage_errors(path):
            stale = self.folder.glob(".*.tmp")  # of a killed run
            for old in (*self._newest_first()[_KEPT - 1 :], *stale):
                old.unlink()
        tensors = _tensors(state)
        about = {
            "format": _FORMAT,
            "identity": self.identity,
            "position": vars(state.position),
            "scaler": scaler.state_dict() if (scaler := state.accelerator.scaler) else None,
        }
        size = sum(tensor.nbytes for tensor in tensors.values())
        with files.replacing(path, size) as temporary:
            save_file(tensors, temporary, {key: json.dumps(value) for key, value in about.items()})
        self._saved = time.monotonic()

    def restore(self, state: TrainState, progress: Progress) -> None:
        """Load the newest usable checkpoint into `state`, where there is one.

        Those that are damaged, or of other settings or another split, are reported and removed;
        nothing of them is loaded.
        """
        for path in self._newest_first():
            try:
                with safe_open(path, "pt") as file:
                    about = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
                    # copies: else the file would stay mapped, and its space taken, to the end
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                position, dropout = Position(**about["position"]), tensors["random.cpu"]
            except (SafetensorError, ValueError, LookupError, TypeError):  # damaged
                about, tensors = {}, {}
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            if (about.get("format"), about.get("identity")) != (_FORMAT, self.identity) or any(
                shapes.get(f"model.{name}") != t.shape for name, t in _trained(state.model)
            ):
                progress.line(
                    f"{path}: this checkpoint cannot be used: it is damaged, or of other settings,"
                    " other texts or another model"
                )
                path.unlink()
                continue
            _load(state, position, tensors)
            # of fp16's gradients; earlier versions kept it beside the random numbers
            scaler = about.get("scaler") or about.get("random", {}).get("scaler")
            if state.accelerator.scaler and scaler:
                state.accelerator.scaler.load_state_dict(scaler)
            torch.set_rng_state(dropout)
            if state.accelerator.device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], state.accelerator.device)
            return

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def synchronize(state: TrainState, seed: int) -> None:
    """Copy the main process's state to the others, and let each draw random numbers of its own.

    They may be on machines that do not see the checkpoints.
    """
    if distributed.world_size() == 1:
        return
    position = distributed.broadcast(state.position)
    own = _tensors(state)
    # one by one, to bound the memory for copies
    tensors = {
        name: distributed.broadcast(own[name].cpu() if distributed.is_main() else torch.empty(0))
        for name in distributed.broadcast(list(own))
    }
    if not distributed.is_main():
        _load(state, position, tensors)
        torch.manual_seed(hash((seed, position.step, distributed.rank())))


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what training may change: trained parameters, and buffers that are saved with them."""
    yield from ((name, p.data) for name, p in model.named_parameters() if p.requires_grad)
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in _trained(state.model)}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()  # of dropout; nothing else is drawn in training
    if state.accelerator.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(state.accelerator.device)
    return tensors


def _load(state: TrainState, position: Position, tensors: dict[str, Tensor]) -> None:
    state.position = position
    for name, tensor in _trained(state.model):
        tensor.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, key = rest.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
