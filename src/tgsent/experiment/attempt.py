"""One attempt at a trial, wherever it is run: its result, or why it failed."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch

from tgsent.config import TrialSpec
from tgsent.errors import (
    DivergedError,
    ProcessLostError,
    StoppedError,
    StorageError,
    TgsentError,
    TrialError,
    UnavailableError,
)
from tgsent.experiment import trial
from tgsent.records import Failure, Progress, Split
from tgsent.report import model_card
from tgsent.runs.manifest import DataSummary
from tgsent.runs.metrics import TrialResult
from tgsent.training import distributed


def attempt(
    spec: TrialSpec,
    split: Split,
    progress: Progress,
    *,
    data: DataSummary | None,
    cpus: int | None,
    save_to: Path | None,
    checkpoints_in: Path | None,
    track_in: Path | None,
) -> TrialResult | Failure:
    """Run a trial, as `run_trial` does; a saved model gets its card, which names the `data`.

    With `cpus`, it takes so many cores and no more, in processes that it starts as well.
    Raises what the other trials would meet as well: StoppedError, StorageError, UnavailableError,
    ProcessLostError. Of several processes all have to fail or none, so that there any failure but
    a divergence, which all of them see, is raised as well.
    """
    if cpus is not None:
        torch.set_num_threads(cpus)
        os.environ["OMP_NUM_THREADS"] = str(cpus)
    try:
        result = trial.run_trial(
            spec,
            split,
            progress,
            save_to=save_to,
            checkpoints_in=checkpoints_in,
            track_in=track_in,
        )
        if save_to is not None and data is not None:
            model_card.write(save_to, spec, split, result.metrics, data)
    except (UnavailableError, StorageError, StoppedError, ProcessLostError):
        raise
    except DivergedError as error:
        return Failure(str(error).removeprefix(f"{spec.title}: "))
    except Exception as error:  # one trial's failure must not cost the others
        if distributed.world_size() > 1 and spec.is_in_our_loop:
            raise
        if isinstance(error, TgsentError):
            details = error.details if isinstance(error, TrialError) else ""
            return Failure(str(error).removeprefix(f"{spec.title}: "), details)
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
    return result
