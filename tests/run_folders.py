"""Run folders, made by real runs of rows and models that take a second or two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tgsent.config import load
from tgsent.data.dataset import load_dataset, make_splits
from tgsent.experiment import execute

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
    splits = make_splits(dataset, config)
    execute.run(config, dataset, splits)
    return config.folder
