"""The metrics of one trial, as `metrics.json` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tgsent.records import Calibration, LogRow, Prediction, Scores
from tgsent.runs.formats import record

_KEYS = (
    "model", "commit", "weights_sha256", "trial", "seed", "macro_f1", "accuracy", "per_label",
    "confusion", "unparsed", "all", "extra_sha256", "calibration", "label_prior", "warnings",
    "truncated", "truncated_tokens", "duplicates", "dropped", "overlap", "n_train", "n_test",
    "steps", "learning_rate", "warmup_steps", "max_grad_norm", "padding", "train_seconds",
    "train_examples_per_second", "eval_seconds", "eval_examples_per_second", "peak_memory_bytes",
    "parameters", "trainable_parameters", "device", "precision", "processes", "backend",
    "backend_versions", "split_sha256", "fingerprint", "signature", "example", "shots",
    "formulas_escaped",
)  # fmt: skip
"""The keys of `metrics.json`, in their order there."""


@dataclass(frozen=True, kw_only=True)
class TrialMetrics(Scores):
    """Scores on the sample's own test texts, and how the trial came to them.

    Fields with a default are those that run folders of earlier versions lack.
    """

    model: str
    """Its name in the table of results."""
    trial: int
    seed: int
    commit: str | None
    """Of the model on the Hub."""
    weights_sha256: str | None = None
    """Of a local model."""
    split_sha256: str
    extra_sha256: str
    fingerprint: str
    signature: str
    all: Scores | None = None
    """Scores on all test texts, where there are extra ones."""
    calibration: Calibration | None = None
    label_prior: Mapping[str, float] | None = None
    """Prior that the label probabilities were divided by."""
    warnings: tuple[str, ...]
    truncated: int
    truncated_tokens: int
    duplicates: int
    dropped: int
    overlap: int
    n_train: int
    steps: int
    learning_rate: float
    warmup_steps: int | None = None
    max_grad_norm: float | None = None
    padding: str | None = None
    """None for baselines, as are the two settings above."""
    train_seconds: float
    train_examples_per_second: float
    eval_seconds: float
    eval_examples_per_second: float
    peak_memory_bytes: int
    parameters: int
    trainable_parameters: int
    device: str
    precision: str
    processes: int = 1
    backend: str
    backend_versions: Mapping[str, str]
    example: tuple[str, str] | None
    """Prompt and completion of a training text, as the model saw them."""
    shots: tuple[tuple[str, str], ...]
    """Text and label of the worked examples in every prompt."""
    formulas_escaped: bool
    """Whether `predictions.csv` is escaped for spreadsheets."""

    @property
    def compared(self) -> Scores:
        """The scores by which models are compared: those on all test texts."""
        return self.all or self

    def to_json(self) -> dict[str, Any]:
        """Return what `metrics.json` holds; keys of what this trial does not have are left out."""
        values = asdict(self)
        absent = {key for key in ("all", "calibration") if values[key] is None}
        if self.padding is None:
            absent |= {"warmup_steps", "max_grad_norm", "padding"}
        return {key: values[key] for key in _KEYS if key not in absent}

    @classmethod
    def from_json(cls, values: object) -> TrialMetrics:
        """Build the record from what `metrics.json` holds; raise ValueError where it is not one."""
        return record(cls, values)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Everything that a finished trial returns."""

    metrics: TrialMetrics
    predictions: tuple[Prediction, ...]
    log: tuple[LogRow, ...]
