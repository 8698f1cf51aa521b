"""Whether the results in a run folder come from the weights that a run starts from."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tgsent.config import TrialSpec
from tgsent.runs.folder import other_results, read_object


def check_same_weights(folder: Path, specs: Iterable[TrialSpec]) -> None:
    """Raise RunFolderError where a model's results come from other weights than its specs'."""
    for name, weights in {spec.name: spec.weights for spec in specs if spec.weights}.items():
        before = _of_results(folder, name)
        if before and before != weights:
            what = f"results of {name} trained from other weights: their"
            raise other_results(folder, what, before, weights)


def _of_results(folder: Path, name: str) -> str | None:
    """Return the hash recorded with a model's results, or None.

    Results of earlier versions lack it; the manifest of a run that continued them has it.
    """
    finished = sorted(folder.glob(f"{glob.escape(name)}/trial-*/metrics.json"))
    if not finished:
        return None
    models = read_object(folder / "manifest.json").get("models")
    entries = (one for one in models or () if isinstance(one, dict) and one.get("name") == name)
    recorded = (one.get("weights_sha256") for one in chain(map(read_object, finished), entries))
    return next((str(sha256) for sha256 in recorded if sha256), None)
