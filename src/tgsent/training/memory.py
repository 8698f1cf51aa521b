"""Memory: what training needs at least, what the machine has, and advice when it runs out."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import torch
from transformers import PreTrainedModel

from tgsent.config import TrainingConfig, TrialSpec
from tgsent.errors import ConfigError, TrialError
from tgsent.files import show_size
from tgsent.modeling.loading import is_out_of_memory
from tgsent.training import adapters
from tgsent.training.recipe import resolve_device

Phase = Literal["loading", "training", "evaluation"]

_ADVICE: dict[Phase, str] = {
    "loading": "the model alone does not fit: take a smaller one",
    "training": (
        "the same training in less memory: raise training.gradient_accumulation,"
        " set training.gradient_checkpointing=true\n"
        "another training: lower training.max_tokens, set training.lora={}, take a smaller model"
    ),
    "evaluation": (
        "lower evaluation.batch_size, on which the answers do not depend, or training.max_tokens;"
        " or take a smaller model"
    ),
}

# Bytes in fp32, in which weights are kept whatever the precision of the computation: the weight,
# and for one that is trained its gradient and AdamW's two moments.
_PER_WEIGHT = 4
_PER_TRAINED_WEIGHT = 12


def estimate(model: PreTrainedModel, training: TrainingConfig) -> tuple[int, int]:
    """Return the number of trained parameters, and the fewest bytes that training takes.

    The bytes are those of weights, gradients and optimizer state, without activations. The model
    is on the meta device, and is not changed.
    """
    model = copy.deepcopy(model)
    with torch.device("meta"):
        adapters.prepare(model, training)
    trained = model.num_parameters(only_trainable=True)
    return trained, _PER_WEIGHT * model.num_parameters() + _PER_TRAINED_WEIGHT * trained


def check(model: PreTrainedModel, spec: TrialSpec) -> None:
    """Raise ConfigError where this model, on the meta device, certainly does not fit here.

    What may fit is let through: the memory for activations is not estimated.
    """
    device = resolve_device(spec.training.device)
    (_, needed), available = estimate(model, spec.training), limit(device)
    if needed <= available:
        return
    raise ConfigError(
        f"{spec.name}: weights, gradients and optimizer state take {show_size(needed)}, and this"
        f" machine has {show_size(available)} of memory ({device})\n"
        "take a smaller model, or train less of it: training.lora={},"
        " or training.freeze_embeddings=true"
    )


def limit(device: str) -> int:
    """Return the most bytes that this process may ever use on `device`.

    Swap space, and what other processes use, are counted as available.
    """
    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    total: int = min(
        [psutil.virtual_memory().total + psutil.swap_memory().total, *_cgroup_limits()]
    )
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    return total if address_space == resource.RLIM_INFINITY else min(total, address_space)


def peak() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Yield the limits of memory and swap of this process's control group, and of those above it.

    A container has its limits at the root that it sees.
    """
    lines = membership.read_text().splitlines() if membership.exists() else []
    own = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]  # version 2
    group = root.joinpath(*own)
    for folder in (group, *group.parents):
        # "max", or no such file: no limit here
        with contextlib.suppress(OSError, ValueError):
            ram = int((folder / "memory.max").read_text())
            swap = psutil.swap_memory().total
            with contextlib.suppress(OSError, ValueError):
                swap = int((folder / "memory.swap.max").read_text())
            yield ram + swap


@contextlib.contextmanager
def allocation_errors(phase: Phase) -> Iterator[None]:
    """Raise TrialError, with advice, for an allocation that fails in the context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrialError(f"out of memory in {phase}\n{_ADVICE[phase]}") from error


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system.

    Each step allocates and frees the same large tensors, and each page that comes from the system
    anew costs a page fault. With it, a step of full-size GPT-2 is 6 % faster
    (docs/benchmarks.md). Does nothing with another C library.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)  # large blocks from the heap, too
        library.mallopt(trim_threshold, 2**31 - 1)
