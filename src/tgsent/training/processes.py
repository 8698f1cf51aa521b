"""Several processes that work on each trial together, as torchrun and accelerate start them.

Each takes a share of every batch and of the test texts. The main process, that of rank 0, leads:
it alone decides, writes and prints. Whatever one waits for in another goes through here; alone, a
process waits for nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from tgsent.errors import ConfigError, ProcessLostError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_T = TypeVar("_T")

_work: list[object] = []

_PATIENCE = timedelta(days=30)  # the others wait as long as the main process works alone
_LARGE = 2**20  # numbers of a tensor that goes by itself, without being copied


@cache
def count() -> int:
    """Give the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def rank() -> int:
    """Give the number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Tell whether this is the process that leads."""
    return rank() == 0


def meet(*, on_cpu: bool) -> None:
    """Wait for all processes to be there; raises ConfigError for what tgsent does not know."""
    if count() == 1:
        return
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
    with _lost():
        state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    if state.distributed_type is DistributedType.NO:
        raise ConfigError(
            f"{count()} processes were started, but they cannot work together on this device"
        )


def share(value: _T) -> _T:
    """Give the main process's value to all."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    with _lost():
        broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def at_work(work: object) -> Iterator[None]:
    """Share a piece of work, and keep together in the context.

    A process that leaves it by an exception, unless all do, has lost the others.
    """
    share(work)
    _work.append(work)
    yield
    _work.pop()


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Have the others know, at the end of the context, that there is no more work.

    Not where an exception comes out of the midst of some: there they wait for something else.
    """
    try:
        yield
    finally:
        if not _work:
            share(None)


def gather(value: _T) -> list[_T]:
    """Give the values of all processes, by rank."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    with _lost():
        found: list[_T] = gather_object([value])
    return found


def share_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Give the main process's tensors to all, one by one, so that no more is copied at once."""
    import torch

    about = share({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    found = {}
    for name, (shape, dtype) in about.items():
        tensor = (
            tensors[name].to(device)
            if is_main()
            else torch.empty(shape, dtype=dtype, device=device)
        )
        with _lost():
            torch.distributed.broadcast(tensor, src=0)
        found[name] = tensor
    return found


def total(*numbers: float) -> list[float]:
    """Add up numbers over all processes, each on its own."""
    if count() == 1:
        return list(numbers)
    import torch
    from accelerate import PartialState

    tensor = torch.tensor(numbers, dtype=torch.float64, device=PartialState().device)
    add_up([tensor])
    return [float(number) for number in tensor]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; they are of one type."""
    if count() == 1:
        return
    import torch

    large = [tensor for tensor in tensors if tensor.numel() >= _LARGE and tensor.is_contiguous()]
    rest = [tensor for tensor in tensors if tensor.numel() < _LARGE or not tensor.is_contiguous()]
    with _lost():
        for tensor in large:
            torch.distributed.all_reduce(tensor)
        if rest:  # together, as each message costs some time
            flat = torch.cat([tensor.flatten() for tensor in rest])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in rest])
            for tensor, part in zip(rest, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    """Turn what torch raises where another process is gone into an error that says so."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProcessLostError(
            f"another of the {count()} processes has ended or lost touch: {reason}\n"
            "what was finished is kept, and the same command, with as many processes as you like,"
            " goes on from the last checkpoint"
        ) from error
