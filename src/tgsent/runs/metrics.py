"""The metrics of one trial, as `metrics.json` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tgsent.records import Calibration, LogRow, Measured, Prediction, Scores


@dataclass(frozen=True, kw_only=True)
class TrialMetrics(Measured, Scores):
    """Scores on the sample's own test texts, and how the trial came to them.

    Fields with a default are those that run folders of earlier versions lack.
    """

    model: str
    """Its name in the table of results."""
    trial: int
    seed: int
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
    duplicates: int
    dropped: int
    overlap: int
    n_train: int
    warmup_steps: int | None = None
    max_grad_norm: float | None = None
    padding: str | None = None
    """None for baselines, as are the two settings above."""
    train_examples_per_second: float
    eval_examples_per_second: float
    processes: int = 1
    backend: str
    backend_versions: Mapping[str, str]
    shots: tuple[tuple[str, str], ...]
    """Text and label of the worked examples in every prompt."""
    formulas_escaped: bool
    """Whether `predictions.csv` is escaped for spreadsheets."""

    @property
    def compared(self) -> Scores:
        """The scores by which models are compared: those on all test texts."""
        return self.all or self

    def to_json(self) -> dict[str, object]:
        """Return what `metrics.json` holds; keys of what this trial does not have are left out."""
        optional = {"all", "calibration"}
        if self.padding is None:
            optional |= {"warmup_steps", "max_grad_norm", "padding"}
        names = {"model": self.model, "trial": self.trial, "seed": self.seed}  # first in the file
        values = names | asdict(self)
        return {k: value for k, value in values.items() if value is not None or k not in optional}


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Everything that a finished trial returns."""

    metrics: TrialMetrics
    predictions: tuple[Prediction, ...]
    log: tuple[LogRow, ...]
