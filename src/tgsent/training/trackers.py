"""Experiment trackers (TensorBoard, Weights & Biases, ...), through accelerate."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import LoggerType

from tgsent.config import TrainingConfig, TrialSpec
from tgsent.errors import UnavailableError

SCORES = ("macro_f1", "accuracy")
_PROJECT = "tgsent"


def check(training: TrainingConfig) -> None:
    """Raise UnavailableError where a configured tracker is not installed.

    accelerate itself would go on without it.
    """
    known = {str(name) for name in LoggerType}
    if unknown := [name for name in training.report_to if name not in known]:
        raise UnavailableError(
            f"training.report_to: this accelerate knows no {unknown[0]}; pip install -U accelerate"
        )
    missing = [name for name in training.report_to if importlib.util.find_spec(name) is None]
    if missing:
        names = ",".join(missing)
        raise UnavailableError(
            f"training.report_to: {' and '.join(missing)} cannot be found;"
            f" pip install 'tgsent[{names}]' installs what is needed"
        )


@contextlib.contextmanager
def tracking(spec: TrialSpec, accelerator: Accelerator) -> Iterator[None]:
    """Send what the accelerator logs in the context to the configured trackers."""
    if not spec.training.report_to:
        yield
        return
    title = spec.title
    names = {"wandb": {"name": title}, "mlflow": {"run_name": title}, "trackio": {"name": title}}
    with contextlib.redirect_stdout(sys.stderr):  # some print to stdout, where results are expected
        try:
            accelerator.init_trackers(_PROJECT, config=_settings(spec), init_kwargs=names)
        except Exception as error:  # trackers that cannot log in raise almost anything
            raise UnavailableError(
                f"training.report_to: {type(error).__name__}: {error};"
                " set the tracker up, or leave it out"
            ) from error
        try:
            yield
        finally:  # end_training would also leave the other processes of this run
            for tracker in accelerator.trackers:
                tracker.finish()


def _settings(spec: TrialSpec) -> dict[str, Any]:
    """Return the settings as one level of values that every tracker accepts."""
    about = {"model": spec.model, "trial": spec.trial, "seed": spec.seed}
    settings = {**about, **spec.training.native_settings()}
    settings |= {"prompt": spec.prompt.input, "decoding": spec.evaluation.decoding}
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in settings.items()
    }
