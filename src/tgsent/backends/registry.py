"""The backends and baselines by name: a new one is a class and a line here.

The config accepts the names of `TrainingConfig.backend` and of `aliases.BASELINES`.
"""

from __future__ import annotations

from importlib import import_module

from tgsent.backends import Backend
from tgsent.config import TrialSpec

# imported when they are needed: torch takes seconds, and a missing model is reported before
BACKENDS = {
    "native": "tgsent.backends.native.Native",
    "simplet5": "tgsent.backends.simplet5.package.SimpleT5",
    "majority": "tgsent.backends.baselines.Majority",
    "tfidf": "tgsent.backends.baselines.TfIdf",
}


def backend_of(spec: TrialSpec) -> Backend:
    """Return the backend that runs this trial."""
    name = spec.model if spec.is_baseline else spec.training.backend
    module, _, class_name = BACKENDS[name].rpartition(".")
    backend: Backend = getattr(import_module(module), class_name)()
    return backend
