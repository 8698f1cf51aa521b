"""The content of a report, section by section."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from tgsent.files import json_line, show_size
from tgsent.records import Prediction
from tgsent.report import tables
from tgsent.report.blocks import Block, Bullets, Figure, Section, Table, Text, Verbatim
from tgsent.report.figures import curves, differences, forest, is_majority, reliability
from tgsent.report.results import ModelResults, Results
from tgsent.report.tables import MOST_TRIALS, number
from tgsent.runs.manifest import Manifest, SweepReport
from tgsent.runs.metrics import TrialMetrics
from tgsent.runs.stored import StoredRun

_MISTAKES = 10
_LONGEST = 300
_MOST_LABELS = 12
"""With more labels, the commonest confusions are listed instead of a matrix."""


def sections(results: Results, run: StoredRun) -> list[Section]:
    """Return the sections of the report, in their order."""
    scored = [model for model in results.models if model.trials]
    return [
        _scores(results, run),
        _comparisons(results, run),
        *map(_sweep, results.manifest.sweep),
        _warnings(results),
        _labels(scored),
        _calibration(results, run),
        Section("Training", _if_any(curves(results, run))),
        Section("Time and memory", _if_any(_costs(scored))),
        _texts(results, scored, run),
        _settings(scored, run),
        _provenance(results, run),
    ]


def _if_any(block: Table | Figure | None, *before: Block) -> list[Block]:
    """Return a block with the blocks that introduce it, or nothing where it is empty."""
    if block is None or (isinstance(block, Table) and not block.rows):
        return []
    return [*before, block]


# ------------------------------------------------------------------------------ scores, chance


def _scores(results: Results, run: StoredRun) -> Section:
    return Section("Scores", [tables.score_table(results), *_if_any(forest(results, run))])


def _comparisons(results: Results, run: StoredRun) -> Section:
    if not results.comparisons:
        return Section("", [])
    sentences = Bullets([one.sentence for one in results.comparisons])
    return Section("Is it more than chance?", [*_if_any(differences(results, run)), sentences])


def _sweep(sweep: SweepReport) -> Section:
    """Return a model's variants, and what each value did.

    Of successive halving, only the first round has seen all variants.
    """
    keys = list(sweep.variants[0].settings)
    rounds = [f"trained on {n:,}" for n in sweep.n_train]
    if len(rounds) == 1:
        rounds = [f"macro-F1 on {sweep.n_validation:,} validation texts"]
    ranked = sorted(
        sweep.variants, key=lambda one: (len(one.macro_f1), one.macro_f1[-1] or -1), reverse=True
    )
    variants = [
        [
            one.name,
            *(json_line(one.settings[key]) for key in keys),
            *map(number, one.macro_f1),
            *("stopped" for _ in rounds[len(one.macro_f1) :]),
        ]
        for one in ranked
    ]
    mean = "mean macro-F1" if len(rounds) == 1 else "mean macro-F1, first round"
    headings = ["key", "value", "variants", mean, "lowest", "highest"]
    effects = Table(headings, _effects(sweep, keys), align="left", is_quoted=True)
    return Section(
        f"How the settings of {sweep.model} were chosen",
        [
            Text("paragraph", f"{tables.sweep_sentence(sweep)}."),
            Table(["variant", *keys, *rounds], variants, align="left", is_quoted=True),
            *_if_any(
                effects, Text("paragraph", "Scores by value, over all values of the other keys:")
            ),
        ],
    )


def _effects(sweep: SweepReport, keys: Iterable[str]) -> list[list[str]]:
    rows = []
    for key in keys:
        by_value: dict[str, list[float]] = {}
        for one in sweep.variants:
            if (score := one.macro_f1[0]) is not None:
                by_value.setdefault(json_line(one.settings[key]), []).append(score)
        if 1 < len(by_value) < len(sweep.variants):
            rows += [
                [key, value, str(len(own)), *map(number, (fmean(own), min(own), max(own)))]
                for value, own in by_value.items()
            ]
    return rows


def _warnings(results: Results) -> Section:
    failures = [
        f"{model.model} trial {one.trial} failed: {one.reason}"
        for model in results.models
        for one in model.failed
    ]
    lines = [*failures, *tables.notes(results)]
    return Section("Warnings", [Bullets(lines)] if lines else [])


# ------------------------------------------------------------------- labels, probabilities, costs


def _labels(scored: Sequence[ModelResults]) -> Section:
    rows = []
    for model in scored:
        for label in model.trials[0].per_label:
            own = [trial.per_label[label] for trial in model.trials]
            columns = zip(*((one.precision, one.recall, one.f1) for one in own), strict=True)
            support = sum(one.support for one in own)
            rows.append([model.model, label, *map(number, map(fmean, columns)), f"{support:,}"])
    headings = ["model", "label", "precision", "recall", "F1", "texts"]
    notes = ["Means over trials; texts and confusions are added up."]
    blocks = _if_any(Table(headings, rows, notes))
    for model in scored:
        blocks += [Text("heading", f"Confusions of {model.model}"), confusions(model)]
    return Section("Labels", blocks)


def confusions(model: ModelResults) -> Table:
    """Add up the confusions of a model's trials; of many labels, list only the commonest ones."""
    counts = Counter[tuple[str, str]]()
    for trial in model.trials:
        for true, row in trial.confusion.items():
            counts.update({(true, said): n for said, n in row.items()})
    labels = list(model.trials[0].per_label)
    if len(labels) > _MOST_LABELS:
        wrong = [(pair, n) for pair, n in counts.most_common() if n and pair[0] != pair[1]]
        rows = [[true, said or "no label", f"{n:,}"] for (true, said), n in wrong[:20]]
        return Table(["text is", "answer was", "texts"], rows)
    answers = [*labels, *([""] if any(said == "" for _, said in counts) else [])]
    totals = {true: sum(counts[true, said] for said in (*labels, "")) for true in labels}
    shades = [
        [round(100 * counts[true, said] / (totals[true] or 1)) for said in answers]
        for true in labels
    ]
    rows = [
        [
            true,
            *(
                f"{counts[true, said]:,} ({share} %)"
                for said, share in zip(answers, row, strict=True)
            ),
        ]
        for true, row in zip(labels, shades, strict=True)
    ]
    headings = ["text is, answer was", *(said or "no label" for said in answers)]
    return Table(headings, rows, shades=shades)


def _calibration(results: Results, run: StoredRun) -> Section:
    rows = []
    for model in results.models:
        own = [trial.calibration for trial in model.trials if trial.calibration]
        if own and not is_majority(model, run):
            areas = [one.auc for one in own if one.auc is not None]
            error = fmean(one.ece for one in own)
            rows.append([model.model, number(error), number(fmean(areas) if areas else None)])
    headings = ["model", "expected calibration error", "area under the ROC curve (of two labels)"]
    table = Table(headings, rows, ["Means over trials; the curve is that of the first trial."])
    return Section(
        "Can the probabilities be believed?",
        [table, *_if_any(reliability(results, run))] if rows else [],
    )


def _costs(scored: Sequence[ModelResults]) -> Table:
    def mean(model: ModelResults, value: Callable[[TrialMetrics], float]) -> float:
        return fmean(map(value, model.trials))

    headings = ["model", "parameters", "training a trial", "texts/s", "evaluation", "texts/s"]
    rows = [
        [
            model.model,
            f"{model.trials[0].parameters:,}",
            f"{mean(model, lambda t: t.train_seconds):,.1f} s",
            f"{mean(model, lambda t: t.train_examples_per_second):,.0f}",
            f"{mean(model, lambda t: t.eval_seconds):,.1f} s",
            f"{mean(model, lambda t: t.eval_examples_per_second):,.0f}",
            show_size(max(trial.peak_memory_bytes for trial in model.trials)),
            f"{model.trials[0].device}, {model.trials[0].precision}",
        ]
        for model in scored
    ]
    return Table([*headings, "memory", "computed on"], rows)


# ----------------------------------------------------------------------------------------- texts


def _texts(results: Results, scored: Sequence[ModelResults], run: StoredRun) -> Section:
    models = [model for model in scored if not is_majority(model, run)]
    blocks: list[Block] = [_text_counts(results.manifest)]
    blocks += _if_any(
        _common_mistakes(models, run), Text("heading", "Texts that most models got wrong")
    )
    for model in scored:
        title = Text("heading", f"Wrong answers that {model.model} was surest of")
        blocks += _if_any(_confident_mistakes(model, run), title)
    blocks += _if_any(_unparsed(scored, run), Text("heading", "Answers that are no label"))
    return Section("Texts", blocks)


def _text_counts(manifest: Manifest) -> Table:
    data = manifest.data
    rows = [
        ["rows in the data", f"{data.rows:,}"],
        ["of these, repeats of an earlier text", f"{data.duplicates:,}"],
        ["of these, dropped", f"{data.dropped:,}"],
        ["texts in the sample", f"{data.sampled:,}"],
    ]
    rows += [
        [
            f"trial {split.trial}: training, test, in both",
            f"{split.n_train:,}, {split.n_test:,}, {split.overlap:,}",
        ]
        for split in manifest.splits[:MOST_TRIALS]
    ]
    return Table(["", "number"], rows)


def _confident_mistakes(model: ModelResults, run: StoredRun) -> Table:
    """Return the wrong answers with the highest probabilities, where there are probabilities."""
    headings = ["text", "label", "answer", "probability"]
    sure = [(max(p.probabilities), p) for p in _predictions(model, run) if p.probabilities]
    if len({probability for probability, _ in sure}) < 2:  # as with `majority`
        return Table(headings, [])
    wrong = [(probability, p) for probability, p in sure if p.predicted != p.label]
    wrong.sort(key=lambda one: one[0], reverse=True)
    once: dict[str, tuple[float, Prediction]] = {}  # texts may be in several trials
    for probability, p in wrong:
        once.setdefault(p.text, (probability, p))
    rows = [
        [_short(p.text), p.label, p.predicted or "no label", f"{probability:.3f}"]
        for probability, p in list(once.values())[:_MISTAKES]
    ]
    return Table(headings, rows, align="left", is_quoted=True)


def _common_mistakes(models: Sequence[ModelResults], run: StoredRun) -> Table:
    """Return the texts that most models got wrong: hard ones, or ones with a wrong label."""
    said: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for model in models:
        for p in _predictions(model, run):
            own = said.setdefault((p.text, p.label), {}).setdefault(model.model, Counter())
            own[p.predicted or "no label"] += 1

    def share_wrong(key: tuple[str, str]) -> float:
        answers = [own.most_common(1)[0][0] for own in said[key].values()]
        return sum(answer != key[1] for answer in answers) / len(answers)

    hard = [key for key in said if share_wrong(key) > 0.5]
    rows = []
    for key in sorted(hard, key=share_wrong, reverse=True)[:_MISTAKES]:
        answers = [f"{name}: {own.most_common(1)[0][0]}" for name, own in said[key].items()]
        rows.append([_short(key[0]), key[1], "; ".join(answers)])
    return Table(["text", "label", "answers"], rows, align="left", is_quoted=True)


def _unparsed(models: Iterable[ModelResults], run: StoredRun) -> Table:
    rows = []
    for model in models:
        own = [p for p in _predictions(model, run) if p.predicted is None]
        rows += [
            [model.model, _short(p.text), p.label, _short(p.generated)] for p in own[:_MISTAKES]
        ]
    headings = ["model", "text", "label", "the model wrote"]
    return Table(headings, rows, align="left", is_quoted=True)


def _predictions(model: ModelResults, run: StoredRun) -> Iterable[Prediction]:
    for trial in model.trials:
        yield from run.predictions.get((model.model, trial.trial), ())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


# -------------------------------------------------------------------------- settings, provenance


def _settings(scored: Sequence[ModelResults], run: StoredRun) -> Section:
    """Return the settings of every model that the folder's config still names."""
    shown = [m for m in scored if m.model in run.specs and not run.specs[m.model].is_baseline]
    specs = [run.specs[model.model] for model in shown]
    first = [model.trials[0] for model in shown]
    training = [spec.training.native_settings() for spec in specs]
    rows: list[list[str]] = [
        ["model", *(spec.model for spec in specs)],
        ["prompt", *(json_line(spec.prompt.input) for spec in specs)],
        ["completion", *(json_line(spec.prompt.target) for spec in specs)],
        ["decoding", *(_decoding(model, run) for model in shown)],
        ["steps", *(str(trial.steps) for trial in first)],
        ["learning_rate, resolved", *(f"{trial.learning_rate:g}" for trial in first)],
        ["warmup_steps, resolved", *(_resolved(trial, trial.warmup_steps) for trial in first)],
        ["max_grad_norm, resolved", *(_resolved(trial, trial.max_grad_norm) for trial in first)],
        ["padding, resolved", *(_resolved(trial, trial.padding) for trial in first)],
        ["precision, resolved", *(trial.precision for trial in first)],
    ]
    keys = training[0] if training else ()
    rows += [[key, *(_plain(one[key]) for one in training)] for key in keys]
    table = Table(["", *(model.model for model in shown)], rows if shown else [], align="left")
    blocks = _if_any(table)
    for model in shown:
        if example := model.trials[0].example:
            blocks.append(Text("heading", f"A training text as {model.model} saw it"))
            blocks.append(Verbatim(*example))
    return Section("Settings", blocks)


def _resolved(trial: TrialMetrics, value: object) -> str:
    """Return what `auto` became; `-` for a trial of an earlier version, which did not record it."""
    return "-" if trial.padding is None else _plain(value)


def _decoding(model: ModelResults, run: StoredRun) -> str:
    """Return how labels were decoded, and the prior that probabilities were divided by."""
    decoding: str = run.specs[model.model].evaluation.decoding
    if prior := model.trials[0].label_prior:
        shares = ", ".join(f"{label} {share:.3f}" for label, share in prior.items())
        decoding += f", calibrated by {shares}"
    return decoding


def _plain(value: object) -> str:
    """Write a value of the config; as YAML, a string needs no quotes."""
    return f"{value:g}" if isinstance(value, float) else json_line(value).strip('"')


def _provenance(results: Results, run: StoredRun) -> Section:
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
    rows += [[f"commit of {m.name}", m.commit] for m in manifest.models if m.commit]
    rows += [
        [f"SHA-256 of the weights of {m.name}", m.weights_sha256]
        for m in manifest.models
        if m.weights_sha256
    ]
    if manifest.combined:
        rows.append(["the rows above describe", str(run.paths[0])])
        rows += [
            [f"command of {one.path}", f"{shlex.join(one.command)} ({one.started})"]
            for one in manifest.combined
        ]
    if run.left_out:
        rows.append(["left out", ", ".join(run.left_out)])
    table = Table(["", "value"], rows, align="left")
    return Section(
        "Provenance",
        [
            table,
            Text("heading", "Signature"),
            Verbatim(results.signature),
            Text("heading", "Config"),
            Verbatim(run.config),
        ],
    )
