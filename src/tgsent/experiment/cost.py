"""Estimate a trial's time and memory on this machine from a few of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from accelerate.utils import set_seed

from tgsent.config import TrialSpec
from tgsent.evaluation.generate import classify
from tgsent.modeling import loading, speedups
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder, choose_shots
from tgsent.progress import Quiet
from tgsent.records import Example, Split
from tgsent.training import adapters, loop, memory
from tgsent.training.recipe import resolve

_MEASURED = 5
"""Batches that are measured, in training and in evaluation."""


@dataclass(frozen=True)
class Cost:
    """Time and memory of one trial."""

    loading_seconds: float
    training_seconds: float
    evaluation_seconds: float
    peak_memory_bytes: int
    """The highest resident memory of this process, which a run will have as well."""

    @property
    def seconds(self) -> float:
        """Total time."""
        return self.loading_seconds + self.training_seconds + self.evaluation_seconds


def measure(spec: TrialSpec, split: Split) -> Cost:
    """Time a few steps of a trial and extrapolate to all of them.

    The weights are random, as their values do not change the time. A step's time is assumed to be
    linear in its padded tokens, so batches of several lengths are measured. The longest is among
    them; TrialError is raised where the memory does not suffice for it.
    """
    accelerator = loop.make_accelerator(spec.training)
    started = time.perf_counter()
    init = "tiny" if spec.training.init == "tiny" else "random"
    training = spec.training.model_copy(update={"init": init})
    spec = spec.model_copy(update={"training": training})
    set_seed(spec.seed)
    with memory.allocation_errors("loading"):
        loaded = loading.load(spec, split.train)
    speedups.apply(loaded.model)
    shots = choose_shots(split.train, spec)
    encoder = loading.prompt_encoder(loaded, spec, shots)
    examples = encoder.encode_examples([one for one in split.train if one not in shots])
    loading_seconds = time.perf_counter() - started

    parameters = loaded.model.num_parameters()
    recipe = resolve(training, loaded.family, parameters, len(examples))
    recipe = replace(recipe, learning_rate=1e-9, weight_decay=0.0)  # the weights stay as they are
    with memory.allocation_errors("training"):
        merge = adapters.prepare(loaded.model, training)
        state = loop.prepare(loaded, recipe, accelerator)
        state.model.train()

        def step(batch: Sequence[int]) -> float:
            begun = time.perf_counter()
            loop.take_step(state, [examples[i] for i in batch], 1e-9)
            return time.perf_counter() - begun

        batches = loop.epoch_batches(
            [len(example) for example in examples],
            recipe.batch_size,
            spec.seed,
            grouped=recipe.pad_to is None,
        )
        tokens = [_padded([len(examples[i]) for i in batch], recipe.pad_to) for batch in batches]
        training_seconds = recipe.epochs * _extrapolated(tokens, lambda k: step(batches[k]))
        merge()
    evaluation_seconds = _evaluation_seconds(spec, split, loaded, encoder)
    return Cost(
        loading_seconds=loading_seconds,
        training_seconds=training_seconds,
        evaluation_seconds=evaluation_seconds,
        peak_memory_bytes=memory.peak(),
    )


def _evaluation_seconds(
    spec: TrialSpec, split: Split, loaded: LoadedModel, encoder: PromptEncoder
) -> float:
    size = spec.evaluation.batch_size
    texts = sorted(split.tested, key=lambda example: len(example.text), reverse=True)
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]

    def answer(part: Sequence[Example]) -> float:
        begun = time.perf_counter()
        classify(loaded, encoder, part, spec, Quiet())
        return time.perf_counter() - begun

    letters = [_padded([len(example.text) for example in part], None) for part in parts]
    with memory.allocation_errors("evaluation"):
        return _extrapolated(letters, lambda k: answer(parts[k]))


def _padded(lengths: Sequence[int], pad_to: int | None) -> int:
    """Return the number of tokens of a batch with its padding."""
    return len(lengths) * (pad_to or max(lengths))


def _extrapolated(sizes: Sequence[int], timed: Callable[[int], float]) -> float:
    """Time some of the parts, given by index, and estimate the seconds of all."""
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    timed(by_size[-1])  # warm-up
    places = np.linspace(0, len(sizes) - 1, _MEASURED).round().astype(int)
    chosen = [by_size[place] for place in dict.fromkeys(places.tolist())]
    seconds = [timed(part) for part in chosen]
    if len({sizes[part] for part in chosen}) < 2:
        return float(np.mean(seconds)) * len(sizes)
    slope, start = np.polyfit([sizes[part] for part in chosen], seconds, 1)
    if slope < 0:  # noise
        return float(np.mean(seconds)) * len(sizes)
    return float(np.clip(start + slope * np.array(sizes), min(seconds) / 2, None).sum())
