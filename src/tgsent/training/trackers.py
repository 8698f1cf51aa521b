"""Experiment trackers (TensorBoard, Weights & Biases, ...), through accelerate."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator

from accelerate import Accelerator

from tgsent.config import TrialSpec
from tgsent.errors import UnavailableError


@contextlib.contextmanager
def tracking(spec: TrialSpec, accelerator: Accelerator) -> Iterator[None]:
    """Send what the accelerator logs in the context to the configured trackers."""
    settings = {
        "model": spec.model,
        "trial": spec.trial,
        "seed": spec.seed,
        **spec.training.native_settings(),
        "prompt": spec.prompt.input,
        "decoding": spec.evaluation.decoding,
    }
    accepted = {  # by every tracker
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in settings.items()
    }
    title = spec.title
    names = {"wandb": {"name": title}, "mlflow": {"run_name": title}, "trackio": {"name": title}}
    with contextlib.redirect_stdout(sys.stderr):  # some print to stdout, where results are expected
        try:
            accelerator.init_trackers("tgsent", config=accepted, init_kwargs=names)
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
