"""The table of scores, the sentences under it, and the flat CSV."""

from __future__ import annotations

import csv
import io

import rich.table
from rich.markup import escape

from tgsent.evaluation.metrics import Summary
from tgsent.files import json_line
from tgsent.report.blocks import Table
from tgsent.report.results import ModelResults, Results
from tgsent.runs.formats import escape_formula
from tgsent.runs.manifest import SweepReport
from tgsent.terminal import printable

MOST_TRIALS = 10
"""Up to this many trials have a column each."""

_CSV_COLUMNS = (
    "model", "trial", "seed", "macro_f1", "accuracy", "unparsed", "n_train", "n_test",
    "train_seconds", "train_examples_per_second", "eval_seconds", "eval_examples_per_second",
    "peak_memory_bytes", "parameters", "split_sha256", "signature",
)  # fmt: skip


def results_table(results: Results) -> rich.table.Table:
    """Render the table of scores for a terminal."""
    scores = score_table(results, narrow=True)
    table = rich.table.Table(
        title=f"{escape(printable(results.name))}: macro-F1",
        caption="\n".join(scores.notes),
        caption_justify="left",
    )
    for heading in scores.headings:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in scores.rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table


def score_table(results: Results, *, narrow: bool = False) -> Table:
    """Build the table of scores, with a row per model.

    A narrow one is for terminals: without the interval over trials, and with the time of training,
    which reports have in another table.
    """
    rows = [_score_row(model, results, narrow=narrow) for model in results.models]
    cells = [list(row.values()) for row in rows]
    return Table(list(rows[0]), cells, _notes_on_scores(results, narrow=narrow))


def _score_row(model: ModelResults, results: Results, *, narrow: bool) -> dict[str, str]:
    """Return the cells of a model's row by their headings."""
    splits, article = results.manifest.splits, results.manifest.article
    scores = {trial.trial: trial.macro_f1 for trial in model.trials}
    failed = {one.trial for one in model.failed}
    row = {"model": model.model}
    if len(splits) <= MOST_TRIALS:
        for k in (split.trial for split in splits):
            row[f"trial {k}"] = "failed" if k in failed else number(scores.get(k))
    else:
        row["trials"] = f"{len(scores):,}"
        row["lowest"] = number(min(scores.values(), default=None))
        row["highest"] = number(max(scores.values(), default=None))
    row |= {"mean": number(model.macro_f1.mean), "std": number(model.macro_f1.std)}
    if not narrow:
        row["95 %, trials"] = interval(model.macro_f1.ci95)
    row["95 %" if narrow else "95 %, texts"] = interval(model.macro_f1.bootstrap95)
    if any(one.macro_f1_all for one in results.models):
        everything = model.macro_f1_all or Summary()
        row |= {"all": number(everything.mean), "all, 95 %": interval(everything.bootstrap95)}
    tested = sum(trial.n_test for trial in model.trials)
    unparsed = sum(trial.unparsed for trial in model.trials)
    row["unparsed"] = f"{unparsed / tested:.1%}" if tested else "-"
    if narrow:
        seconds = sum(trial.train_seconds for trial in model.trials)
        row["training"] = f"{seconds:.0f} s" if scores else "-"
    if article:
        mean, theirs = model.macro_f1.mean, article.mean_macro_f1.get(model.model)
        row["article"] = number(theirs, digits=3)
        if not narrow:
            row["difference"] = "-"
            if mean is not None and theirs is not None:
                row["difference"] = f"{100 * (mean - theirs):+.1f}"
    return row


def _notes_on_scores(results: Results, *, narrow: bool) -> list[str]:
    splits = results.manifest.splits
    tested = f"{splits[0].n_test:,} test texts a trial, the same for all models"
    extra = [trial.all.n_test for model in results.models for trial in model.trials if trial.all]
    if extra:
        tested += f"; all: with {extra[0] - splits[0].n_test:,} more from outside the sample"
    if narrow:
        if len(splits) > MOST_TRIALS:
            return [tested, "splits of all trials are in manifest.json"]
        hashes = " ".join(f"{split.trial}:{split.sha256[:12]}" for split in splits)
        return [tested, f"splits {hashes}"]
    if extra:
        tested += "; the tables on labels count the sample's own alone"
    return [
        f"{tested}. Macro-F1; std and the first interval (Student's t) are over trials, the second"
        " (bootstrap) over test texts."
    ]


def interval(ends: tuple[float, float] | None) -> str:
    """Write an interval of a score, within what a score can be."""
    return f"{max(0.0, ends[0]):.3f}-{min(1.0, ends[1]):.3f}" if ends else "-"


def number(value: float | None, digits: int = 4) -> str:
    """Write a score."""
    return "-" if value is None else f"{value:.{digits}f}"


def results_csv(results: Results, *, escape_formulas: bool) -> str:
    """Write one row per finished trial."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for model in results.models:
        for trial in model.trials:
            row = {key: getattr(trial, key) for key in _CSV_COLUMNS}
            if escape_formulas:
                row["model"] = escape_formula(trial.model)
            writer.writerow(row)
    return file.getvalue()


def notes(results: Results) -> list[str]:
    """Return what happened to texts and answers, and what makes scores suspect, in a line each."""
    lines = [
        f"{one.trial} was run again, as its process or machine had died: {one.reason}"
        for one in results.manifest.retried
    ]
    for model in results.models:
        truncated = sum(trial.truncated for trial in model.trials)
        tokens = sum(trial.truncated_tokens for trial in model.trials)
        unparsed = sum(trial.unparsed for trial in model.trials)
        if truncated:
            lines.append(
                f"{model.model}: {truncated} texts were truncated to training.max_tokens"
                f" ({tokens} tokens lost)"
            )
        if unparsed:
            lines.append(f"{model.model}: {unparsed} answers are no label and count as wrong")
        lines += [
            f"warning: {model.model} trial {trial.trial}: {doubt}"
            for trial in model.trials
            for doubt in trial.warnings
        ]
    return lines


def sentences(results: Results) -> list[str]:
    """Return the verdict, the comparisons of all pairs, and the signature."""
    said = [" ".join(results.verdict), *(one.sentence for one in results.comparisons)]
    return [*said, *map(sweep_sentence, results.manifest.sweep), results.signature]


def sweep_sentence(sweep: SweepReport) -> str:
    """Return how the settings of a model were chosen, with the bias of that choice."""
    settings = ", ".join(f"{key}={json_line(value)}" for key, value in sweep.settings.items())
    about = "about" if len(sweep.n_train) == 1 else "at least about"
    return (
        f"{sweep.model} is the best of {sweep.tried} variants on {sweep.n_validation:,} validation"
        f" texts, which no trial tests: {settings}; it scored {sweep.macro_f1:.3f} there, with a"
        f" selection bias of {about} {sweep.optimism:.3f} (best of {sweep.finalists})"
    )
