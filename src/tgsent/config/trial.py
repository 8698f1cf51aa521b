"""The settings of one trial, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import JsonValue

from tgsent.config import earlier
from tgsent.config.aliases import BASELINES
from tgsent.config.sections import (
    EvaluationConfig,
    PromptConfig,
    Section,
    TrainingConfig,
    resolve_calibration,
)


class TrialSpec(Section):
    """The settings of one trial of one model: all that its result depends on, beside the split."""

    model: str
    name: str
    trial: int
    seed: int
    labels: tuple[str, ...]
    prompt: PromptConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    save_model: bool = False
    checkpoint_minutes: float | None = None
    escape_formulas: bool = True
    weights: str = ""
    """Hash of the local model that training starts from; empty for a model of the Hub."""

    @property
    def fingerprint(self) -> str:
        """Hash of all settings that can change the score."""
        canonical = json.dumps(self.settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def settings(self) -> dict[str, JsonValue]:
        """All settings that can change the score, as plain values."""
        free = ("name", "trial", "save_model", "checkpoint_minutes", "escape_formulas")
        settings = self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(free, True),
                "training": {"device", "report_to"},
                "evaluation": {"batch_size"},
            },
        )
        if not self.weights:  # absent without a local model, as in earlier versions
            del settings["weights"]
        settings["evaluation"]["calibration"] = self.calibration
        earlier.leave_out(settings)
        return settings

    def with_weights(self, sha256: str) -> TrialSpec:
        """Return the same trial, starting from weights with this hash."""
        return self.model_copy(update={"weights": sha256})

    @property
    def needs_files(self) -> bool:
        """Whether the model needs files, of the Hub or of a folder."""
        return self.training.init != "tiny" and not self.is_baseline

    @property
    def starts_from_weights(self) -> bool:
        """Whether the model starts from given weights."""
        return self.training.init == "pretrained" and not self.is_baseline

    @property
    def calibration(self) -> Literal["none", "contextual"]:
        """`evaluation.calibration`, resolved for this trial."""
        if self.is_baseline:
            return "none"
        one = self.evaluation
        return resolve_calibration(one.calibration, one.decoding, self.training.epochs)

    @property
    def is_baseline(self) -> bool:
        """Whether the model is a baseline, not a language model."""
        return self.model in BASELINES

    @property
    def title(self) -> str:
        """The trial in words, for messages."""
        return f"{self.name} trial {self.trial}"
