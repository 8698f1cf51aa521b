"""What every engine does with a trial: score it, say why it failed, and write its files."""

from __future__ import annotations

import os
import traceback
from dataclasses import fields
from pathlib import Path

import torch

from tgsent.backends.registry import backend_of
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
from tgsent.evaluation import metrics
from tgsent.experiment.execute import PendingRun
from tgsent.records import Failure, Measured, Outcome, Split
from tgsent.report import model_card
from tgsent.runs import signature
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.terminal import without_secrets
from tgsent.training import distributed

_ENDING = (UnavailableError, StorageError, StoppedError, ProcessLostError)
"""Errors that end the whole run, as the other trials would meet them too."""


def use_cores(cores: int | None) -> None:
    """Limit this process, and those that it starts, to so many threads; None: no limit."""
    if cores is not None:
        torch.set_num_threads(cores)
        os.environ["OMP_NUM_THREADS"] = str(cores)


def failure(spec: TrialSpec, error: Exception) -> Failure:
    """Return why a trial failed; raise `error` again where it ends the whole run.

    Processes that share a trial must all fail or none: any error but a divergence, which all of
    them see, is raised again.
    """
    shared = distributed.world_size() > 1 and backend_of(spec).in_our_loop
    if isinstance(error, _ENDING) or (shared and not isinstance(error, DivergedError)):
        raise error
    if isinstance(error, TgsentError):
        details = error.details if isinstance(error, TrialError) else ""
        return Failure(str(error).removeprefix(f"{spec.title}: "), details)
    return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def write(
    spec: TrialSpec, outcome: TrialResult | Failure, run: PendingRun, model: Path | None
) -> TrialMetrics | Failure:
    """Write the files of a trial in the run folder; `model` is the folder of a saved model."""
    folder, progress = run.folder, run.context.progress
    if isinstance(outcome, TrialResult) and model is not None:
        split = run.splits[spec.trial - 1]
        try:
            model_card.write(model, spec, split, outcome.metrics, run.manifest.data)
        except Exception as error:  # noqa: BLE001  the other trials must go on
            outcome = failure(spec, error)
    if isinstance(outcome, TrialResult):
        folder.write_trial(spec, outcome, model)
        progress.line(f"{spec.title}: macro-F1 {outcome.metrics.macro_f1:.4f}")
        return outcome.metrics
    if outcome.details:
        name = f"{spec.name}/trial-{spec.trial}/error.txt"
        folder.write(name, without_secrets(outcome.details))
    progress.line(f"{spec.title}: failed: {outcome.reason}")
    return outcome


def result(spec: TrialSpec, split: Split, outcome: Outcome) -> TrialResult:
    """Score the predictions of a trial, and add how it came to them."""
    n_train, n_test = len(split.train), len(split.test)
    backend = backend_of(spec)
    settings = backend.settings(spec)
    predictions = outcome.predictions
    scores = metrics.score(predictions[:n_test], spec.labels)
    doubts = [] if outcome.is_constant else metrics.doubts(scores)
    trained = n_train * (settings.epochs if settings else 1)
    prior, example = outcome.label_prior, outcome.example
    measured = {one.name: getattr(outcome, one.name) for one in fields(Measured)}
    measured["warnings"] = (*outcome.warnings, *doubts)
    measured["example"] = tuple(map(without_secrets, example)) if example else None
    found = TrialMetrics(
        **vars(scores),
        **measured,
        model=spec.name,
        weights_sha256=spec.weights or None,
        trial=spec.trial,
        seed=spec.seed,
        all=metrics.score(predictions, spec.labels) if split.extra else None,
        extra_sha256=split.extra_sha256,
        calibration=metrics.calibration(predictions[:n_test], spec.labels),
        label_prior=dict(zip(spec.labels, prior, strict=True)) if prior else None,
        duplicates=split.duplicates,
        dropped=split.dropped,
        overlap=split.overlap,
        n_train=n_train,
        warmup_steps=outcome.warmup_steps if settings else None,
        max_grad_norm=outcome.max_grad_norm if settings else None,
        padding=outcome.padding if settings else None,
        train_examples_per_second=trained / outcome.train_seconds if trained else 0.0,
        eval_examples_per_second=len(split.tested) / outcome.eval_seconds,
        processes=distributed.world_size() if backend.in_our_loop else 1,
        backend=spec.training.backend,
        backend_versions=outcome.versions,
        split_sha256=split.sha256,
        fingerprint=spec.fingerprint,
        signature=signature.of_trial(spec, split, outcome.commit, outcome.precision),
        shots=tuple((shot.text, shot.label) for shot in outcome.shots),
        formulas_escaped=spec.escape_formulas,
    )
    return TrialResult(found, predictions, outcome.log)
