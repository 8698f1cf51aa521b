"""The README of a saved model: what it was trained on, how, how good it is, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from tgsent import __version__
from tgsent.config import TrialSpec
from tgsent.config.aliases import ALIASES, alias_of
from tgsent.files import write_atomic
from tgsent.modeling import loading
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder, choose_shots, render_target
from tgsent.records import Split
from tgsent.report.markup import code, markdown
from tgsent.runs.manifest import DataSummary
from tgsent.runs.metrics import TrialMetrics

_EXAMPLE = "What a lovely day!"


def write(
    folder: Path, spec: TrialSpec, split: Split, metrics: TrialMetrics, data: DataSummary
) -> None:
    """Write `README.md` beside a saved model; `data` is the manifest's part about the data."""
    training = spec.training.model_copy(update={"init": "pretrained"})
    saved = spec.model_copy(update={"model": str(folder), "training": training})
    loaded = loading.describe(saved, ())  # with tokenizer and configuration as they were saved
    write_atomic(folder / "README.md", card(loaded, spec, split, metrics, data))


def card(
    loaded: LoadedModel,
    spec: TrialSpec,
    split: Split,
    metrics: TrialMetrics,
    data: DataSummary,
) -> str:
    """Write the card: YAML for programs, then Markdown for people."""
    encoder = loading.prompt_encoder(loaded, spec, choose_shots(split.train, spec))
    lines = [
        "---",
        _front_matter(loaded, spec, metrics, data),
        "---",
        "",
        f"# {markdown(spec.name)}, fine-tuned to classify texts as {_or(spec.labels)}",
        "",
        f"Fine-tuned with tgsent {__version__} ({_start(spec)}) to continue a prompt with a label"
        f" word. This is trial {spec.trial}, seed {spec.seed}.",
    ]
    for title, section in (
        ("Data", _data(spec, split, data)),
        ("Scores", _scores(spec, metrics)),
        ("Prompt", _prompt(loaded, spec, encoder)),
        ("Use", ["```python", *_snippet(loaded, spec, encoder), "```", "", *_caveats(spec)]),
        ("Training", _training(spec, metrics)),
    ):
        lines += ["", f"## {title}", "", *section]
    return "\n".join(lines) + "\n"


def _front_matter(
    loaded: LoadedModel, spec: TrialSpec, metrics: TrialMetrics, data: DataSummary
) -> str:
    def result(kind: str, name: str, value: float) -> EvalResult:
        return EvalResult(
            task_type="text-classification",
            dataset_type="custom",
            dataset_name=_name(data),
            dataset_split=f"held out in trial {spec.trial}",
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )

    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text2text-generation" if loaded.family.is_seq2seq else "text-generation",
        base_model=_base_model(spec),
        tags=["tgsent", "text-classification"],
        model_name=f"{spec.name}-trial-{spec.trial}",
        eval_results=[
            result("f1", "macro-F1", metrics.macro_f1),
            result("accuracy", "accuracy", metrics.accuracy),
        ],
    )
    return metadata.to_yaml()


def _base_model(spec: TrialSpec) -> str | None:
    """Return the Hub id of the model whose weights the training started from, if it has one."""
    if spec.training.init != "pretrained":
        return None
    if alias := alias_of(spec.model):
        return ALIASES[alias].hub_id
    is_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", spec.model) and not Path(spec.model).exists()
    return spec.model if is_id else None


def _snippet(loaded: LoadedModel, spec: TrialSpec, encoder: PromptEncoder) -> list[str]:
    """Write Python that classifies one text as the evaluation does with `decoding: free`."""
    is_seq2seq = loaded.family.is_seq2seq
    auto = "AutoModelForSeq2SeqLM" if is_seq2seq else "AutoModelForCausalLM"
    head, _ = spec.prompt.input.split("{text}")
    # the text is encoded as a continuation of `start`, whose tokens are in `start_ids`
    skipped = len(encoder.encode_texts([encoder.start])[0]) if encoder.start else 0
    body = f"tokens({encoder.start + head!r} + text)[{skipped or ''}:{skipped + encoder.room}]"
    parts = [repr(list(encoder.start_ids)), body, repr([*encoder.tail_ids, *encoder.stop_ids])]
    parts = [part for part in parts if part != "[]"]
    longest = max(map(len, encoder.targets.values()))
    return [
        "import torch",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'folder = "."  # where this file is',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder)",
        "",
        "",
        "def tokens(text):",
        "    return tokenizer(text, add_special_tokens=False).input_ids",
        "",
        "",
        f"text = {_EXAMPLE!r}",
        f"prompt = torch.tensor([{' + '.join(parts)}])",
        "mask = torch.ones_like(prompt)",
        "output = model.generate(",
        "    prompt, attention_mask=mask, do_sample=False,",
        f"    max_new_tokens={longest}{_search(spec)}",
        ")",
        f"answer = output[0, {'1' if is_seq2seq else 'prompt.shape[1]'}:]",
        *_printed(spec),
    ]


def _printed(spec: TrialSpec) -> list[str]:
    """Write how an answer becomes a label."""
    said = "tokenizer.decode(answer, skip_special_tokens=True).strip()"
    if spec.prompt.words is None:
        return [f"print({said})"]
    labels = {render_target(spec.prompt, label).strip(): label for label in spec.labels}
    return [f"labels = {labels!r}", f"print(labels.get({said}))"]


def _search(spec: TrialSpec) -> str:
    """Write how the answers were searched for, where it was not greedily."""
    package = spec.training.package
    if package is None:
        return ""
    return (
        f", num_beams={package.num_beams}, early_stopping=True,"
        f" repetition_penalty={package.repetition_penalty}"
    )


def _caveats(spec: TrialSpec) -> list[str]:
    """Return where the snippet differs from the evaluation."""
    lines = [
        "Text and template are encoded in parts, as they were in training, and a long text is"
        " truncated at its end. A text that spells out one of the tokenizer's special tokens is"
        " plain characters in the scores, and that token here. An answer that is no label counts"
        " as wrong in the scores.",
    ]
    if spec.evaluation.decoding != "free":
        lines.append(
            f"\nThe scores are those of decoding `{spec.evaluation.decoding}`, which chooses among"
            " the labels alone; the code above writes freely."
        )
    return lines


def _data(spec: TrialSpec, split: Split, data: DataSummary) -> list[str]:
    return _table(
        [
            ("file", code(_name(data))),
            ("SHA-256 of the file", f"`{data.sha256}`"),
            ("texts in the file", f"{data.rows:,}"),
            ("texts drawn", f"{data.sampled:,}"),
            ("training texts", f"{len(split.train):,}"),
            ("held-out texts", f"{len(split.test):,}"),
            ("held-out texts also in training", f"{split.overlap:,}"),
            ("labels", ", ".join(map(markdown, spec.labels))),
            ("SHA-256 of the split", f"`{split.sha256}`"),
        ]
    )


def _scores(spec: TrialSpec, metrics: TrialMetrics) -> list[str]:
    lines = [
        f"On the {metrics.n_test:,} held-out texts of this trial, with decoding"
        f" `{spec.evaluation.decoding}`: an estimate from one split, for texts like these.",
        "",
        *_table(
            [
                ("macro-F1", f"{metrics.macro_f1:.4f}"),
                ("accuracy", f"{metrics.accuracy:.4f}"),
                ("answers that are no label", f"{metrics.unparsed:,}"),
            ]
        ),
    ]
    rows = [
        (
            markdown(label),
            *(f"{score:.4f}" for score in (row.precision, row.recall, row.f1)),
            str(row.support),
        )
        for label, row in metrics.per_label.items()
    ]
    return [*lines, "", *_table(rows, ("label", "precision", "recall", "F1", "texts"))]


def _prompt(loaded: LoadedModel, spec: TrialSpec, encoder: PromptEncoder) -> list[str]:
    return _table(
        [
            ("before the prompt", _code(loaded.decode(encoder.start_ids))),
            ("prompt", _code(spec.prompt.input)),
            ("after the prompt", _code(loaded.decode(encoder.stop_ids))),
            ("target", _code(spec.prompt.target)),
            *(
                (f"stands for {markdown(label)}", _code(word))
                for label, word in (spec.prompt.words or {}).items()
            ),
            ("after the target", _code(loaded.decode([loaded.ids.end]))),
        ]
    )


def _training(spec: TrialSpec, metrics: TrialMetrics) -> list[str]:
    settings = spec.training.model_dump(mode="json")
    resolved = ("steps", "learning_rate", "device", "precision")
    return _table(
        [
            *[(f"`{key}`", code(json.dumps(value))) for key, value in settings.items()],
            *[(f"{key}, resolved", f"`{getattr(metrics, key)}`") for key in resolved],
            ("parameters", f"{metrics.parameters:,}"),
            ("trained parameters", f"{metrics.trainable_parameters:,}"),
        ]
    )


def _table(rows: Iterable[Sequence[str]], header: Sequence[str] = ("", "")) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(row)} |" for row in lines]


def _code(text: str) -> str:
    """Show a text whose white space matters."""
    return code(json.dumps(text, ensure_ascii=False)) if text else "nothing"


def _name(data: DataSummary) -> str:
    """Return the name of the data file, without its folders, which are private."""
    return re.split(r"[/\\]", data.source)[-1]


def _start(spec: TrialSpec) -> str:
    return {
        "pretrained": "from pretrained weights",
        "random": "from random weights",
        "tiny": "a tiny model from random weights",
    }[spec.training.init]


def _or(labels: Sequence[str]) -> str:
    *first, last = map(markdown, labels)
    return f"{', '.join(first)} or {last}"
