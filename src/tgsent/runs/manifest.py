"""The manifest: what was run, on what, where and when."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tgsent import __version__
from tgsent.config import RunConfig
from tgsent.config.aliases import alias_of
from tgsent.records import Splits, SplitSummary
from tgsent.runs.formats import read_record
from tgsent.terminal import without_secrets

if TYPE_CHECKING:
    from tgsent.data.dataset import Dataset

_ARTICLE_MACRO_F1 = {"gpt2": 0.817, "gpt-neo": 0.807, "t5": 0.807}
"""Mean macro-F1 over three trials in the reference experiment, by alias."""

_PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface-hub", "accelerate", "scikit-learn",
    "pandas", "numpy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model behind a row of the table."""

    name: str
    model: str
    commit: str | None
    """Of the model on the Hub."""
    weights_sha256: str | None = None
    """Of a local model; earlier versions did not record it."""


@dataclass(frozen=True, slots=True)
class DataSummary:
    """The labelled texts, without the texts."""

    path: str
    source: str
    sha256: str
    rows: int
    duplicates: int
    dropped: int
    sampled: int
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Article:
    """Published results for models and data of this run."""

    mean_macro_f1: Mapping[str, float]
    """By name of the model."""
    sample_size: int
    trials: int


@dataclass(frozen=True, slots=True)
class VariantSummary:
    """One variant of a sweep."""

    name: str
    settings: Mapping[str, object]
    """What it changes in the config, by dotted key."""
    macro_f1: tuple[float | None, ...]
    """Of each round that it was in; None where its training failed."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """How the settings of a model were chosen."""

    model: str
    method: str
    trials: int
    """Trials whose test texts no variant saw."""
    tried: int
    winner: str
    settings: Mapping[str, object]
    macro_f1: float
    optimism: float
    """Selection bias of `macro_f1`, estimated by the bootstrap."""
    finalists: int
    n_validation: int
    n_train: tuple[int, ...]
    """Training texts in each round."""
    split_sha256: str
    variants: tuple[VariantSummary, ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """A trial, `MODEL:TRIAL`, that was run again, and why."""

    trial: str
    reason: str


@dataclass(frozen=True, slots=True)
class CombinedRun:
    """One of several runs in one table."""

    path: str
    command: tuple[str, ...]
    git_commit: str | None
    started: str
    finished: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was run, on what, where and when: the content of `manifest.json`."""

    tgsent: str
    versions: Mapping[str, str]
    platform: str
    device: str
    command: tuple[str, ...]
    git_commit: str | None
    models: tuple[ModelSource, ...]
    data: DataSummary
    splits: tuple[SplitSummary, ...]
    article: Article | None
    started: str
    finished: str | None
    sweep: tuple[SweepReport, ...] = ()
    retried: tuple[Retry, ...] = ()
    combined: tuple[CombinedRun, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what `manifest.json` holds; the last three fields are left out where empty."""
        optional = ("sweep", "retried", "combined")
        return {k: value for k, value in asdict(self).items() if value or k not in optional}


def read(folder: Path) -> Manifest | None:
    """Read the manifest of a run folder, as `read_record` does."""
    return read_record(Manifest, folder / "manifest.json")


def make(
    config: RunConfig,
    dataset: Dataset,
    splits: Splits,
    commits: Mapping[str, str | None],
    weights: Mapping[str, str | None],
    command: Sequence[str],
    sweep: Sequence[SweepReport] = (),
) -> Manifest:
    """Describe what is run, on what, where and when.

    `commits` and `weights` map model names to Hub commits and to hashes of local models.
    """
    from tgsent.training.recipe import resolve_device

    is_local = config.engine.kind == "local"  # on a cluster only the trials know their device
    return Manifest(
        tgsent=__version__,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        platform=platform.platform(),
        device=resolve_device(config.training.device) if is_local else config.engine.kind,
        command=tuple(map(without_secrets, command)),
        git_commit=_git_commit(),
        models=tuple(
            ModelSource(name, model.model, commits.get(name), weights.get(name))
            for name, model in zip(config.names, config.models, strict=True)
        ),
        data=DataSummary(
            path=config.data.path,
            source=dataset.source,
            sha256=dataset.sha256,
            rows=dataset.rows,
            duplicates=dataset.duplicates,
            dropped=dataset.dropped,
            sampled=len(dataset.texts),
            labels=tuple(dataset.labels),
        ),
        splits=tuple(splits.summaries),
        article=_article(config, dataset),
        started=now(),
        finished=None,
        sweep=tuple(sweep),
    )


def _article(config: RunConfig, dataset: Dataset) -> Article | None:
    """Return the published numbers of the article's models, where the data are the article's."""
    if not dataset.is_sentiment140:
        return None
    numbers = {
        spec.name: _ARTICLE_MACRO_F1[alias]
        for spec in config.trial_specs(dataset.labels)
        if spec.training.init == "pretrained"
        if (alias := alias_of(spec.model)) in _ARTICLE_MACRO_F1
    }
    return Article(numbers, sample_size=10_000, trials=3) if numbers else None


def _git_commit() -> str | None:
    """Return the commit of the working folder, where it is in a git repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(  # noqa: S603
            command, text=True, stderr=subprocess.DEVNULL, timeout=5
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """Return the time, as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
