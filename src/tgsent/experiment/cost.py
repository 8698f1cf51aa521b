"""Estimate a trial's time and memory on this machine from a few of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from timeit import timeit

import numpy as np

from tgsent.config import TrialSpec
from tgsent.evaluation.generate import classify
from tgsent.modeling import loading, speedups
from tgsent.modeling.prompts import choose_shots, without_shots
from tgsent.progress import Quiet
from tgsent.records import Split
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
    with memory.allocation_errors("loading"):
        loaded = loading.load(spec, split.train)
    speedups.apply(loaded.model)
    shots = choose_shots(split.train, spec)
    encoder = loading.prompt_encoder(loaded, spec, shots)
    examples = encoder.encode_examples(without_shots(split.train, shots))
    loading_seconds = time.perf_counter() - started

    recipe = resolve(training, loaded.family, loaded.model.num_parameters(), len(examples))
    lengths = [len(example) for example in examples]
    batches = loop.epoch_batches(
        lengths, recipe.batch_size, spec.seed, grouped=recipe.pad_to is None
    )
    tokens = [len(batch) * (recipe.pad_to or max(lengths[i] for i in batch)) for batch in batches]
    with memory.allocation_errors("training"):
        merge = adapters.prepare(loaded.model, training)
        state = loop.prepare(loaded, recipe, accelerator)
        state.model.train()

        def step(number: int) -> None:
            batch = [examples[i] for i in batches[number]]
            loop.take_step(state, batch, 1e-9)  # the weights stay as they are

        training_seconds = recipe.epochs * _extrapolated(tokens, step)
        merge()

    size = spec.evaluation.batch_size
    texts = sorted(split.tested, key=lambda example: len(example.text), reverse=True)
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    letters = [len(part) * len(part[0].text) for part in parts]  # padded to the longest
    with memory.allocation_errors("evaluation"):
        evaluation_seconds = _extrapolated(
            letters, lambda number: classify(loaded, encoder, parts[number], spec, Quiet())
        )
    return Cost(loading_seconds, training_seconds, evaluation_seconds, memory.peak())


def _extrapolated(sizes: Sequence[int], work: Callable[[int], object]) -> float:
    """Time the work on some of the parts, given by index, and estimate the seconds of all."""
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    work(by_size[-1])  # warm-up
    places = np.linspace(0, len(sizes) - 1, _MEASURED).round().astype(int)
    chosen = [by_size[place] for place in dict.fromkeys(places.tolist())]
    seconds = [timeit(partial(work, part), number=1) for part in chosen]
    measured = [sizes[part] for part in chosen]
    slope, start = np.polyfit(measured, seconds, 1) if len(set(measured)) > 1 else (0.0, 0.0)
    if slope <= 0:  # one size, or noise
        return float(np.mean(seconds)) * len(sizes)
    return float(np.clip(start + slope * np.array(sizes), min(seconds) / 2, None).sum())
