"""The plots of the report: which values of a run each of them shows."""

from __future__ import annotations

from collections.abc import Sequence

from tgsent.report import charts
from tgsent.report.blocks import Figure
from tgsent.report.charts import Row
from tgsent.report.results import ModelResults, Results
from tgsent.report.tables import MOST_TRIALS, interval, number
from tgsent.runs.stored import StoredRun


def is_majority(model: ModelResults, run: StoredRun) -> bool:
    """Whether this is the `majority` baseline, whose low score would squeeze all other marks."""
    spec = run.specs.get(model.model)
    return spec is not None and spec.model == "majority" and len(run.trials) > 1


def forest(results: Results, run: StoredRun) -> Figure | None:
    """Plot each trial's score and the mean of each model, with intervals."""
    rows: list[Row] = []
    for series, model in enumerate(results.models):
        if not model.trials or is_majority(model, run):
            continue
        rows.append(Row(model.model))
        if 1 < len(model.trials) <= MOST_TRIALS:
            rows += [
                Row(f"trial {trial.trial}", trial.macro_f1, ends, series)
                for trial, ends in zip(model.trials, model.trials_bootstrap95, strict=True)
            ]
        summary = model.macro_f1
        rows.append(Row("mean", summary.mean, summary.bootstrap95, series, strong=True))
    if not rows:
        return None
    means = [
        f"{m.model}: mean {number(m.macro_f1.mean)}, 95 % {interval(m.macro_f1.bootstrap95)}"
        for m in results.models
    ]
    svg = charts.intervals(
        rows,
        title="Macro-F1 of the trials and their mean",
        description="; ".join(means),
        axis="macro-F1, with 95 % intervals over test texts",
    )
    return Figure(svg)


def differences(results: Results, run: StoredRun) -> Figure | None:
    """Plot the differences between models, the better one first."""
    majority = {model.model for model in results.models if is_majority(model, run)}
    rows: list[Row] = []
    for one in (one.better_first for one in results.comparisons):
        if majority & {one.first, one.second}:
            continue
        low, high = (100 * end for end in one.interval)
        points = 100 * one.difference
        rows.append(Row(f"{one.first} \N{MINUS SIGN} {one.second}"))
        rows.append(Row(f"{points:+.1f}", points, (low, high), strong=one.is_real))
    if not rows:
        return None
    svg = charts.intervals(
        rows,
        title="Differences in macro-F1 of every two models",
        description="; ".join(one.sentence for one in results.comparisons),
        axis="points of macro-F1, with 95 % intervals",
        zero=0.0,
    )
    return Figure(svg, caption="Thick: more than chance, by interval and test.")


def curves(results: Results, run: StoredRun) -> Figure | None:
    """Plot the training losses."""
    lines = [
        (series, [(row["step"], row["loss"]) for row in log])
        for series, model in enumerate(results.models)
        for trial in model.trials[:MOST_TRIALS]
        if (log := run.logs.get((model.model, trial.trial)))
    ]
    if not lines:
        return None
    names = [model.model for model in results.models]
    ends = "; ".join(
        f"{names[series]}: {points[0][1]:.2f} to {points[-1][1]:.2f}" for series, points in lines
    )
    svg = charts.curves(
        lines,
        title="Training loss",
        description=f"From the first logged step to the last: {ends}",
        across="step",
        up="loss",
    )
    return Figure(svg, legend=_legend(results, [series for series, _ in lines]))


def reliability(results: Results, run: StoredRun) -> Figure | None:
    """Plot accuracy over confidence."""
    models = [
        (series, [(one.confidence, one.accuracy, one.n) for one in calibration.bins])
        for series, model in enumerate(results.models)
        if model.trials and not is_majority(model, run)
        if (calibration := model.trials[0].calibration)
    ]
    if not models:
        return None
    svg = charts.reliability(
        models,
        title="Accuracy over confidence in the first trial",
        description="The closer to the diagonal, the better probabilities agree with accuracy",
    )
    return Figure(svg, legend=_legend(results, [series for series, _ in models]))


def _legend(results: Results, series: Sequence[int]) -> list[tuple[int, str]]:
    return [(one % 6, results.models[one].model) for one in dict.fromkeys(series)]
