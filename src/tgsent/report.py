"""Results for people: the table, and the flat CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.markup import escape
from rich.table import Table

ARTICLE_MACRO_F1 = {"gpt2": 0.817, "gpt-neo": 0.807, "t5": 0.807}
"""Mean macro-F1 over three trials in the reference experiment, by alias."""

_CSV_COLUMNS = (
    "model", "trial", "seed", "macro_f1", "accuracy", "unparsed", "n_train", "n_test",
    "train_seconds", "train_examples_per_second", "eval_seconds", "eval_examples_per_second",
    "peak_memory_bytes", "parameters", "split_sha256", "signature",
)  # fmt: skip


def results_csv(results: dict[str, Any]) -> str:
    """Write one row per finished trial."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for model in results["models"]:
        writer.writerows(model["trials"])
    return file.getvalue()


def results_table(results: dict[str, Any]) -> Table:
    """Make the table: a row per model, a column per trial, mean and standard deviation."""
    splits = results["manifest"]["splits"]
    published = results.get("article", {}).get("mean_macro_f1", {})
    hashes = " ".join(f"{split['trial']}:{split['sha256'][:12]}" for split in splits)
    n_test = splits[0]["n_test"]
    table = Table(
        title=f"{escape(results['name'])}: macro-F1",
        caption=f"{n_test} test texts a trial, the same for all models\nsplits {hashes}",
        caption_justify="left",
    )
    table.add_column("model")
    for split in splits:
        table.add_column(f"trial {split['trial']}", justify="right")
    columns = ["mean", "std", "unparsed", "training"] + (["article"] if published else [])
    for column in columns:
        table.add_column(column, justify="right")
    for model in results["models"]:
        scores = {trial["trial"]: trial["macro_f1"] for trial in model["trials"]}
        failed = {failure["trial"] for failure in model["failed"]}
        summary, trials = model["macro_f1"], model["trials"]
        n_test = sum(trial["n_test"] for trial in trials)
        cells = [
            escape(model["model"]),
            *(
                "failed" if split["trial"] in failed else _number(scores.get(split["trial"]))
                for split in splits
            ),
            _number(summary["mean"]),
            _number(summary["std"]),
            f"{sum(trial['unparsed'] for trial in trials) / n_test:.1%}" if n_test else "-",
            f"{sum(trial['train_seconds'] for trial in trials):.0f} s" if trials else "-",
        ]
        if published:
            cells.append(_number(published.get(model["model"]), digits=3))
        table.add_row(*cells)
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
