"""One trial: what its metrics are, why it failed, and what it leaves in the run folder."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from tgsent.backends import TrialFolders
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
from tgsent.experiment.engine import EngineContext
from tgsent.records import Failure, Outcome, Progress, Split
from tgsent.report import model_card
from tgsent.runs import signature
from tgsent.runs.manifest import DataSummary
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.terminal import without_secrets
from tgsent.training import distributed

NO_FOLDERS = TrialFolders()

_ENDING = (UnavailableError, StorageError, StoppedError, ProcessLostError)
"""Errors that end the whole run, as the other trials would meet them too."""


def run_trial(
    spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders = NO_FOLDERS
) -> TrialResult:
    """Run one trial; the result depends on `spec` and `split` alone."""
    return _scored(spec, split, backend_of(spec).run(spec, split, progress, folders))


def result(
    spec: TrialSpec, split: Split, outcome: Outcome, folders: TrialFolders, data: DataSummary
) -> TrialResult:
    """Score what a backend predicted, and write the card of a saved model, which names the data."""
    scored = _scored(spec, split, outcome)
    if folders.model is not None:
        model_card.write(folders.model, spec, split, scored.metrics, data)
    return scored


def _scored(spec: TrialSpec, split: Split, outcome: Outcome) -> TrialResult:
    return TrialResult(_metrics(spec, split, outcome), outcome.predictions, outcome.log)


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
    spec: TrialSpec, outcome: TrialResult | Failure, context: EngineContext, model: Path | None
) -> TrialMetrics | Failure:
    """Write the files of a trial in the run folder; `model` is the folder of a saved model."""
    folder, progress = context.folder, context.progress
    if isinstance(outcome, TrialResult):
        folder.write_trial(spec, outcome, model)
        progress.line(f"{spec.title}: macro-F1 {outcome.metrics.macro_f1:.4f}")
        return outcome.metrics
    if outcome.details:
        name = f"{spec.name}/trial-{spec.trial}/error.txt"
        folder.write(name, without_secrets(outcome.details))
    progress.line(f"{spec.title}: failed: {outcome.reason}")
    return outcome


def _metrics(spec: TrialSpec, split: Split, outcome: Outcome) -> TrialMetrics:
    """Score the predictions, and add how the trial came to them."""
    n_train, n_test = len(split.train), len(split.test)
    backend = backend_of(spec)
    settings = backend.settings(spec)
    passes = settings.epochs if settings else 1
    scores = metrics.score(outcome.predictions[:n_test], spec.labels)
    doubts = [] if outcome.is_constant else metrics.doubts(scores)
    return TrialMetrics(
        **vars(scores),
        model=spec.name,
        commit=outcome.commit,
        weights_sha256=spec.weights or None,
        trial=spec.trial,
        seed=spec.seed,
        all=metrics.score(outcome.predictions, spec.labels) if split.extra else None,
        extra_sha256=split.extra_sha256,
        calibration=metrics.calibration(outcome.predictions[:n_test], spec.labels),
        label_prior=_by_label(spec, outcome.label_prior),
        warnings=(*outcome.warnings, *doubts),
        truncated=outcome.truncated,
        truncated_tokens=outcome.truncated_tokens,
        duplicates=split.duplicates,
        dropped=split.dropped,
        overlap=split.overlap,
        n_train=n_train,
        steps=outcome.steps,
        learning_rate=outcome.learning_rate,
        warmup_steps=outcome.warmup_steps if settings else None,
        max_grad_norm=outcome.max_grad_norm if settings else None,
        padding=outcome.padding if settings else None,
        train_seconds=outcome.train_seconds,
        train_examples_per_second=_rate(n_train * passes, outcome.train_seconds),
        eval_seconds=outcome.eval_seconds,
        eval_examples_per_second=len(split.tested) / outcome.eval_seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        parameters=outcome.parameters,
        trainable_parameters=outcome.trainable_parameters,
        device=outcome.device,
        precision=outcome.precision,
        processes=distributed.world_size() if backend.in_our_loop else 1,
        backend=spec.training.backend,
        backend_versions=outcome.versions,
        split_sha256=split.sha256,
        fingerprint=spec.fingerprint,
        signature=signature.of_trial(spec, split, outcome.commit, outcome.precision),
        example=_without_secrets(outcome.example),
        shots=tuple((shot.text, shot.label) for shot in outcome.shots),
        formulas_escaped=spec.escape_formulas,
    )


def _by_label(spec: TrialSpec, numbers: Sequence[float] | None) -> dict[str, float] | None:
    return dict(zip(spec.labels, numbers, strict=True)) if numbers else None


def _without_secrets(example: tuple[str, str] | None) -> tuple[str, str] | None:
    return (without_secrets(example[0]), without_secrets(example[1])) if example else None


def _rate(examples: int, seconds: float) -> float:
    return examples / seconds if examples else 0.0
