"""What an engine is: it runs the pending trials, here or on other machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tgsent.config import EngineConfig, TrialSpec
from tgsent.records import Failure, Progress, Splits
from tgsent.runs.folder import RunFolder
from tgsent.runs.manifest import DataSummary
from tgsent.runs.metrics import TrialMetrics


@dataclass(frozen=True)
class EngineContext:
    """What an engine needs beside the pending trials."""

    config: EngineConfig
    splits: Splits
    folder: RunFolder
    data: DataSummary
    """For model cards."""
    progress: Progress
    on_retry: Callable[[TrialSpec, str], None]
    """Called with the reason where a trial is run again because its machine died."""


class Engine(Protocol):
    """Runs trials and writes their files in the run folder."""

    def run(
        self, pending: Sequence[TrialSpec], context: EngineContext
    ) -> Iterator[tuple[TrialSpec, TrialMetrics | Failure]]:
        """Yield each trial when its files are written, with its metrics or why it failed.

        Raises what ends the whole run.
        """
        ...


def use_cores(cores: int | None) -> None:
    """Limit this process, and those that it starts, to so many threads; None: no limit."""
    if cores is not None:
        import torch

        torch.set_num_threads(cores)
        os.environ["OMP_NUM_THREADS"] = str(cores)
