"""Classify new texts with a model that a run kept, as that run classified its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, tee
from pathlib import Path
from statistics import fmean

from tgsent.config import TrialSpec
from tgsent.data.texts import Line
from tgsent.errors import RunFolderError
from tgsent.evaluation.generate import classify
from tgsent.modeling import loading, speedups
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder
from tgsent.records import Example, Prediction, Progress
from tgsent.runs.stored import StoredRun
from tgsent.training import memory
from tgsent.training.recipe import resolve_device

_BATCHES_AT_ONCE = 32
"""Number of batches that are sorted by length together, which bounds the memory."""


@dataclass
class Classifier:
    """A kept model, ready to answer."""

    spec: TrialSpec
    loaded: LoadedModel
    encoder: PromptEncoder
    prior: tuple[float, ...] | None = None
    """Prior that the run divided label probabilities by; None without calibration."""

    def classify(self, texts: Iterable[str], progress: Progress) -> Iterator[Prediction]:
        """Answer each text, in order; the probabilities are those of the label words."""
        remaining, done = iter(texts), 0
        size = _BATCHES_AT_ONCE * self.spec.evaluation.batch_size
        while window := [Example(text, "") for text in islice(remaining, size)]:
            yield from self._answer(window, progress)
            done += len(window)
            progress.line(f"{done:,} texts classified")

    def classify_lines(
        self, lines: Iterable[Line], on_problem: Callable[[Line], None], progress: Progress
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer the text of each line, with its number; call `on_problem` for unreadable lines."""

        def readable() -> Iterator[Line]:
            for line in lines:
                if line.problem:
                    on_problem(line)
                else:
                    yield line

        asked, answered = tee(readable())
        predictions = self.classify((line.text for line in asked), progress)
        for prediction, line in zip(predictions, answered, strict=True):
            yield line.number, prediction

    def _answer(self, window: Sequence[Example], progress: Progress) -> Iterator[Prediction]:
        with memory.allocation_errors("evaluation"):
            answers = classify(self.loaded, self.encoder, window, self.spec, progress, self.prior)
            if self.spec.evaluation.decoding == "score":
                yield from answers
                return
            scored = {"decoding": "score", "calibration": "none"}
            evaluation = self.spec.evaluation.model_copy(update=scored)
            spec = self.spec.model_copy(update={"evaluation": evaluation})
            counts = self.encoder.truncated, self.encoder.truncated_tokens
            likely = classify(self.loaded, self.encoder, window, spec, progress)
            self.encoder.truncated, self.encoder.truncated_tokens = counts  # each text once
        for answer, other in zip(answers, likely, strict=True):
            yield replace(answer, probabilities=other.probabilities)


def load(run: StoredRun, model: str | None, trial: int | None) -> Classifier:
    """Load a model that the run kept: the one asked for, or else the one with the best score.

    Raises RunFolderError, with the way to get one, where it is not there.
    """
    name, number = _choose(run, model, trial)
    if name not in run.specs:
        raise RunFolderError(
            f"{run.paths[0]}: its config no longer names {name}; the same command that trained it"
            " restores it"
        )
    folder = _folder(run, name, number).resolve()
    spec = run.specs[name]
    training = spec.training.model_copy(update={"init": "pretrained"})
    if training.package is not None:  # which truncates in training only
        training = training.model_copy(update={"max_tokens": sys.maxsize})
    spec = spec.model_copy(update={"model": str(folder), "trial": number, "training": training})
    loaded = loading.load(spec, ())
    loaded.model.to(resolve_device("auto"))  # type: ignore[arg-type]  # a device's name
    speedups.apply(loaded.model)
    metrics = run.trials[name][number]
    shots = tuple(Example(text, label) for text, label in metrics.shots)
    prior = metrics.label_prior
    return Classifier(
        spec,
        loaded,
        loading.prompt_encoder(loaded, spec, shots),
        tuple(prior[label] for label in spec.labels) if prior else None,
    )


def _choose(run: StoredRun, model: str | None, trial: int | None) -> tuple[str, int]:
    """Return the model and the trial whose weights are to answer."""
    where, trials = run.paths[0], run.trials
    if model is not None and model not in trials:
        raise RunFolderError(f'--model: {where} has no model "{model}", but {", ".join(trials)}')
    numbers = sorted({number for own in trials.values() for number in own})
    if trial is not None and trial not in numbers:
        there = ", ".join(map(str, numbers))
        raise RunFolderError(f"--trial: {where} has no trial {trial}, but {there}")
    names = list(trials) if model is None else [model]
    kept = [
        (name, number)
        for name in names
        for number in trials[name]
        if trial in (None, number) and _folder(run, name, number).is_dir()
    ]
    if kept:
        return max(kept, key=lambda one: fmean(m.macro_f1 for m in trials[one[0]].values()))
    if all(name in run.specs and run.specs[name].is_baseline for name in names):
        raise RunFolderError(f"{where}: {', '.join(names)}: baselines are never kept")
    what = " ".join([model or "any model", *([f"trial {trial}"] if trial is not None else [])])
    wanted = "first" if trial in (None, 1) else "all"
    command = [part for part in run.manifest.command if part != "--fresh"]
    raise RunFolderError(
        f"{where}: no weights of {what} were kept (output.save_model)\n"
        f"{shlex.join([*command, '--set', f'output.save_model={wanted}'])}\n"
        "this command trains those trials again and keeps their models; other trials stay unchanged"
    )


def _folder(run: StoredRun, name: str, trial: int) -> Path:
    return run.paths[0] / name / f"trial-{trial}" / "model"
