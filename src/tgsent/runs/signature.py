"""The signature: one line that names everything a score depends on, and nothing else.

Two scores are comparable when they differ only in the model and its training config; two runs with
equal signatures are the same experiment, and on one machine give the same numbers. The idea is
sacrebleu's (Post 2018).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from tgsent import __version__
from tgsent.config import TrialSpec
from tgsent.records import Split

_SHOWN = 3
"""Up to this many different values are shown; of more, their hash."""


def of_trial(spec: TrialSpec, split: Split, commit: str | None, precision: str) -> str:
    """Return the signature of a trial; `precision` is the one it was trained in."""
    settings, decoding = spec.settings, spec.evaluation.decoding
    model = f"{spec.model}@{commit[:12]}" if commit else spec.model
    parts = {
        "tgsent": __version__,
        "labels": _hash(list(spec.labels)),
        "split": split.sha256[:12],
        "seed": spec.seed,
        "model": model.replace("|", "_"),
        **({"weights": spec.weights[:12]} if spec.weights else {}),
        "init": spec.training.init,
        "backend": spec.training.backend,
        "recipe": _hash(settings["training"]),
        "precision": precision,
        "prompt": _hash([settings["prompt"]]),
        "decoding": decoding if spec.calibration == "none" else f"{decoding}, {spec.calibration}",
        "metric": "macro_f1",
    }
    if spec.is_baseline:
        parts |= dict.fromkeys(("init", "backend", "recipe", "decoding"), "fitted")
        parts["prompt"] = "none"
    head, *rest = (f"{key}:{value}" for key, value in parts.items())
    return "|".join([head, *([split.origin] if split.origin else []), *rest])


def of_run(trials: Iterable[str]) -> str:
    """Return the signature of a run: what its trials share, and a hash of what differs."""
    values: dict[str, dict[str, None]] = {}  # in the order found, each once
    for signature in trials:
        for part in signature.split("|"):
            key, _, value = part.partition(":")
            values.setdefault(key, {})[value] = None
    return "|".join(
        f"{key}:{'+'.join(found) if len(found) <= _SHOWN else _hash(list(found))}"
        for key, found in values.items()
    )


def _hash(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:12]
