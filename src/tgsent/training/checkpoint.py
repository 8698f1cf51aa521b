"""Checkpoints: the state of a trial's training, from which a stopped run resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tgsent import files
from tgsent.records import Progress
from tgsent.training import distributed

_FORMAT = 1
_KEPT = 2
_COUNTERS = ("step", "epoch_loss", "seconds", "log")
"""Fields of TrainState that are plain values."""


@dataclass
class TrainState:
    """What training changes step by step, and a checkpoint holds."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    step: int = 0
    """Optimizer steps taken."""
    epoch_loss: float = 0.0
    """Sum of the losses of this epoch's steps."""
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    """The rows of `log.jsonl` so far."""


@dataclass
class Checkpoints:
    """The checkpoints of one trial: safetensors files, with all but tensors in their metadata."""

    folder: Path
    identity: dict[str, str]
    """Hashes of the settings and the split that a checkpoint must belong to."""
    seconds: float
    """The most training that a kill may cost."""
    _saved: float = field(default_factory=time.monotonic, init=False)
    _written: Path | None = field(default=None, init=False)

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, state: TrainState) -> None:
        """Write a checkpoint atomically, unless that of this step is already there.

        The last two are kept. Raises StorageError where it cannot be written.
        """
        path = self.folder / f"step-{state.step:09d}.safetensors"
        if path == self._written:
            return
        others = [older for older in self._newest_first() if older != path]
        with files.storage_errors(path):
            for older in others[_KEPT - 1 :]:
                older.unlink()
            for stale in self.folder.glob(".*.tmp"):  # of a killed run
                stale.unlink()
        tensors = _tensors(state)
        about = {
            "format": _FORMAT,
            "identity": self.identity,
            "position": _counters(state),
            "scaler": scaler.state_dict() if (scaler := state.accelerator.scaler) else None,
            "tensors": sorted(tensors),
        }
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        with files.replacing(path, size) as temporary:
            save_file(tensors, temporary, {key: json.dumps(value) for key, value in about.items()})
        self._saved, self._written = time.monotonic(), path

    def restore(self, state: TrainState, progress: Progress) -> None:
        """Load the newest usable checkpoint into `state`, where there is one.

        Those that are damaged, or of other settings or another split, are reported and removed;
        nothing of them is loaded.
        """
        for path in self._newest_first():
            try:
                with safe_open(path, "pt") as file:
                    about = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
                    _check(about, file, self.identity, state.model)
                    # copies: else the file would stay mapped, and its space taken, to the end
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                progress.line(f"{path}: this checkpoint cannot be used: {error}")
                path.unlink()
                continue
            _load(state, about["position"], tensors)
            # of fp16's gradients; earlier versions kept it beside the random numbers
            scaler = about.get("scaler") or about.get("random", {}).get("scaler")
            if state.accelerator.scaler and scaler:
                state.accelerator.scaler.load_state_dict(scaler)
            torch.set_rng_state(tensors["random.cpu"])
            device = state.accelerator.device
            if device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], device)
            elif device.type != "cpu":  # the run was moved here from another device
                progress.line(f"random numbers on {device.type} differ from those before the stop")
            self._written = path
            return

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def synchronize(state: TrainState, seed: int) -> None:
    """Copy the main process's state to the others, and let each draw random numbers of its own.

    They may be on machines that do not see the checkpoints.
    """
    if distributed.world_size() == 1:
        return
    counters = distributed.broadcast(_counters(state))
    tensors = _tensors(state) if distributed.is_main() else {}
    tensors = distributed.broadcast_tensors(tensors, state.accelerator.device)
    if not distributed.is_main():
        _load(state, counters, tensors)
        torch.manual_seed(hash((seed, state.step, distributed.rank())))


def _counters(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _COUNTERS}


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


def _check(about: dict[str, Any], file: Any, identity: dict[str, str], model: nn.Module) -> None:
    """Raise ValueError for a checkpoint of something else, before anything of it is loaded."""
    if about.get("format") != _FORMAT:
        raise ValueError("it is of another version of tgsent")
    if about["identity"] != identity:
        raise ValueError("it is of other settings, other texts or another model")
    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no dict
    if any(shapes.get(f"model.{name}") != list(tensor.shape) for name, tensor in _trained(model)):
        raise ValueError("it is of a model of another shape")
    if sorted(shapes) != about["tensors"] or set(about["position"]) != set(_COUNTERS):
        raise ValueError("some of it is missing")


def _load(state: TrainState, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name in _COUNTERS:
        setattr(state, name, counters[name])
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
