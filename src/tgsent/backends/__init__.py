"""What trains a model and classifies the test texts: one class for each backend and baseline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tgsent.config import TrainingConfig, TrialSpec
from tgsent.records import Outcome, Progress, Split

if TYPE_CHECKING:
    from tgsent.modeling.loading import LoadedModel


@dataclass(frozen=True)
class TrialFolders:
    """Where a trial may write; None: it does not write that."""

    model: Path | None = None
    """The fine-tuned model, with its tokenizer."""
    checkpoints: Path | None = None
    """Checkpoints, from which training continues. The package SimpleT5 writes none."""
    trackers: Path | None = None
    """Files of the trackers that write files."""


class Backend(Protocol):
    """Trains what a `TrialSpec` names and classifies the test texts with it."""

    in_our_loop: bool = False
    """Whether tgsent's own loop trains the model, which several processes can do together."""

    def settings(self, spec: TrialSpec) -> TrainingConfig | None:
        """Return the training settings as this backend applies them; None for a baseline."""
        return spec.training

    def check_installed(self, spec: TrialSpec) -> None:
        """Raise UnavailableError where a program or package that the trial needs is missing."""

    def check(
        self, spec: TrialSpec, *, here: bool = True, loaded: LoadedModel | None = None
    ) -> tuple[str, ...]:
        """Check, before anything is trained, that the model fits its settings; return notes.

        `loaded` is what `loading.describe` returns, where the caller has it. Raises ConfigError
        where the model does not fit, or, if it is to be trained `here`, where this machine has too
        little memory; UnavailableError where its files are missing.
        """
        del spec, here, loaded
        return ()

    def run(
        self, spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders
    ) -> Outcome:
        """Train on the training texts and classify the test texts.

        The result depends on `spec` and `split` alone.
        """
        ...
