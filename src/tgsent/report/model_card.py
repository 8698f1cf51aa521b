"""The README of a saved model: what it was trained on, how, how good it is, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

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
    """Write the card beside a saved model: YAML for programs, then Markdown for people.

    `data` is the manifest's part about the data.
    """
    training = spec.training.model_copy(update={"init": "pretrained"})
    saved = spec.model_copy(update={"model": str(folder), "training": training})
    loaded = loading.describe(saved, ())  # with tokenizer and configuration as they were saved
    encoder = loading.prompt_encoder(loaded, spec, choose_shots(split.train, spec))
    file = PureWindowsPath(data.source).name  # without its folders, which are private
    labels = ", ".join(map(markdown, spec.labels))
    parts = {
        "Data": _data(split, data, file, labels),
        "Scores": _scores(spec, metrics),
        "Prompt": _prompt(loaded, spec, encoder),
        "Use": [*_snippet(loaded, spec, encoder), *_caveats(spec)],
        "Training": _training(spec, metrics),
    }
    lines = [
        "---",
        _metadata(loaded, spec, metrics, file).to_yaml(),
        "---",
        "",
        f"# {markdown(spec.name)}, fine-tuned to classify texts: {labels}",
        "",
        f"Fine-tuned with tgsent {__version__} to continue a prompt with a label word. This is"
        f" trial {spec.trial}, seed {spec.seed}.",
    ]
    for title, section in parts.items():
        lines += ["", f"## {title}", "", *section]
    write_atomic(folder / "README.md", "\n".join(lines) + "\n")


def _metadata(
    loaded: LoadedModel, spec: TrialSpec, metrics: TrialMetrics, file: str
) -> ModelCardData:
    scores = (("f1", "macro-F1", metrics.macro_f1), ("accuracy", "accuracy", metrics.accuracy))
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text2text-generation" if loaded.family.is_seq2seq else "text-generation",
        base_model=_base_model(spec),
        tags=["tgsent", "text-classification"],
        model_name=f"{spec.name}-trial-{spec.trial}",
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="custom",
                dataset_name=file,
                dataset_split=f"held out in trial {spec.trial}",
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for kind, name, value in scores
        ],
    )


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
    search = f"max_new_tokens={max(map(len, encoder.targets.values()))}"
    if package := spec.training.package:  # which searches with beams
        search += (
            f", num_beams={package.num_beams}, early_stopping=True,"
            f" repetition_penalty={package.repetition_penalty}"
        )
    words = {render_target(spec.prompt, label).strip(): label for label in spec.labels}
    return [
        "```python",
        "import torch",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'folder = "."  # where this file is',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder)",
        f"labels = {words!r}",
        "",
        "",
        "def tokens(text):",
        "    return tokenizer(text, add_special_tokens=False).input_ids",
        "",
        "",
        f"text = {_EXAMPLE!r}",
        f"prompt = torch.tensor([{' + '.join(parts)}])",
        "mask = torch.ones_like(prompt)",
        f"output = model.generate(prompt, attention_mask=mask, do_sample=False, {search})",
        f"answer = output[0, {'1' if is_seq2seq else 'prompt.shape[1]'}:]",
        "print(labels.get(tokenizer.decode(answer, skip_special_tokens=True).strip()))",
        "```",
    ]


def _caveats(spec: TrialSpec) -> list[str]:
    """Return where the snippet differs from the evaluation."""
    lines = [
        "",
        "Text and template are encoded in parts, as they were in training, and a long text is"
        " truncated at its end. A text that spells out one of the tokenizer's special tokens is"
        " plain characters in the scores, and that token here. An answer that is no label counts"
        " as wrong in the scores.",
    ]
    if spec.evaluation.decoding != "free":
        lines += [
            "",
            f"The scores are those of decoding `{spec.evaluation.decoding}`, which chooses among"
            " the labels alone; the code above writes freely.",
        ]
    return lines


def _data(split: Split, data: DataSummary, file: str, labels: str) -> list[str]:
    return _table(
        ("file", code(file)),
        ("SHA-256 of the file", f"`{data.sha256}`"),
        ("texts in the file", f"{data.rows:,}"),
        ("texts drawn", f"{data.sampled:,}"),
        ("training texts", f"{len(split.train):,}"),
        ("held-out texts", f"{len(split.test):,}"),
        ("held-out texts also in training", f"{split.overlap:,}"),
        ("labels", labels),
        ("SHA-256 of the split", f"`{split.sha256}`"),
    )


def _scores(spec: TrialSpec, metrics: TrialMetrics) -> list[str]:
    rows = []
    for label, of in metrics.per_label.items():
        scores = f"{of.precision:.4f}", f"{of.recall:.4f}", f"{of.f1:.4f}"
        rows.append((markdown(label), *scores, str(of.support)))
    return [
        f"On the {metrics.n_test:,} held-out texts of this trial, with decoding"
        f" `{spec.evaluation.decoding}`: an estimate from one split, for texts like these.",
        "",
        *_table(
            ("macro-F1", f"{metrics.macro_f1:.4f}"),
            ("accuracy", f"{metrics.accuracy:.4f}"),
            ("answers that are no label", f"{metrics.unparsed:,}"),
        ),
        "",
        *_table(*rows, header=("label", "precision", "recall", "F1", "texts")),
    ]


def _prompt(loaded: LoadedModel, spec: TrialSpec, encoder: PromptEncoder) -> list[str]:
    words = (spec.prompt.words or {}).items()
    texts = [
        ("before the prompt", loaded.decode(encoder.start_ids)),
        ("prompt", spec.prompt.input),
        ("after the prompt", loaded.decode(encoder.stop_ids)),
        ("target", spec.prompt.target),
        *((f"stands for {markdown(label)}", word) for label, word in words),
        ("after the target", loaded.decode([loaded.ids.end])),
    ]
    return _table(*((name, _json(text) if text else "nothing") for name, text in texts))


def _training(spec: TrialSpec, metrics: TrialMetrics) -> list[str]:
    settings = spec.training.model_dump(mode="json")
    resolved = ("steps", "learning_rate", "device", "precision")
    return _table(
        *((f"`{key}`", _json(value)) for key, value in settings.items()),
        *((f"{key}, resolved", f"`{getattr(metrics, key)}`") for key in resolved),
        ("parameters", f"{metrics.parameters:,}"),
        ("trained parameters", f"{metrics.trainable_parameters:,}"),
    )


def _table(*rows: Sequence[str], header: Sequence[str] = ("", "")) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(row)} |" for row in lines]


def _json(value: object) -> str:
    """Show a value as JSON, in which white space is seen."""
    return code(json.dumps(value, ensure_ascii=False))
