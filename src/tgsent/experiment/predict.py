"""Classify new texts with a model that a run kept, as that run classified its own."""

from __future__ import annotations

import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tgsent.backends.registry import backend_of
from tgsent.config import EvaluationConfig, TrialSpec
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
        remaining = iter(texts)
        size = _BATCHES_AT_ONCE * self.spec.evaluation.batch_size
        done = 0
        while window := [Example(text, "") for text in islice(remaining, size)]:
            yield from self._answer(window, progress)
            done += len(window)
            progress.line(f"{done:,} texts classified")

    def classify_lines(
        self, lines: Iterable[Line], on_problem: Callable[[Line], None], progress: Progress
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer the text of each line, with its number; call `on_problem` for unreadable lines."""
        numbers = deque[int]()

        def readable() -> Iterator[str]:
            for line in lines:
                if line.problem:
                    on_problem(line)
                    continue
                numbers.append(line.number)
                yield line.text

        for prediction in self.classify(readable(), progress):
            yield numbers.popleft(), prediction

    def _answer(self, window: Sequence[Example], progress: Progress) -> Iterator[Prediction]:
        with memory.allocation_errors("evaluation"):
            answers = classify(self.loaded, self.encoder, window, self.spec, progress, self.prior)
            if self.spec.evaluation.decoding == "score":
                yield from answers
                return
            scored = EvaluationConfig(
                decoding="score",
                calibration="none",
                batch_size=self.spec.evaluation.batch_size,
            )
            spec = self.spec.model_copy(update={"evaluation": scored})
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
    if model is not None and model not in run.trials:
        raise RunFolderError(
            f'--model: {run.paths[0]} has no model "{model}", but {", ".join(run.trials)}'
        )
    kept = {
        name: [k for k in own if _folder(run, name, k).is_dir() and trial in (None, k)]
        for name, own in run.trials.items()
        if model in (None, name)
    }
    if not any(kept.values()):
        if all(_is_baseline(run, name) for name in run.trials):
            raise RunFolderError(f"{run.paths[0]}: has only baselines, which are never kept")
        there = sorted({number for own in run.trials.values() for number in own})
        if trial is not None and trial not in there:
            raise RunFolderError(
                f"--trial: {run.paths[0]} has no trial {trial}, but {', '.join(map(str, there))}"
            )
        command = _without_save_model(run.manifest.command)
        named = [model or "", f"trial {trial}" if trial is not None else ""]
        what = f" of {' '.join(filter(None, named))}" if any(named) else ""
        if model is not None and _is_baseline(run, model):
            raise RunFolderError(f"--model: {model} is a baseline, which is never kept")
        wanted = "first" if trial in (None, 1) else "all"
        raise RunFolderError(
            f"{run.paths[0]}: no weights{what} were kept (output.save_model)\n"
            f"{shlex.join([*command, '--set', f'output.save_model={wanted}'])}\n"
            "trains again what it keeps, and leaves the other trials as they are"
        )

    def mean(name: str) -> float:
        own = run.trials[name].values()
        return float(sum(metrics.macro_f1 for metrics in own)) / len(own)

    name = max((name for name, numbers in kept.items() if numbers), key=mean)
    return name, kept[name][0]


def _is_baseline(run: StoredRun, name: str) -> bool:
    spec = run.specs.get(name)
    return spec is not None and backend_of(spec).settings(spec) is None


def _without_save_model(command: Sequence[str]) -> list[str]:
    """Leave out the option that the advice adds, and `--fresh`."""
    kept: list[str] = []
    for part in command:
        if part.startswith("output.save_model=") and kept[-1:] == ["--set"]:
            kept.pop()
        elif part != "--fresh":
            kept.append(part)
    return kept


def _folder(run: StoredRun, name: str, trial: int) -> Path:
    return run.paths[0] / name / f"trial-{trial}" / "model"
