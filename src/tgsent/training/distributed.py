"""Several processes that work on each trial together, as torchrun and accelerate start them.

Each takes a share of every batch and of the test texts. The main process, of rank 0, leads: it
alone decides, writes and prints. All communication between them goes through this module; a
process that is alone waits for nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from tgsent.errors import ConfigError, ProcessLostError, reason

if TYPE_CHECKING:  # torch takes seconds to import, and the command line imports this module
    from torch import Tensor

_T = TypeVar("_T")

_TIMEOUT = timedelta(days=30)  # the others wait as long as the main process works alone

_LARGE = 2**20  # numbers in a tensor that is sent by itself, without being copied

_unfinished: list[object] = []
"""Work that was begun and not finished. Process-wide, as a process is one of them as a whole."""


@cache
def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Check whether this is the process that leads."""
    return rank() == 0


def connect(*, on_cpu: bool) -> None:
    """Wait until all of several processes are connected, to compute on CPUs or on accelerators.

    Raises ConfigError for a setup that tgsent does not support.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if "RANK" not in os.environ:
        raise ConfigError(
            "WORLD_SIZE says that there are several processes, but RANK does not say which one this"
            " is: start them with torchrun or `accelerate launch`"
        )
    for way in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate is set to {way}: tgsent shares out batches, not models;"
                " launch with --multi_gpu alone"
            )
    with _errors():
        state = PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    if state.distributed_type is DistributedType.NO:
        raise ConfigError(
            f"{world_size()} processes were started, but they cannot work together on this device"
        )


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Broadcast at the end of the context that there is no more work.

    Not after an exception in the middle of some work, where the others wait for something else.
    """
    try:
        yield
    finally:
        if not _unfinished:
            broadcast(None)


@contextlib.contextmanager
def working_on(work: object) -> Iterator[None]:
    """Broadcast a piece of work that all processes do in the context.

    A process that leaves it by an exception, unless all do, has lost the others.
    """
    broadcast(work)
    _unfinished.append(work)
    yield
    _unfinished.pop()


def broadcast(value: _T) -> _T:
    """Return the main process's value in all processes."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    with _errors():
        broadcast_object_list(values)
    return values[0]


def gather(value: _T) -> list[_T]:
    """Return the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    with _errors():
        values: list[_T] = gather_object([value])
    return values


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; all have one data type."""
    if world_size() == 1:
        return
    import torch
    from torch.nn.utils import vector_to_parameters

    large = [tensor for tensor in tensors if tensor.numel() >= _LARGE and tensor.is_contiguous()]
    small = [tensor for tensor in tensors if tensor.numel() < _LARGE or not tensor.is_contiguous()]
    with _errors():
        for tensor in large:
            torch.distributed.all_reduce(tensor)
        if small:  # in one message, as each costs time
            together = torch.cat([tensor.flatten() for tensor in small])
            torch.distributed.all_reduce(together)
            vector_to_parameters(together, small)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise ProcessLostError for what torch raises where another process has ended."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ProcessLostError(
            f"another of the {world_size()} processes has ended or lost touch: {reason(error)}\n"
            "finished work is kept; run the same command again, with any number of processes, to"
            " resume from the last checkpoint"
        ) from error
