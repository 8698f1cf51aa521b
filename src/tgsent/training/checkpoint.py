"""Checkpoints: the state of a trial's training, so that a run that was stopped goes on from it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tgsent import files
from tgsent.records import Progress
from tgsent.training import processes

_FORMAT = 1
_KEPT = 2


@dataclass
class Position:
    """How far training has come, and what it has to tell of the way."""

    step: int = 0
    """Optimizer steps taken."""
    epoch_loss: float = 0.0
    """Sum of the losses of this epoch's steps."""
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Checkpoints:
    """The checkpoints of one trial: safetensors files, the position and all else as metadata."""

    folder: Path
    identity: dict[str, str]
    """What a checkpoint must be of: the recipe's and the split's hash."""
    seconds: float
    """The most training that a kill may cost."""
    _saved: float = field(default_factory=time.monotonic, init=False)
    _written: Path | None = field(default=None, init=False)

    @property
    def due(self) -> bool:
        """Tell whether the last one is old enough."""
        return time.monotonic() - self._saved >= self.seconds

    def save(
        self,
        position: Position,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        """Write a checkpoint whole or not at all, unless that of this step is there already.

        The last two stay. Raises StorageError where it cannot be written.
        """
        path = self.folder / f"step-{position.step:09d}.safetensors"
        if path == self._written:
            return
        others = [older for older in self._newest_first() if older != path]
        with files.storage_errors(path):
            for older in others[_KEPT - 1 :]:
                older.unlink()
            for stale in self.folder.glob(".*.tmp"):  # of a killed run
                stale.unlink()
        tensors = _tensors(model, optimizer, accelerator)
        state = {"position": asdict(position), "random": _random_state(accelerator)}
        about = {"format": _FORMAT, "identity": self.identity, **state}
        about["tensors"] = sorted(tensors)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        with files.replacing(path, size) as temporary:
            save_file(tensors, temporary, {key: json.dumps(value) for key, value in about.items()})
        self._saved, self._written = time.monotonic(), path

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        progress: Progress,
    ) -> Position:
        """Put the newest sound checkpoint back; give its position, that of the start without one.

        Those that are damaged, or of another recipe or split, are told of and removed; nothing of
        them is put back.
        """
        for path in self._newest_first():
            try:
                with safe_open(path, "pt") as file:
                    about = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
                    _check(about, file, self.identity, model)
                    position = Position(**about["position"])
                    # copies: else the file would stay mapped, and its space taken, to the end
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                progress.line(f"{path}: this checkpoint cannot be used: {error}")
                path.unlink()
                continue
            _put_back(tensors, model, optimizer)
            _put_random_state_back(tensors, about["random"], accelerator, progress)
            self._written = path
            return position
        return Position()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def shared(
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    seed: int,
) -> Position:
    """Have all processes begin where the main one does, and each draw random numbers of its own.

    They may be on machines that do not see the checkpoints.
    """
    if processes.count() == 1:
        return position
    own = _tensors(model, optimizer, accelerator) if processes.is_main() else {}
    position = processes.share(position)
    state = processes.share_tensors(own, accelerator.device)
    if not processes.is_main():
        _put_back(state, model, optimizer)
        torch.manual_seed(hash((seed, position.step, processes.rank())))
    return position


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name what training may change: trained parameters, and buffers that are saved with them."""
    yield from ((name, p.data) for name, p in model.named_parameters() if p.requires_grad)
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in _trained(model)}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if accelerator.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return tensors


def _check(about: dict[str, Any], file: Any, identity: dict[str, str], model: nn.Module) -> None:
    """Raise ValueError for a checkpoint of something else, before anything of it is put back."""
    if about.get("format") != _FORMAT:
        raise ValueError("it is of another version of tgsent")
    if about["identity"] != identity:
        raise ValueError("it is of another recipe, other texts or another model")
    there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no dict
    if any(there.get(f"model.{name}") != list(tensor.shape) for name, tensor in _trained(model)):
        raise ValueError("it is of a model of another shape")
    if sorted(there) != about["tensors"]:
        raise ValueError("some of it is missing")


def _put_back(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    for name, tensor in _trained(model):
        tensor.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, key = rest.split(".")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_state(accelerator: Accelerator) -> dict[str, Any]:
    """Give the states of Python's and NumPy's generators, and the scale of fp16's gradients."""
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }


def _put_random_state_back(
    tensors: dict[str, Tensor],
    states: dict[str, Any],
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(tensors["random.cpu"])
    device = accelerator.device.type
    if device == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], accelerator.device)
    elif device != "cpu":  # the run was moved here from another device, where none was drawn from
        progress.line(f"random numbers on {device} go on from another place than before the stop")
    if accelerator.scaler and states["scaler"]:
        accelerator.scaler.load_state_dict(states["scaler"])
