"""The frozen records that travel between the modules, and the protocols of splits and progress."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

LogRow = Mapping[str, float]
"""A row of `log.jsonl`: step, epoch, loss and learning rate."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text; `label` is a label word."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """A split without its texts."""

    trial: int
    seed: int
    sha256: str
    n_train: int
    n_test: int
    overlap: int
    extra_sha256: str


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test examples of one trial; the same object serves every model."""

    trial: int
    seed: int
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    sha256: str
    """Hash of every text and label, in order, and of the part they are in."""
    overlap: int
    """Number of test texts that are also in the training part."""
    duplicates: int = 0
    """Rows of the data that repeat the text of an earlier one; `dropped` of them were dropped."""
    dropped: int = 0
    extra: tuple[Example, ...] = ()
    """Test texts from outside the sample, the same for all trials; in no training part."""
    extra_sha256: str = ""
    origin: str = ""
    """What the split was made of, for signatures."""

    @property
    def tested(self) -> tuple[Example, ...]:
        """All test texts, the extra ones last."""
        return (*self.test, *self.extra)

    @property
    def summary(self) -> SplitSummary:
        """The split without its texts."""
        return SplitSummary(
            self.trial, self.seed, self.sha256, len(self.train), len(self.test), self.overlap,
            self.extra_sha256,
        )  # fmt: skip


class Splits(Protocol):
    """The splits of all trials; the texts of each are made when asked for."""

    summaries: tuple[SplitSummary, ...]

    def __getitem__(self, index: int, /) -> Split:
        """Return the split of trial `index + 1`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in tokens; `target` ends with the EOS token."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model to one test text."""

    text: str
    label: str
    predicted: str | None
    """The label word, or None where `generated` is no label."""
    generated: str
    """The raw text that the model wrote."""
    probabilities: tuple[float, ...] | None = None
    """One number per label word, in the order of the data's labels, where decoding gives them."""


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Scores on the texts of one label; `support` is their number."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """Scores of the answers to some test texts."""

    n_test: int
    macro_f1: float
    accuracy: float
    per_label: Mapping[str, LabelScores]
    confusion: Mapping[str, Mapping[str, int]]
    """Number of texts by label and answer; an answer that is no label is `""`."""
    unparsed: int
    """Number of answers that are no label."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Mean confidence and accuracy of the `n` answers whose confidence is in one interval."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far label probabilities agree with accuracy."""

    ece: float
    """Expected calibration error."""
    auc: float | None
    """Area under the ROC curve of the second of two labels; None where it is not defined."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of a trial that a backend returns and `metrics.json` records."""

    steps: int
    learning_rate: float
    train_seconds: float
    eval_seconds: float
    truncated: int
    """Number of truncated texts, training and test."""
    truncated_tokens: int
    """How many tokens they lost."""
    peak_memory_bytes: int
    parameters: int
    trainable_parameters: int
    device: str
    precision: str
    commit: str | None = None
    """The model's commit on the Hub; None where training started from something else."""
    example: tuple[str, str] | None = None
    """Prompt and completion of a training text, as the model saw them."""
    warnings: tuple[str, ...] = ()
    """Of a backend: about texts that the model cannot read."""


@dataclass(frozen=True, kw_only=True)
class Outcome(Measured):
    """What a backend returns for one trial."""

    predictions: tuple[Prediction, ...]
    log: tuple[LogRow, ...]
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    """Gradients were clipped to it."""
    padding: str = "longest"
    """Length of a batch: that of its longest text, or `max_tokens`."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that did it, where they are not those of the run's manifest."""
    shots: tuple[Example, ...] = ()
    """The worked examples that every prompt began with."""
    label_prior: tuple[float, ...] | None = None
    """Prior that label probabilities were divided by, in the order of the labels."""
    is_constant: bool = False
    """Whether it is by design that every text gets the same label."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial failed."""

    reason: str
    details: str = ""
    """For the file beside its results; empty where the reason says all."""


class Progress(Protocol):
    """Where long work reports its progress."""

    def task(self, name: str, total: int) -> AbstractContextManager[Task]:
        """Show one piece of work of `total` examples while the context is open."""

    def line(self, text: str) -> None:
        """Report a milestone; shown where there are no bars."""


class Task(Protocol):
    """One piece of work on display."""

    def advance(self, examples: int, note: str = "") -> None:
        """Count `examples` more as done; `note` is shown beside the bar."""
