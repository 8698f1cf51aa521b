"""The plots of the report: which values of a run each of them shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tgsent.evaluation.significance import Comparison
from tgsent.report import charts
from tgsent.report.blocks import Figure
from tgsent.report.charts import Curve, Row
from tgsent.report.results import ModelResults
from tgsent.report.tables import MOST_TRIALS, interval, number
from tgsent.runs.stored import StoredRun

Models = Sequence[ModelResults]
"""Those that have trials; the place of a model among them gives its colour."""


def forest(models: Models) -> Figure | None:
    """Plot each trial's score and the mean of each model, with intervals."""
    if not models:
        return None
    rows: list[Row] = []
    for series, model in enumerate(models):
        rows.append(Row(model.model))
        if 1 < len(model.trials) <= MOST_TRIALS:
            rows += [
                Row(f"trial {trial.trial}", trial.macro_f1, ends, series)
                for trial, ends in zip(model.trials, model.trials_bootstrap95, strict=True)
            ]
        summary = model.macro_f1
        rows.append(Row("mean", summary.mean, summary.bootstrap95, series, strong=True))
    means = [
        f"{m.model}: mean {number(m.macro_f1.mean)}, 95 % {interval(m.macro_f1.bootstrap95)}"
        for m in models
    ]
    svg = charts.intervals(
        rows,
        title="Macro-F1 of the trials and their mean",
        description="; ".join(means),
        axis="macro-F1, with 95 % intervals over test texts",
    )
    return Figure(svg)


def differences(models: Models, comparisons: Sequence[Comparison]) -> Figure | None:
    """Plot the differences between models, the better one first."""
    names = {model.model for model in models}
    rows: list[Row] = []
    for one in (one.better_first for one in comparisons if {one.first, one.second} <= names):
        low, high = (100 * end for end in one.interval)
        points = 100 * one.difference
        rows.append(Row(f"{one.first} \N{MINUS SIGN} {one.second}"))
        rows.append(Row(f"{points:+.1f}", points, (low, high), strong=one.is_real))
    if not rows:
        return None
    svg = charts.intervals(
        rows,
        title="Differences in macro-F1 of every two models",
        description="; ".join(one.sentence for one in comparisons),
        axis="points of macro-F1, with 95 % intervals",
        zero=0.0,
    )
    return Figure(svg, caption="Thick: more than chance, by interval and test.")


def losses(models: Models, run: StoredRun) -> Figure | None:
    """Plot the training losses."""
    lines = [
        Curve(series, [(row["step"], row["loss"]) for row in log])
        for series, model in enumerate(models)
        for trial in model.trials[:MOST_TRIALS]
        if (log := run.logs.get((model.model, trial.trial)))
    ]
    ends = "; ".join(
        f"{models[one.series].model}: {one.points[0][1]:.2f} to {one.points[-1][1]:.2f}"
        for one in lines
    )
    svg = charts.curves(
        lines,
        title="Training loss",
        description=f"From the first logged step to the last: {ends}",
        across="step",
        up="loss",
    )
    return Figure(svg, legend=_legend(models, lines)) if lines else None


def reliability(models: Models) -> Figure | None:
    """Plot accuracy over confidence."""
    lines = [
        Curve(series, [(b.confidence, b.accuracy) for b in of.bins], [b.n for b in of.bins])
        for series, model in enumerate(models)
        if (of := model.trials[0].calibration)
    ]
    svg = charts.curves(
        lines,
        title="Accuracy over confidence in the first trial",
        description="The closer to the diagonal, the better probabilities agree with accuracy",
        across="confidence",
        up="accuracy",
        diagonal=True,
    )
    return Figure(svg, legend=_legend(models, lines)) if lines else None


def _legend(models: Models, lines: Iterable[Curve]) -> list[tuple[int, str]]:
    return [(one % 6, models[one].model) for one in dict.fromkeys(line.series for line in lines)]
