"""Memory: what training needs at least, what the machine has, and advice when it runs out."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from tgsent.config import TrainingConfig, TrialSpec
from tgsent.errors import ConfigError, TrialError
from tgsent.files import show_size
from tgsent.modeling.loading import is_out_of_memory
from tgsent.training import adapters
from tgsent.training.recipe import resolve_device

Phase = Literal["loading", "training", "evaluation"]

# Bytes in fp32, in which weights are kept whatever the precision of the computation: the weight,
# and for one that is trained its gradient and AdamW's two moments.
_PER_WEIGHT = 4
_PER_TRAINED_WEIGHT = 12


@dataclass(frozen=True)
class Estimate:
    """What is known of a training's memory before it runs."""

    trainable_parameters: int
    bytes: int
    """A lower bound: weights, gradients and optimizer state, without activations."""


def estimate(model: PreTrainedModel, training: TrainingConfig) -> Estimate:
    """Estimate for a model on the meta device, which is not changed."""
    model = copy.deepcopy(model)
    with torch.device("meta"):
        adapters.prepare(model, training)
    trained = adapters.count(model)
    return Estimate(trained, _PER_WEIGHT * model.num_parameters() + _PER_TRAINED_WEIGHT * trained)


def check(model: PreTrainedModel, spec: TrialSpec) -> None:
    """Raise ConfigError where this model, on the meta device, certainly does not fit here.

    What may fit is let through: the memory for activations is not estimated.
    """
    training = spec.training
    device = resolve_device(training.device)
    needed, available = estimate(model, training).bytes, limit(device)
    if available is None or needed <= available:
        return
    ways = {"a smaller model": 0}
    if training.lora is None:
        frozen = training.model_copy(update={"freeze_embeddings": True})
        ways["training.freeze_embeddings: true"] = estimate(model, frozen).bytes
        ways["training.lora: {}"] = _PER_WEIGHT * model.num_parameters()
    # the way that changes least comes first; those that would not fit are left out
    advice = [
        f"{way} (at least {show_size(size)})" if size else way
        for way, size in sorted(ways.items(), key=lambda way: -way[1])
        if size <= available
    ]
    raise ConfigError(
        f"{spec.name}: weights, gradients and optimizer state take {show_size(needed)}, and this"
        f" machine has {show_size(available)} of memory ({device})\n"
        f"what may fit: {', or '.join(advice)}"
    )


def limit(device: str) -> int | None:
    """Return the most that this process may ever use on `device`, or None where it is unknown.

    Swap space, and what other processes use, are counted as available.
    """
    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    limits = [_physical(), *_cgroup_limits()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min((one for one in limits if one is not None), default=None)


def peak() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _physical() -> int | None:
    try:
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    return ram + _swap() if ram > 0 else None


def _swap(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the size of the swap space; 0 where it is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("SwapTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def _cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Yield the memory limits of this process's control group, and of those above it.

    A container has its limit at the root that it sees. The limit of swap is added.
    """
    with contextlib.suppress(OSError):
        yield int((root / "memory/memory.limit_in_bytes").read_text()) + _swap()  # version 1
    path = ""
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):  # version 2
                path = line.removeprefix("0::/")
    group = root / path
    for folder in (group, *group.parents):
        if folder == root.parent:
            return
        # "max", or no such file: no limit here
        with contextlib.suppress(OSError, ValueError):
            ram = int((folder / "memory.max").read_text())
            yield ram + _cgroup_swap(folder)


def _cgroup_swap(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "memory.swap.max").read_text())
    return _swap()


@contextlib.contextmanager
def allocation_errors(spec: TrialSpec, phase: Phase) -> Iterator[None]:
    """Raise TrialError, with advice, for an allocation that fails in the context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrialError(f"out of memory in {phase}\n{_advice(spec, phase)}") from error


def _advice(spec: TrialSpec, phase: Phase) -> str:
    training, batch = spec.training, spec.evaluation.batch_size
    if phase == "loading":
        return "the model alone does not fit: take a smaller one"
    if phase == "evaluation":
        lower = f"lower evaluation.batch_size ({batch} now); the answers do not depend on it"
        return lower if batch > 1 else "lower training.max_tokens, or take a smaller model"
    same, other = [], [f"training.max_tokens below {training.max_tokens}"]
    if training.gradient_accumulation < training.batch_size:
        more = min(training.batch_size, 4 * training.gradient_accumulation)
        same.append(f"training.gradient_accumulation={more}")
    if not training.gradient_checkpointing:
        same.append("training.gradient_checkpointing=true")
    if training.lora is None:
        other.append("training.lora={}")
    lines = [f"the same training in less memory: {', '.join(same)}"] if same else []
    return "\n".join([*lines, f"another training: {', '.join(other)}, or a smaller model"])


def release() -> None:
    """Free the memory of a trial that is over."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
