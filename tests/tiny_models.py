"""Tiny models with random weights, made on the spot, and the specs and texts that go with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import EvaluationConfig, PromptConfig, TrainingConfig, TrialSpec
from tgsent.experiment import trial
from tgsent.modeling import loading
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Encoded, Example, Progress, Split
from tgsent.runs.metrics import TrialResult

FAMILIES = ("gpt2", "gpt-neo", "t5")
LABELS = ("negative", "positive")

_SUBJECTS = ("the train", "my phone", "this song", "breakfast", "the new update", "our team")
_OPINIONS = {
    "positive": ("is great", "made me smile today", "was good, so good", "I love it"),
    "negative": ("is awful", "broke again and I hate it", "was bad, really bad", "makes me sad"),
}


def examples(count: int, labels: tuple[str, str] = LABELS) -> list[Example]:
    """Make up short texts of several lengths, the two labels by turns, no text twice."""
    made = []
    for i in range(count):
        kind = ("negative", "positive")[i % 2]
        subject = _SUBJECTS[i // 2 % len(_SUBJECTS)]
        opinion = _OPINIONS[kind][i // 3 % len(_OPINIONS[kind])]
        made.append(Example(f"{subject} {opinion} {'really ' * (i % 7)}no. {i}", labels[i % 2]))
    return made


def check(spec: TrialSpec) -> tuple[str, ...]:
    """Check a trial as a run does before it."""
    backend = backend_of(spec)
    backend.check_installed(spec)
    return backend.check(spec)


def tiny_spec(
    model: str = "gpt2",
    *,
    labels: tuple[str, ...] = LABELS,
    seed: int = 1,
    prompt: PromptConfig | None = None,
    training: Mapping[str, Any] | None = None,
    decoding: str = "free",
    eval_batch_size: int = 64,
) -> TrialSpec:
    """Describe a trial that takes a second or so: a tiny model, fp32, on the CPU."""
    small = {
        "init": "tiny",
        "max_tokens": 64,
        "epochs": 1,
        "batch_size": 8,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrialSpec(
        model=model,
        name=model.rstrip("/").rsplit("/", 1)[-1],
        trial=1,
        seed=seed,
        labels=labels,
        prompt=prompt or PromptConfig(),
        training=TrainingConfig.model_validate({**small, **(training or {})}),
        evaluation=EvaluationConfig(decoding=decoding, batch_size=eval_batch_size),
    )


def tiny_model(spec: TrialSpec, train: list[Example] | None = None) -> LoadedModel:
    """Build the tiny model of a spec, without dropout and in evaluation mode.

    Its weights are drawn so wide that what it answers depends on all of the text.
    """
    torch.manual_seed(spec.seed)
    loaded = loading.load(spec, examples(24) if train is None else train)
    generator = torch.Generator().manual_seed(spec.seed)
    for parameter in loaded.model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    set_dropout(loaded.model, 0.0)
    loaded.model.eval()
    return loaded


def set_dropout(model: torch.nn.Module, share: float) -> None:
    """Set every dropout of a model (T5's attention keeps one that is no module)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = share


def encode(loaded: LoadedModel, spec: TrialSpec, train: list[Example]) -> list[Encoded]:
    """Encode examples with the model's own prompt builder."""
    return loading.prompt_encoder(loaded, spec).encode_examples(train)


def run_trial(
    spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders | None = None
) -> TrialResult:
    """Run one trial, without an engine."""
    done = backend_of(spec).run(spec, split, progress, folders or TrialFolders())
    return trial.result(spec, split, done)


class Silent:
    """A progress display that shows nothing and remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Silent]:
        yield self

    def line(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, examples: int, note: str = "") -> None:
        """Show nothing."""
