"""Run folders, made by real runs of rows and models that take a second or two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tgsent.config import load
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.experiment import execute
from tgsent.records import LabelScores, SplitSummary
from tgsent.runs.manifest import DataSummary, Manifest
from tgsent.runs.metrics import TrialMetrics

# what pages must not obey: each text holds one, and so does a label
HOSTILE = (
    "<script>alert(1)</script>", "</table></body>", "<img src=x onerror=alert(1)>", "&amp; &lt;",
    "| a | b |", "**bold** `code` [link](http://x)", "\x1b[31mred", "{{ 7 * 7 }}", "]]> <!-- -->",
)  # fmt: skip
LABELS = ("good <b>", "bad | `x`")


def write_texts(path: Path, count: int = 120) -> None:
    """Made-up texts of two labels, hostile ones among them; one text in six has a wrong label."""
    rows = []
    for i in range(count):
        word = "fine" if (i % 2) == (i % 6 != 5) else "poor"
        text = f"a {word} day {i} {HOSTILE[i % len(HOSTILE)]}".replace('"', '""')
        rows.append(f'"{text}","{LABELS[i % 2]}"')
    path.write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")


def make(
    folder: Path,
    *,
    models: Sequence[str] = ("majority", "tfidf"),
    overrides: Iterable[str] = (),
    trials: int = 2,
    texts: Path | None = None,
) -> Path:
    """Run in `folder`, on made-up texts or those of a file; give the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if texts is None:
        texts = folder / "texts.csv"
        write_texts(texts)
    config = load(
        "default",
        models=models,
        trials=trials,
        output_dir=str(folder / "runs"),
        overrides=[
            f"data.path={texts}", "data.sample_size=null",
            "data.test_fraction=0.25", "training.init=tiny", "training.epochs=1",
            "training.device=cpu", "training.precision=fp32", *overrides,
        ],
    )  # fmt: skip
    dataset = load_dataset(config.data)
    execute.run(config, dataset, TrialSplits(dataset, config))
    return config.folder


def metrics_of(**changes: Any) -> TrialMetrics:
    """The metrics of a made-up trial."""
    plain = TrialMetrics(
        model="gpt2", trial=1, seed=1, commit=None,
        n_test=10, macro_f1=0.5, accuracy=0.5, per_label={"x": LabelScores(1.0, 1.0, 1.0, 10)},
        confusion={"x": {"x": 10}}, unparsed=0, split_sha256="1" * 64, extra_sha256="",
        fingerprint="", signature="tgsent:0|a,b", warnings=(), truncated=0, truncated_tokens=0,
        duplicates=0, dropped=0, overlap=0, n_train=190, steps=1, learning_rate=1e-3,
        train_seconds=12.4, train_examples_per_second=1.0, eval_seconds=1.0,
        eval_examples_per_second=1.0, peak_memory_bytes=1, parameters=1, trainable_parameters=1,
        device="cpu", precision="fp32", processes=1, backend="native", backend_versions={},
        example=None, shots=(), formulas_escaped=True,
    )  # fmt: skip
    return replace(plain, **changes)


def manifest_of(labels: Sequence[str] = ("x", "y"), trials: int = 2, **changes: Any) -> Manifest:
    """The manifest of a made-up run."""
    plain = Manifest(
        tgsent="0", versions={}, platform="", device="cpu", command=("tgsent",), git_commit=None,
        models=(), data=DataSummary("", "", "", 200, 0, 0, 200, tuple(labels)),
        splits=tuple(
            SplitSummary(k, k, f"{k}" * 64, n_train=190, n_test=10, overlap=0, extra_sha256="")
            for k in range(1, trials + 1)
        ),
        article=None, started="", finished=None,
    )  # fmt: skip
    return replace(plain, **changes)
