"""Results for people: the table, and the flat CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tgsent.evaluation.metrics import Summary
from tgsent.files import json_line
from tgsent.report.results import ModelResults, Results
from tgsent.runs.formats import escape_formula
from tgsent.runs.manifest import SweepReport
from tgsent.terminal import printable

MOST_TRIALS = 10
"""More trials than these have no column of their own."""

_CSV_COLUMNS = (
    "model", "trial", "seed", "macro_f1", "accuracy", "unparsed", "n_train", "n_test",
    "train_seconds", "train_examples_per_second", "eval_seconds", "eval_examples_per_second",
    "peak_memory_bytes", "parameters", "split_sha256", "signature",
)  # fmt: skip


def results_csv(results: Results, *, escape_formulas: bool) -> str:
    """Write one row per finished trial."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for model in results.models:
        for trial in model.trials:
            name = escape_formula(trial.model) if escape_formulas else trial.model
            writer.writerow({**trial.to_json(), "model": name})
    return file.getvalue()


def notes(results: Results) -> list[str]:
    """Say what happened to texts and answers, and what makes scores suspect, in a line each."""
    lines = [
        f"{one.trial} was run again, as its process or machine had died: {one.reason}"
        for one in results.manifest.retried
    ]
    for model in results.models:
        trials = model.trials
        cut = sum(trial.truncated for trial in trials)
        tokens = sum(trial.truncated_tokens for trial in trials)
        unparsed = sum(trial.unparsed for trial in trials)
        counts = []
        if cut:
            counts.append(f"{cut} texts were cut to training.max_tokens ({tokens} tokens lost)")
        if unparsed:
            counts.append(f"{unparsed} answers are no label and count as wrong")
        if counts:
            lines.append(f"{model.model}: {'; '.join(counts)}")
        lines += [
            f"warning: {model.model} trial {trial.trial}: {doubt}"
            for trial in trials
            for doubt in trial.warnings
        ]
    return lines


def sentences(results: Results) -> list[str]:
    """Say which model is best, and of every pair whether that is more than chance."""
    said = [" ".join(results.verdict), *(one.sentence for one in results.comparisons)]
    said += map(sweep_sentence, results.manifest.sweep)
    return [*said, results.signature]


def sweep_sentence(sweep: SweepReport) -> str:
    """Say how the settings of a model were chosen, and what that is worth."""
    settings = ", ".join(f"{key}={value_text(value)}" for key, value in sweep.settings.items())
    about = "about" if len(sweep.n_train) == 1 else "at least about"
    return (
        f"{sweep.model} is the best of {sweep.tried} variants on {sweep.n_validation:,}"
        f" validation texts, which no trial tests: {settings}; it scored {sweep.macro_f1:.3f}"
        f" there, of which {about} {sweep.optimism:.3f} is for being the best of"
        f" {sweep.finalists} there"
    )


def value_text(value: Any) -> str:
    """Write a value of the config as it would stand in YAML."""
    return json_line(value)


def results_table(results: Results) -> Table:
    """Make the table: a row per model, a column per trial, mean and standard deviation."""
    splits = results.manifest.splits
    published = results.published
    few = len(splits) <= MOST_TRIALS
    hashes = " ".join(f"{split.trial}:{split.sha256[:12]}" for split in splits)
    n_test = splits[0].n_test
    everything = next(
        (trial.all.n_test for m in results.models for trial in m.trials if trial.all),
        None,
    )
    caption = f"{n_test} test texts a trial, the same for all models"
    if everything:
        caption += f"; all: with {everything - n_test:,} more from outside the sample"
    table = Table(
        title=f"{escape(printable(results.name))}: macro-F1",
        caption=f"{caption}\nsplits {hashes if few else 'of all trials are in manifest.json'}",
        caption_justify="left",
    )
    table.add_column("model")
    shown = [split.trial for split in splits] if few else []
    columns = [f"trial {trial}" for trial in shown] or ["trials", "lowest", "highest"]
    columns += ["mean", "std", "95 %", *(["all", "all, 95 %"] if everything else [])]
    columns += ["unparsed", "training", *(["article"] if published else [])]
    for column in columns:
        table.add_column(column, justify="right")
    for model in results.models:
        scores = {trial.trial: trial.macro_f1 for trial in model.trials}
        failed = {failure.trial for failure in model.failed}
        summary, trials = model.macro_f1, model.trials
        n_test = sum(trial.n_test for trial in trials)
        cells = [
            escape(printable(model.model)),
            *(
                ["failed" if k in failed else number(scores.get(k)) for k in shown]
                if few
                else _range(list(scores.values()))
            ),
            number(summary.mean),
            number(summary.std),
            interval(summary.bootstrap95),
            *(all_cells(model) if everything else []),
            f"{sum(trial.unparsed for trial in trials) / n_test:.1%}" if n_test else "-",
            f"{sum(trial.train_seconds for trial in trials):.0f} s" if trials else "-",
        ]
        if published:
            cells.append(number(published.get(model.model), digits=3))
        table.add_row(*cells)
    return table


def _range(scores: Sequence[float]) -> list[str]:
    """Stand for the trials where they are too many for a column each."""
    return [f"{len(scores):,}", *ends(scores)]


def ends(scores: Sequence[float]) -> list[str]:
    """Write the lowest and the highest score."""
    return [number(min(scores, default=None)), number(max(scores, default=None))]


def all_cells(model: ModelResults, between: str = "-") -> list[str]:
    """Write the mean over all test texts, where there are extra ones, and its interval."""
    summary = model.macro_f1_all or Summary()
    return [number(summary.mean), interval(summary.bootstrap95, between)]


def interval(given: Sequence[float] | None, between: str = "-") -> str:
    """Write an interval for a table."""
    return f"{given[0]:.3f}{between}{given[1]:.3f}" if given else "-"


def number(value: float | None, digits: int = 4) -> str:
    """Write a score for a table."""
    return "-" if value is None else f"{value:.{digits}f}"
