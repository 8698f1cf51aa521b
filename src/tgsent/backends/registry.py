"""The backends and baselines by name: a new one is a class and a line here.

The config accepts the names of `TrainingConfig.backend` and of `aliases.BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable

from tgsent.backends import Backend
from tgsent.backends.baselines import Majority, TfIdf
from tgsent.backends.native import Native
from tgsent.backends.simplet5.package import SimpleT5
from tgsent.config import TrialSpec

BACKENDS: dict[str, Callable[[], Backend]] = {
    "native": Native,
    "simplet5": SimpleT5,
    "majority": Majority,
    "tfidf": TfIdf,
}


def backend_of(spec: TrialSpec) -> Backend:
    """Return the backend that runs this trial."""
    return BACKENDS[spec.model if spec.is_baseline else spec.training.backend]()
