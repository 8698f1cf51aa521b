"""The manifest: what was run, on what, where and when."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tgsent import __version__
from tgsent.config import RunConfig
from tgsent.config.aliases import alias_of
from tgsent.data.dataset import Dataset
from tgsent.records import Splits
from tgsent.terminal import without_secrets

_ARTICLE_MACRO_F1 = {"gpt2": 0.817, "gpt-neo": 0.807, "t5": 0.807}
"""Mean macro-F1 over three trials in the reference experiment, by alias."""

_PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface-hub", "accelerate", "scikit-learn",
    "pandas", "numpy",
)  # fmt: skip


def make(
    config: RunConfig,
    dataset: Dataset,
    splits: Splits,
    commits: Mapping[str, str | None],
    weights: Mapping[str, str],
    command: Sequence[str],
) -> dict[str, Any]:
    """Describe what was run, on what, where and when.

    `commits` and `weights` map model names to Hub commits and to hashes of local models.
    """
    from tgsent.training.loop import resolve_device

    return {
        "tgsent": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
        # of a cluster only the trials know theirs
        "device": resolve_device(config.training.device)
        if config.engine.kind == "local"
        else config.engine.kind,
        "command": list(map(without_secrets, command)),
        "git_commit": _git_commit(),
        "models": [
            {
                "name": name,
                "model": model.model,
                "commit": commits.get(name),
                "weights_sha256": weights.get(name),
            }
            for name, model in zip(config.names, config.models, strict=True)
        ],
        "data": {
            "path": config.data.path,
            "source": dataset.source,
            "sha256": dataset.sha256,
            "rows": dataset.rows,
            "duplicates": dataset.duplicates,
            "dropped": dataset.dropped,
            "sampled": len(dataset.frame),
            "labels": list(dataset.labels),
        },
        "splits": [asdict(split) for split in splits.summaries],
        "article": _article(config, dataset),
        "started": now(),
        "finished": None,
    }


def _article(config: RunConfig, dataset: Dataset) -> dict[str, Any] | None:
    """Give the published numbers of the models that are the article's, on the article's data."""
    if not dataset.is_sentiment140:
        return None
    numbers = {}
    for spec in config.trial_specs(dataset.labels)[:: config.trials]:
        alias = alias_of(spec.model)
        if spec.training.init == "pretrained" and alias in _ARTICLE_MACRO_F1:
            numbers[spec.name] = _ARTICLE_MACRO_F1[alias]
    return {"mean_macro_f1": numbers, "sample_size": 10_000, "trials": 3} if numbers else None


def _git_commit() -> str | None:
    """Give the commit of the working folder, where it is in a git repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607  found on PATH, as the user's own git is
            capture_output=True, text=True, check=True, timeout=5,
        ).stdout.strip()  # fmt: skip
    return None


def now() -> str:
    """Give the time, as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
