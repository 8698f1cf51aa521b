"""The device that models are trained on, through accelerate."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tgsent.config import TrainingConfig
from tgsent.training import distributed
from tgsent.training.recipe import resolve_device, resolve_precision


def make_accelerator(training: TrainingConfig, track_in: Path | None = None) -> Accelerator:
    """Return the accelerator for a device and a precision, before a model is loaded.

    Trackers that write files write them in `track_in`. Raises UnavailableError for a device or
    precision that this machine does not have.
    """
    device = resolve_device(training.device)
    precision = resolve_precision(training, device)
    if device == "cpu":
        keep_freed_memory()
    # accelerate keeps device and precision in a singleton, with no public way to change them; the
    # models of one run may differ in both
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=(list(training.report_to) or None) if distributed.is_main() else None,
        project_dir=track_in,
    )


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system.

    Each step allocates and frees the same large tensors, and each page that comes from the system
    anew costs a page fault. With it, a step of full-size GPT-2 is 6 % faster
    (docs/benchmarks.md). Does nothing with another C library.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)  # large blocks from the heap, too
        library.mallopt(trim_threshold, 2**31 - 1)
