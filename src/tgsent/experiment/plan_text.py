"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tgsent.experiment.cost import Cost
from tgsent.experiment.plan import ModelPlan, Plan, SweepPlan
from tgsent.files import show_size


def to_text(plan: Plan) -> str:
    """Write a plan for people."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    data = plan.data
    yield plan.config.to_yaml().rstrip()
    yield ""
    yield (
        f"data      {data.source}: {data.rows} rows, {data.duplicates} repeated texts"
        f" ({data.dropped} dropped), {data.sampled} sampled"
    )
    for split in plan.splits:
        yield (
            f"trial {split.trial:<3} train {_counts(split.train)}; test {_counts(split.test)};"
            f" {split.overlap} test texts also in train; sha256 {split.sha256[:12]}"
        )
    if sweep := plan.sweep:
        rounds = ", ".join(
            f"{n} on {texts:,} texts"
            for n, texts in zip(sweep.variants, sweep.n_train, strict=True)
        )
        yield (
            f"sweep     variants of each model first: {rounds}; {sweep.n_validation:,} texts"
            " to compare them on"
        )
    for model in plan.models:
        yield ""
        yield from _model(model)
    if costs := [model.cost for model in plan.models if model.cost]:
        trials = len(plan.splits)
        seconds = trials * sum(cost.seconds for cost in costs)
        line = f"in all about {_time(seconds)} for {trials * len(costs)} trials"
        if plan.sweep:
            before = sum(_sweep_seconds(plan, plan.sweep, cost) for cost in costs)
            line += f", and {_time(before)} for the sweep, with the settings as they are"
        yield ""
        yield line


def _model(model: ModelPlan) -> Iterator[str]:
    yield f"{model.model} ({model.parameters:,} parameters, {model.trainable_parameters:,} trained)"
    yield f"  training prompt  {model.training_prompt!r}"
    yield f"  test prompt      {model.test_prompt!r}"
    if share := model.unknown_share:
        shown = "less than 0.1" if share < 0.001 else f"{100 * share:.1f}"
        yield f"  unknown          {shown} % of the texts' tokens are {model.unknown_token}"
    yield from (f"  note             {note}" for note in model.notes)
    yield from (f"  warning          {warning}" for warning in model.warnings)
    yield (
        f"  per trial        {model.optimizer_steps} optimizer steps at {model.learning_rate:g},"
        f" {model.training_tokens:,} tokens, {model.truncated} texts truncated"
    )
    norm = model.max_grad_norm
    clipping = "no clipping" if norm is None else f"gradients clipped to {norm:g}"
    yield (
        f"  recipe           {model.warmup_steps} warm-up steps, {clipping},"
        f" padded to {model.padding}, {model.precision}"
    )
    yield (
        f"  memory           at least {show_size(model.memory_bytes)} for weights,"
        " gradients and optimizer state"
    )
    yield (
        f"  work             about {_si(model.training_flop)}FLOP for training,"
        f" {_si(model.evaluation_flop)}FLOP for evaluation"
    )
    if (cost := model.cost) is None:
        yield "  time             is not measured for the package SimpleT5"
        return
    yield (
        f"  a trial takes    about {_time(cost.seconds)}: {_time(cost.loading_seconds)} for"
        f" loading, {_time(cost.training_seconds)} for training, {_time(cost.evaluation_seconds)}"
        f" for evaluation; and {show_size(cost.peak_memory_bytes)} of memory, both measured in a"
        " few steps"
    )


def _sweep_seconds(plan: Plan, sweep: SweepPlan, cost: Cost) -> float:
    """Estimate the time of a model's variants, if each takes as long as the model itself."""
    split = plan.splits[0]
    training = cost.training_seconds / sum(split.train.values())
    answering = cost.evaluation_seconds / sum(split.test.values())
    each = cost.loading_seconds + answering * sweep.n_validation
    rounds = zip(sweep.variants, sweep.n_train, strict=True)
    return sum(n * (each + training * texts) for n, texts in rounds)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _counts(counts: Mapping[str, int]) -> str:
    return f"{sum(counts.values())} ({', '.join(f'{n} {label}' for label, n in counts.items())})"


def _si(number: float) -> str:
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.1f} {prefix}"
    return f"{number:.0f} "
