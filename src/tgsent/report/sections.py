"""The content of a report, section by section."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from tgsent.files import json_line, show_size
from tgsent.records import Prediction
from tgsent.report import figures, tables
from tgsent.report.blocks import Block, Bullets, Section, Table, Verbatim
from tgsent.report.markup import shortened
from tgsent.report.results import ModelResults, Results
from tgsent.report.tables import MOST_TRIALS, number
from tgsent.runs.manifest import Manifest, SweepReport
from tgsent.runs.stored import StoredRun

_MISTAKES = 10
_LONGEST = 300
_MOST_LABELS = 12
"""With more labels, the commonest confusions are listed instead of a matrix."""


def sections(results: Results, run: StoredRun) -> list[Section]:
    """Return the sections of the report, in their order."""
    scored = [model for model in results.models if model.trials]
    # the low scores of `majority` would squeeze all other marks in the plots
    majority = {name for name, spec in run.specs.items() if spec.model == "majority"}
    models = [model for model in scored if model.model not in majority] or scored
    failures = [
        f"{model.model} trial {one.trial} failed: {one.reason}"
        for model in results.models
        for one in model.failed
    ]
    return [
        ("Scores", [tables.score_table(results), figures.forest(models)]),
        (
            "Is it more than chance?",
            [
                figures.differences(models, results.comparisons),
                Bullets([one.sentence for one in results.comparisons]),
            ],
        ),
        *map(_sweep, results.manifest.sweep),
        ("Warnings", [Bullets([*failures, *tables.notes(results)])]),
        ("Labels", [_labels(scored), *map(confusions, scored)]),
        ("Calibration", [_calibration(models), figures.reliability(models)]),
        ("Training", [figures.losses(models, run)]),
        ("Time and memory", [_costs(scored)]),
        (
            "Texts",
            [
                _text_counts(results.manifest),
                _common_mistakes(models, run),
                *(_confident_mistakes(model, run) for model in scored),
                _unparsed(scored, run),
            ],
        ),
        ("Settings", _settings(scored, run)),
        ("Provenance", _provenance(results, run)),
    ]


def _sweep(sweep: SweepReport) -> Section:
    """Return a model's variants, and what each value did.

    Of successive halving, only the first round has seen all variants.
    """
    keys = list(sweep.variants[0].settings)
    rounds = [f"macro-F1 on {sweep.n_validation:,} validation texts"]
    mean = "mean macro-F1"
    if len(sweep.n_train) > 1:
        rounds = [f"trained on {n:,}" for n in sweep.n_train]
        mean = "mean macro-F1, first round"
    variants = []
    for one in sweep.variants:
        settings = [json_line(one.settings[key]) for key in keys]
        stopped = ["stopped"] * (len(rounds) - len(one.macro_f1))
        rank = (len(one.macro_f1), one.macro_f1[-1] or -1)
        variants.append((rank, [one.name, *settings, *map(number, one.macro_f1), *stopped]))
    variants.sort(key=lambda one: one[0], reverse=True)
    rows = [row for _, row in variants]
    effects = [row for key in keys for row in _effects(sweep, key)]
    headings = ["key", "value", "variants", mean, "lowest", "highest"]
    title = "Scores by value, over all values of the other keys"
    return (
        f"How the settings of {sweep.model} were chosen",
        [
            Bullets([tables.sweep_sentence(sweep)]),
            Table(["variant", *keys, *rounds], rows, align="left", is_quoted=True),
            Table(headings, effects, title=title, align="left", is_quoted=True),
        ],
    )


def _effects(sweep: SweepReport, key: str) -> list[list[str]]:
    """Return a row for each value of a key, where there are several variants with the same one."""
    by_value: dict[str, list[float]] = {}
    for one in sweep.variants:
        if (score := one.macro_f1[0]) is not None:
            by_value.setdefault(json_line(one.settings[key]), []).append(score)
    if not 1 < len(by_value) < len(sweep.variants):
        return []
    return [
        [key, value, str(len(own)), *map(number, (fmean(own), min(own), max(own)))]
        for value, own in by_value.items()
    ]


def _labels(scored: Sequence[ModelResults]) -> Table:
    rows = []
    for model in scored:
        for label in model.trials[0].per_label:
            own = [trial.per_label[label] for trial in model.trials]
            columns = zip(*((one.precision, one.recall, one.f1) for one in own), strict=True)
            support = sum(one.support for one in own)
            rows.append([model.model, label, *map(number, map(fmean, columns)), f"{support:,}"])
    headings = ["model", "label", "precision", "recall", "F1", "texts"]
    return Table(headings, rows, ["Means over trials; texts and confusions are added up."])


def confusions(model: ModelResults) -> Table:
    """Add up the confusions of a model's trials; of many labels, list only the commonest ones."""
    title = f"Confusions of {model.model}"
    counts = Counter[tuple[str, str]]()
    for trial in model.trials:
        for true, row in trial.confusion.items():
            counts.update({(true, said): n for said, n in row.items()})
    labels = list(model.trials[0].per_label)
    if len(labels) > _MOST_LABELS:
        wrong = [(pair, n) for pair, n in counts.most_common() if n and pair[0] != pair[1]]
        commonest = [[true, said or "no label", f"{n:,}"] for (true, said), n in wrong[:20]]
        return Table(["text is", "answer was", "texts"], commonest, title=title)
    answers = [*labels, *([""] if any(said == "" for _, said in counts) else [])]
    rows, shades = [], []
    for true in labels:
        total = sum(counts[true, said] for said in answers) or 1
        shares = [round(100 * counts[true, said] / total) for said in answers]
        pairs = zip(answers, shares, strict=True)
        rows.append([true, *(f"{counts[true, said]:,} ({share} %)" for said, share in pairs)])
        shades.append(shares)
    headings = ["text is, answer was", *(said or "no label" for said in answers)]
    return Table(headings, rows, title=title, shades=shades)


def _calibration(models: Iterable[ModelResults]) -> Table:
    rows = []
    for model in models:
        if own := [trial.calibration for trial in model.trials if trial.calibration]:
            areas = [one.auc for one in own if one.auc is not None]
            error = fmean(one.ece for one in own)
            rows.append([model.model, number(error), number(fmean(areas) if areas else None)])
    headings = ["model", "expected calibration error", "area under the ROC curve (of two labels)"]
    return Table(headings, rows, ["Means over trials; the curve is that of the first trial."])


def _costs(scored: Iterable[ModelResults]) -> Table:
    headings = ["model", "parameters", "training a trial", "texts/s", "evaluation", "texts/s"]
    rows = []
    for model in scored:
        first, trials = model.trials[0], model.trials
        rows.append(
            [
                model.model,
                f"{first.parameters:,}",
                f"{fmean(one.train_seconds for one in trials):,.1f} s",
                f"{fmean(one.train_examples_per_second for one in trials):,.0f}",
                f"{fmean(one.eval_seconds for one in trials):,.1f} s",
                f"{fmean(one.eval_examples_per_second for one in trials):,.0f}",
                show_size(max(one.peak_memory_bytes for one in trials)),
                f"{first.device}, {first.precision}",
            ]
        )
    return Table([*headings, "memory", "computed on"], rows)


def _text_counts(manifest: Manifest) -> Table:
    data = manifest.data
    rows = [
        ["rows in the data", f"{data.rows:,}"],
        ["of these, repeats of an earlier text", f"{data.duplicates:,}"],
        ["of these, dropped", f"{data.dropped:,}"],
        ["texts in the sample", f"{data.sampled:,}"],
    ]
    for split in manifest.splits[:MOST_TRIALS]:
        counts = f"{split.n_train:,}, {split.n_test:,}, {split.overlap:,}"
        rows.append([f"trial {split.trial}: training, test, in both", counts])
    return Table(["", "number"], rows)


def _confident_mistakes(model: ModelResults, run: StoredRun) -> Table:
    """Return the wrong answers with the highest probabilities, where there are probabilities."""
    sure = [(max(p.probabilities), p) for p in _predictions(model, run) if p.probabilities]
    if len({probability for probability, _ in sure}) < 2:  # as with `majority`
        sure = []
    once: dict[str, tuple[float, Prediction]] = {}  # texts may be in several trials
    for probability, p in sorted(sure, key=lambda one: one[0], reverse=True):
        if p.predicted != p.label:
            once.setdefault(p.text, (probability, p))
    rows = [
        [shortened(p.text, _LONGEST), p.label, p.predicted or "no label", f"{probability:.3f}"]
        for probability, p in list(once.values())[:_MISTAKES]
    ]
    title = f"Wrong answers that {model.model} was surest of"
    headings = ["text", "label", "answer", "probability"]
    return Table(headings, rows, title=title, align="left", is_quoted=True)


def _common_mistakes(models: Iterable[ModelResults], run: StoredRun) -> Table:
    """Return the texts that most models got wrong: hard ones, or ones with a wrong label."""
    said: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for model in models:
        for p in _predictions(model, run):
            own = said.setdefault((p.text, p.label), {}).setdefault(model.model, Counter())
            own[p.predicted or "no label"] += 1
    mistakes = []
    for (text, label), by_model in said.items():
        answers = {name: own.most_common(1)[0][0] for name, own in by_model.items()}
        share = fmean(answer != label for answer in answers.values())
        if share > 0.5:
            told = "; ".join(f"{name}: {answer}" for name, answer in answers.items())
            mistakes.append((share, [shortened(text, _LONGEST), label, told]))
    mistakes.sort(key=lambda one: one[0], reverse=True)
    rows = [row for _, row in mistakes[:_MISTAKES]]
    title = "Texts that most models got wrong"
    return Table(["text", "label", "answers"], rows, title=title, align="left", is_quoted=True)


def _unparsed(models: Iterable[ModelResults], run: StoredRun) -> Table:
    rows = []
    for model in models:
        own = [p for p in _predictions(model, run) if p.predicted is None]
        for p in own[:_MISTAKES]:
            texts = shortened(p.text, _LONGEST), p.label, shortened(p.generated, _LONGEST)
            rows.append([model.model, *texts])
    headings = ["model", "text", "label", "the model wrote"]
    return Table(headings, rows, title="Answers that are no label", align="left", is_quoted=True)


def _predictions(model: ModelResults, run: StoredRun) -> Iterable[Prediction]:
    for trial in model.trials:
        yield from run.predictions.get((model.model, trial.trial), ())


def _settings(scored: Iterable[ModelResults], run: StoredRun) -> list[Block]:
    """Return the settings of every model that the folder's config still names."""
    shown = [m for m in scored if m.model in run.specs and not run.specs[m.model].is_baseline]
    columns = [_settings_of(model, run) for model in shown]
    rows = [[key, *(column[key] for column in columns)] for key in (columns[0] if columns else ())]
    examples = [
        Verbatim(f"A training text as {model.model} saw it", *model.trials[0].example)
        for model in shown
        if model.trials[0].example
    ]
    return [Table(["", *(model.model for model in shown)], rows, align="left"), *examples]


def _settings_of(model: ModelResults, run: StoredRun) -> dict[str, str]:
    """Return the settings of a model, and what `auto` became, where the trial recorded it."""
    spec, trial = run.specs[model.model], model.trials[0]
    decoding: str = spec.evaluation.decoding
    if trial.label_prior:
        shares = ", ".join(f"{label} {share:.3f}" for label, share in trial.label_prior.items())
        decoding += f", calibrated by {shares}"
    recorded = trial.padding is not None  # earlier versions did not record the next three
    return {
        "model": spec.model,
        "prompt": json_line(spec.prompt.input),
        "completion": json_line(spec.prompt.target),
        "decoding": decoding,
        "steps": str(trial.steps),
        "learning_rate, resolved": f"{trial.learning_rate:g}",
        "warmup_steps, resolved": _plain(trial.warmup_steps) if recorded else "-",
        "max_grad_norm, resolved": _plain(trial.max_grad_norm) if recorded else "-",
        "padding, resolved": _plain(trial.padding) if recorded else "-",
        "precision, resolved": trial.precision,
        **{key: _plain(value) for key, value in spec.training.native_settings().items()},
    }


def _plain(value: object) -> str:
    """Write a value of the config; as YAML, a string needs no quotes."""
    return f"{value:g}" if isinstance(value, float) else json_line(value).strip('"')


def _provenance(results: Results, run: StoredRun) -> list[Block]:
    manifest = results.manifest
    rows = [
        ["tgsent", manifest.tgsent],
        *([name, version] for name, version in manifest.versions.items()),
        ["platform", manifest.platform],
        ["command", shlex.join(manifest.command)],
        ["git commit", manifest.git_commit or "-"],
        ["started, finished", f"{manifest.started}, {manifest.finished or 'not yet'}"],
        ["data", manifest.data.source],
        ["SHA-256 of the data", manifest.data.sha256],
    ]
    rows += [
        [f"SHA-256 of split {split.trial}", split.sha256] for split in manifest.splits[:MOST_TRIALS]
    ]
    for model in manifest.models:
        hashes = (("commit of", model.commit), ("SHA-256 of the weights of", model.weights_sha256))
        rows += [[f"{what} {model.name}", value] for what, value in hashes if value]
    if manifest.combined:
        rows.append(["the rows above describe", str(run.paths[0])])
    rows += [
        [f"command of {one.path}", f"{shlex.join(one.command)} ({one.started})"]
        for one in manifest.combined
    ]
    if run.left_out:
        rows.append(["left out", ", ".join(run.left_out)])
    table = Table(["", "value"], rows, align="left")
    return [table, Verbatim("Signature", results.signature), Verbatim("Config", run.config)]
