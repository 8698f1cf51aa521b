"""The report of a run as pages: `report.html` to look at, `report.md` for a pull request."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from tgsent.files import json_line, show_size
from tgsent.records import Prediction
from tgsent.report import charts, tables
from tgsent.report.charts import Row
from tgsent.report.markup import code, markdown
from tgsent.report.results import ModelResults, Results
from tgsent.report.tables import MOST_TRIALS, all_cells, interval, number
from tgsent.runs.manifest import Manifest, SweepReport
from tgsent.runs.stored import StoredRun
from tgsent.terminal import printable, without_secrets

_MISTAKES = 10
_BETWEEN = " to "
_LONGEST = 300
_RESOLVED = ("learning_rate", "warmup_steps", "max_grad_norm", "padding", "precision")
"""Settings that may be `auto`, shown with their resolved values."""
_MOST_LABELS = 12
"""A confusion matrix of more than these is a list of the commonest confusions instead."""

Model = ModelResults


@dataclass(frozen=True)
class Section:
    """What one table of the report holds."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)


def html(results: Results, run: StoredRun) -> str:
    """Write the report as one file that needs no other, no network and no script."""
    environment = _environment()
    plots = {
        "forest": _forest(results, run),
        "differences": _differences(results, run),
        "curves": _curves(results, run),
        "reliability": _reliability(results, run),
    }
    template = environment.get_template("report.html")
    return without_secrets(template.render(**_content(results, run), plots=plots)) + "\n"


def markdown_page(results: Results, run: StoredRun) -> str:
    """Write the same as Markdown, without the plots."""
    template = _environment().get_template("report.md")
    return without_secrets(template.render(**_content(results, run))) + "\n"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tgsent.report"),
        autoescape=jinja2.select_autoescape(),  # in HTML; Markdown has a filter of its own
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(shown=_shown, md=_md, code=_code, json=_json)
    return environment


def _content(results: Results, run: StoredRun) -> dict[str, Any]:
    """Give what both pages tell, in words and cells."""
    models = results.models
    manifest = results.manifest
    scored = [model for model in models if model.trials]
    return {
        "name": results.name,
        "is_demo": manifest.data.path == "sample",
        "verdict": results.verdict,
        "trained": [
            (i % 6, model.model)
            for i, model in enumerate(models)
            if any(run.logs.get((model.model, trial.trial)) for trial in model.trials)
        ],
        "believed": [
            (i % 6, model.model)
            for i, model in enumerate(models)
            if not _is_floor(model, run) and any(t.calibration for t in model.trials)
        ],
        "scores": _scores(results),
        "comparisons": [one.sentence for one in results.comparisons],
        "sweeps": [_sweep(one) for one in manifest.sweep],
        "notes": tables.notes(results),
        "failures": [(m.model, f.trial, f.reason) for m in models for f in m.failed],
        "per_label": _per_label(scored),
        "confusions": [(model.model, _confusion(model)) for model in scored],
        "calibration": _calibration(scored, run),
        "texts": _texts(manifest, scored),
        "mistakes": [
            (model.model, section)
            for model in scored
            if (section := _confident_mistakes(model, run))
        ],
        "common_mistakes": _common_mistakes([m for m in scored if not _is_floor(m, run)], run),
        "unparsed": _unparsed(scored, run),
        "costs": _costs(scored),
        "recipe": _recipe(scored, run),
        "examples": _examples(scored),
        "article": _article(results),
        "provenance": _provenance(results, run),
        "config": run.config,
        "signature": results.signature,
    }


# ---------------------------------------------------------------------------------------- tables


def _sweep(sweep: SweepReport) -> tuple[str, str, Section, Section]:
    """Tell of a model's variants: its name, what was chosen, all of them, and what each value did.

    Of successive halving, only the first round has seen all variants.
    """
    keys = list(sweep.variants[0].settings)
    rounds = sweep.n_train
    if len(rounds) == 1:
        columns = [f"macro-F1 on {sweep.n_validation:,} validation texts"]
    else:
        columns = [f"trained on {n:,}" for n in rounds]
    ranked = sorted(
        sweep.variants,
        key=lambda one: (len(one.macro_f1), one.macro_f1[-1] or -1),
        reverse=True,
    )
    variants = [
        [
            one.name,
            *(tables.value_text(one.settings[key]) for key in keys),
            *(number(score) for score in one.macro_f1),
            *("stopped" for _ in rounds[len(one.macro_f1) :]),
        ]
        for one in ranked
    ]
    effects = []
    for key in keys:
        by_value: dict[str, list[float]] = {}
        for one in sweep.variants:
            if (score := one.macro_f1[0]) is not None:
                by_value.setdefault(tables.value_text(one.settings[key]), []).append(score)
        if 1 < len(by_value) < len(ranked):
            effects += [
                [key, value, str(len(own)), number(sum(own) / len(own)), *tables.ends(own)]
                for value, own in by_value.items()
            ]
    mean = "mean macro-F1" if len(rounds) == 1 else "mean macro-F1, first round"
    header = ["key", "value", "variants", mean, "lowest", "highest"]
    return (
        sweep.model,
        tables.sweep_sentence(sweep),
        Section(["variant", *keys, *columns], variants),
        Section(header, effects),
    )


def _scores(results: Results) -> Section:
    """Give the table of scores; the trials have columns of their own while they are few."""
    splits = results.manifest.splits
    columns = [split.trial for split in splits] if len(splits) <= MOST_TRIALS else []
    extra = any(model.macro_f1_all for model in results.models)
    published = results.published
    header = ["model", *(f"trial {trial}" for trial in columns), "trials", "mean", "std"]
    header += ["95 %, trials", "95 %, texts", *(["all", "all, 95 %"] if extra else [])]
    header += ["unparsed", *(["article"] if published else [])]
    rows = []
    for model in results.models:
        own = {trial.trial: number(trial.macro_f1) for trial in model.trials}
        own |= {failure.trial: "failed" for failure in model.failed}
        summary = model.macro_f1
        n_test = _total(model, "n_test")
        rows.append(
            [
                model.model,
                *(own.get(trial, "-") for trial in columns),
                f"{len(model.trials):,}",
                number(summary.mean),
                number(summary.std),
                _interval(_possible(summary.ci95)),
                _interval(summary.bootstrap95),
                *(all_cells(model, _BETWEEN) if extra else []),
                f"{_total(model, 'unparsed') / n_test:.1%}" if n_test else "-",
                *([number(published.get(model.model), 3)] if published else []),
            ]
        )
    tested = f"{splits[0].n_test:,} test texts a trial, the same for all models."
    if extra:
        tested += " The columns with all count the extra test texts as well; all else that is about"
        tested += " labels counts the sample's own."
    return Section(
        header,
        rows,
        (
            f"{tested} Macro-F1; std and the first interval (Student's t) are over trials,"
            " the second (bootstrap) over test texts.",
        ),
    )


def _per_label(models: Iterable[Model]) -> Section:
    rows = []
    for model in models:
        for label in model.trials[0].per_label:
            own = [trial.per_label[label] for trial in model.trials]
            means = [
                _mean(getattr(one, key) for one in own) for key in ("precision", "recall", "f1")
            ]
            support = sum(one.support for one in own)
            rows.append([model.model, label, *map(number, means), f"{support:,}"])
    header = ["model", "label", "precision", "recall", "F1", "texts"]
    return Section(header, rows, ("Means over trials; texts and confusions are added up.",))


def _confusion(model: Model) -> dict[str, Any]:
    """Add the trials' confusions up; of many labels, give the commonest confusions alone."""
    counts: Counter[tuple[str, str]] = Counter()
    for trial in model.trials:
        for true, row in trial.confusion.items():
            counts.update({(true, said): n for said, n in row.items()})
    labels = list(model.trials[0].per_label)
    if len(labels) > _MOST_LABELS:
        wrong = [(pair, n) for pair, n in counts.most_common() if n and pair[0] != pair[1]]
        commonest = [[true, said or "no label", f"{n:,}"] for (true, said), n in wrong[:20]]
        return {"list": Section(["text is", "answer was", "texts"], commonest)}
    answers = [*labels, *([""] if any(said == "" for _, said in counts) else [])]
    return {
        "answers": [said or "no label" for said in answers],
        "rows": [
            (true, [_cell(counts, true, said, labels) for said in answers]) for true in labels
        ],
    }


def _cell(
    counts: Mapping[tuple[str, str], int], true: str, said: str, labels: Sequence[str]
) -> tuple[int, int]:
    """Give a count, and its percentage of the texts of its label."""
    total = sum(counts.get((true, other), 0) for other in (*labels, ""))
    count = counts.get((true, said), 0)
    return count, round(100 * count / total) if total else 0


def _calibration(models: Iterable[Model], run: StoredRun) -> Section:
    rows = []
    for model in models:
        own = [trial.calibration for trial in model.trials if trial.calibration]
        if own and not _is_floor(model, run):
            areas = [one.auc for one in own if one.auc is not None]
            error = _mean(one.ece for one in own)
            rows.append([model.model, number(error), number(_mean(areas) if areas else None)])
    header = ["model", "expected calibration error", "area under the ROC curve (of two labels)"]
    return Section(header, rows, ("Means over trials; the curve is that of the first trial.",))


def _texts(manifest: Manifest, models: Iterable[Model]) -> Section:
    """Say what became of the texts."""
    data = manifest.data
    rows = [
        ["rows in the data", f"{data.rows:,}"],
        ["of these, repeats of an earlier text", f"{data.duplicates:,}"],
        ["of these, dropped", f"{data.dropped:,}"],
        ["texts in the sample", f"{data.sampled:,}"],
        *(
            [
                f"trial {split.trial}: training, test, in both",
                f"{split.n_train:,}, {split.n_test:,}, {split.overlap:,}",
            ]
            for split in manifest.splits[:MOST_TRIALS]
        ),
    ]
    for model in models:
        cut, tokens = _total(model, "truncated"), _total(model, "truncated_tokens")
        rows.append([f"{model.model}: texts cut (tokens lost)", f"{cut:,} ({tokens:,})"])
        rows.append([f"{model.model}: answers that are no label", f"{_total(model, 'unparsed'):,}"])
    return Section(["", "number"], rows)


def _confident_mistakes(model: Model, run: StoredRun) -> Section:
    """Give the wrong answers that a model was surest of, where it gave probabilities."""
    sure = [(max(p.probabilities), p) for p in _predictions(model, run) if p.probabilities]
    if len({probability for probability, _ in sure}) < 2:  # as with `majority`
        return Section([], [])
    wrong = [(probability, p) for probability, p in sure if p.predicted != p.label]
    wrong.sort(key=lambda one: one[0], reverse=True)
    surest = {p.text: (probability, p) for probability, p in reversed(wrong)}  # of all trials
    rows = [
        [_short(p.text), p.label, p.predicted or "no label", f"{probability:.3f}"]
        for probability, p in list(surest.values())[: -_MISTAKES - 1 : -1]
    ]
    return Section(["text", "label", "answer", "probability"], rows)


def _common_mistakes(models: Sequence[Model], run: StoredRun) -> Section:
    """Give the texts that most models got wrong: hard ones, or ones with a wrong label."""
    said: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for model in models:
        for p in _predictions(model, run):
            own = said.setdefault((p.text, p.label), {}).setdefault(model.model, Counter())
            own[p.predicted or "no label"] += 1

    def wrong(key: tuple[str, str]) -> float:
        answers = said[key].values()
        return sum(one.most_common(1)[0][0] != key[1] for one in answers) / len(answers)

    hard = [key for key in said if wrong(key) > 0.5]
    hardest = sorted(hard, key=wrong, reverse=True)[:_MISTAKES]
    rows = [
        [
            _short(text),
            label,
            "; ".join(
                f"{name}: {answers.most_common(1)[0][0]}"
                for name, answers in said[text, label].items()
            ),
        ]
        for text, label in hardest
    ]
    return Section(["text", "label", "answers"], rows)


def _unparsed(models: Iterable[Model], run: StoredRun) -> Section:
    rows = []
    for model in models:
        own = [p for p in _predictions(model, run) if p.predicted is None]
        rows += [
            [model.model, _short(p.text), p.label, _short(p.generated)] for p in own[:_MISTAKES]
        ]
    return Section(["model", "text", "label", "the model wrote"], rows)


def _costs(models: Iterable[Model]) -> Section:
    def mean(model: Model, key: str) -> float:
        return _mean(getattr(trial, key) for trial in model.trials)

    rows = [
        [
            model.model,
            f"{model.trials[0].parameters:,}",
            f"{mean(model, 'train_seconds'):,.1f} s",
            f"{mean(model, 'train_examples_per_second'):,.0f}",
            f"{mean(model, 'eval_seconds'):,.1f} s",
            f"{mean(model, 'eval_examples_per_second'):,.0f}",
            show_size(max(trial.peak_memory_bytes for trial in model.trials)),
            f"{model.trials[0].device}, {model.trials[0].precision}",
        ]
        for model in models
    ]
    header = ["model", "parameters", "training a trial", "texts/s", "evaluation", "texts/s"]
    return Section([*header, "memory", "computed on"], rows)


def _recipe(models: Iterable[Model], run: StoredRun) -> Section:
    """Give the settings of every model that the folder's config still names."""
    shown = [m for m in models if m.model in run.specs and not run.specs[m.model].is_baseline]
    specs = [run.specs[model.model] for model in shown]
    training = [spec.training.model_dump(mode="json") for spec in specs]
    rows: list[list[str]] = [
        ["model", *(spec.model for spec in specs)],
        ["prompt", *(_json(spec.prompt.input) for spec in specs)],
        ["completion", *(_json(spec.prompt.target) for spec in specs)],
        ["decoding", *(_decoding(model, run) for model in shown)],
        ["steps", *(str(model.trials[0].steps) for model in shown)],
        *([f"{key}, as it was", *(_was(model, key) for model in shown)] for key in _RESOLVED),
    ]
    keys = [key for key in (training[0] if training else {}) if key != "simplet5"]
    rows += [[key, *(_json(one[key]).strip('"') for one in training)] for key in keys]
    return Section(["", *(model.model for model in shown)], rows if shown else [])


def _decoding(model: Model, run: StoredRun) -> str:
    """Return how labels were decoded, and the prior that probabilities were divided by."""
    decoding: str = run.specs[model.model].evaluation.decoding
    if prior := model.trials[0].label_prior:
        shares = ", ".join(f"{label} {share:.3f}" for label, share in prior.items())
        decoding += f", calibrated by {shares}"
    return decoding


def _was(model: Model, key: str) -> str:
    """Return a setting's resolved value in the first trial, or `-` where it was not recorded."""
    trial = model.trials[0]
    if trial.padding is None and key in {"warmup_steps", "max_grad_norm", "padding"}:
        return "-"
    value = getattr(trial, key)
    return f"{value:g}" if isinstance(value, float) else _json(value).strip('"')


def _examples(models: Iterable[Model]) -> list[tuple[str, str, str]]:
    """Give a training text of every model as it saw it: prompt and completion."""
    shown = []
    for model in models:
        if example := model.trials[0].example:
            prompt, completion = example
            shown.append((model.model, prompt, completion))
    return shown


def _article(results: Results) -> Section:
    """Put the published numbers beside ours."""
    rows = []
    for model in results.models:
        published = results.published.get(model.model)
        ours = model.macro_f1.mean
        if published is not None and ours is not None:
            difference = f"{100 * (ours - published):+.1f} points"
            rows.append([model.model, number(published, 3), number(ours), difference])
    return Section(["model", "article", "ours", "difference"], rows)


def _provenance(results: Results, run: StoredRun) -> Section:
    manifest = results.manifest
    data = manifest.data
    rows = [
        ["tgsent", manifest.tgsent],
        *([name, version] for name, version in manifest.versions.items()),
        ["platform", manifest.platform],
        ["command", shlex.join(manifest.command)],
        ["git commit", manifest.git_commit or "-"],
        ["started, finished", f"{manifest.started}, {manifest.finished or 'not yet'}"],
        ["data", data.source],
        ["SHA-256 of the data", data.sha256],
        *(
            [f"SHA-256 of split {split.trial}", split.sha256]
            for split in manifest.splits[:MOST_TRIALS]
        ),
        *([f"commit of {model.name}", model.commit] for model in manifest.models if model.commit),
        *(
            [f"SHA-256 of the weights of {model.name}", model.weights_sha256]
            for model in manifest.models
            if model.weights_sha256
        ),
    ]
    if len(run.paths) > 1:
        rows.append(["what stands above is that of", str(run.paths[0])])
        rows += [
            [f"command of {one.path}", f"{shlex.join(one.command)} ({one.started})"]
            for one in manifest.combined
        ]
    if run.left_out:
        rows.append(["left out", ", ".join(run.left_out)])
    return Section(["", "value"], rows)


# ----------------------------------------------------------------------------------------- plots


def _is_floor(model: Model, run: StoredRun) -> bool:
    """Tell `majority`, whose low score would squeeze all others into a corner of a plot."""
    spec = run.specs.get(model.model)
    return spec is not None and spec.model == "majority" and len(run.trials) > 1


def _forest(results: Results, run: StoredRun) -> Markup | None:
    rows: list[Row] = []
    for series, model in enumerate(results.models):
        if not model.trials or _is_floor(model, run):
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
        (m.model, number(m.macro_f1.mean), _interval(m.macro_f1.bootstrap95))
        for m in results.models
    ]
    return charts.intervals(
        rows,
        title="Macro-F1 of the trials and their mean",
        description="; ".join(f"{row[0]}: mean {row[1]}, 95 % {row[2]}" for row in means),
        axis="macro-F1, with 95 % intervals over test texts",
    )


def _differences(results: Results, run: StoredRun) -> Markup | None:
    floor = {model.model for model in results.models if _is_floor(model, run)}
    rows: list[Row] = []
    for one in results.comparisons:
        if floor & {one.first, one.second}:
            continue
        ordered = one.better_first
        low, high = (100 * end for end in ordered.interval)
        rows.append(Row(f"{ordered.first} \N{MINUS SIGN} {ordered.second}"))
        difference = 100 * ordered.difference
        rows.append(Row(f"{difference:+.1f}", difference, (low, high), strong=one.is_real))
    if not rows:
        return None
    return charts.intervals(
        rows,
        title="Differences in macro-F1 of every two models",
        description="; ".join(one.sentence for one in results.comparisons),
        axis="points of macro-F1, with 95 % intervals",
        zero=0.0,
    )


def _curves(results: Results, run: StoredRun) -> Markup | None:
    lines = [
        (series, [(row["step"], row["loss"]) for row in run.logs[model.model, trial.trial]])
        for series, model in enumerate(results.models)
        for trial in model.trials[:MOST_TRIALS]
        if run.logs.get((model.model, trial.trial))
    ]
    if not lines:
        return None
    ends = "; ".join(
        f"{results.models[series].model}: {points[0][1]:.2f} to {points[-1][1]:.2f}"
        for series, points in lines
    )
    return charts.curves(
        lines,
        title="Training loss",
        description=f"From the first logged step to the last: {ends}",
        across="step",
        up="loss",
    )


def _reliability(results: Results, run: StoredRun) -> Markup | None:
    models = []
    for series, model in enumerate(results.models):
        bins = [
            (one.confidence, one.accuracy, one.n)
            for trial in model.trials[:1]
            for one in (trial.calibration.bins if trial.calibration else ())
        ]
        if bins and not _is_floor(model, run):
            models.append((series, bins))
    if not models:
        return None
    return charts.reliability(
        models,
        title="Accuracy over confidence in the first trial",
        description="Probabilities that can be believed lie on the diagonal",
    )


# ----------------------------------------------------------------------------------------- cells


def _predictions(model: Model, run: StoredRun) -> Iterable[Prediction]:
    for trial in model.trials:
        yield from run.predictions.get((model.model, trial.trial), ())


def _total(model: Model, key: str) -> int:
    return sum(getattr(trial, key) for trial in model.trials)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _possible(ends: Sequence[float] | None) -> Sequence[float] | None:
    """Cut an interval of Student's t, which knows no bounds, to what a score can be."""
    return ends and [max(0.0, ends[0]), min(1.0, ends[1])]


def _interval(ends: Sequence[float] | None) -> str:
    return interval(ends, _BETWEEN)


def _shown(text: str) -> str:
    return printable(without_secrets(text))


def _md(text: str) -> str:
    return markdown(without_secrets(text))


def _code(text: str) -> str:
    """Keep mentions and references in a text from being ones where the page is pasted."""
    return code(without_secrets(text)) if text.strip() else ""


def _json(value: Any) -> str:
    """Write a value as JSON, which suits YAML as well."""
    return json_line(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
