"""A saved model: its card, and that it answers elsewhere as it did in the run."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from conftest import cli_environment
from tgsent.config import RunConfig
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.experiment import execute
from tgsent.report import model_card
from tiny_models import FAMILIES, examples, tiny_spec

INPUT, TARGET = "Tweet: {text}\nSentiment:", " {label}"


def write_texts(folder: Path) -> Path:
    """Texts of many lengths, some of which are cut, and some with characters of many bytes."""
    file = folder / "texts.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label"])
        for i, example in enumerate(examples(60)):
            more = " \u2764 and on it goes" * (12 if i % 10 == 3 else i % 3)
            writer.writerow([example.text + more, example.label])
    return file


def run(model: str, folder: Path, **changes: Any) -> Path:
    """Run one trial that keeps its model; give the trial's folder."""
    training = {"init": "tiny", "epochs": 8, "batch_size": 8, "max_tokens": 64, "device": "cpu",
                "precision": "fp32", "warmup_steps": 4}  # fmt: skip
    config = RunConfig.model_validate(
        {
            "models": [{"model": model, "as": "it"}],
            "trials": 1,
            "data": {"path": str(write_texts(folder)), "sample_size": None, "test_fraction": 0.4}
            | changes.pop("data", {}),
            "prompt": changes.pop("prompt", {}),
            "training": training | changes.pop("training", {}),
            "output": {"dir": str(folder / "runs"), "save_model": "all"},
            **changes,
        }
    )
    texts = load_dataset(config.data)
    splits = TrialSplits(texts, config)
    results = execute.run(config, texts, splits)
    assert not results.models[0].failed, results.models[0].failed
    return config.folder / "it" / "trial-1"


def answers_of_plain_transformers(
    trial: Path, texts: list[str], is_seq2seq: bool, start_token: str | None
) -> list[str]:
    """Generate greedily, all prompts in one batch, with nothing of tgsent's."""
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(trial / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trial / "model")

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    head, tail = INPUT.split("{text}")
    start = start_token or tokenizer.bos_token
    before = [tokenizer.convert_tokens_to_ids(start)] if start else []
    after = tokens(tail) + ([tokenizer.eos_token_id] if is_seq2seq else [])
    longest = 1 + max(len(tokens(TARGET.format(label=x))) for x in ("negative", "positive"))
    room = 64 - len(before) - len(after) - (0 if is_seq2seq else longest)
    prompts = [[*before, *tokens(head + text)[:room], *after] for text in texts]
    assert len({*map(len, prompts)}) > 5
    assert max(map(len, prompts)) == 64 - (0 if is_seq2seq else longest)
    assert tokenizer.padding_side == ("right" if is_seq2seq else "left")
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**batch, do_sample=False, max_new_tokens=longest)
    new = output[:, 1:] if is_seq2seq else output[:, batch.input_ids.shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("start_token", [None, "<|startoftext|>"])
@pytest.mark.parametrize("model", FAMILIES)
def test_a_saved_model_answers_in_plain_transformers_as_in_the_run(
    model: str, start_token: str | None, tmp_path: Path
) -> None:
    trial = run(model, tmp_path, prompt={"start_token": start_token})
    with (trial / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = [row["text"] for row in rows]
    answers = answers_of_plain_transformers(trial, texts, model == "t5", start_token)
    assert answers == [row["generated"] for row in rows]
    assert len({*answers}) == 2


def run_snippet(card: str, folder: Path) -> str:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        cwd=folder,
        env=cli_environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", FAMILIES)
def test_the_card_tells_the_facts_of_the_trial_and_its_snippet_works(
    model: str, tmp_path: Path
) -> None:
    trial = run(model, tmp_path)
    card = (trial / "model" / "README.md").read_text("utf-8")
    metrics = json.loads((trial / "metrics.json").read_bytes())
    manifest = json.loads((tmp_path / "runs" / "default" / "manifest.json").read_bytes())
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"].endswith("generation")
    assert "base_model" not in head
    (result,) = head["model-index"][0]["results"]
    assert {m["name"]: m["value"] for m in result["metrics"]} == {
        "macro-F1": metrics["macro_f1"],
        "accuracy": metrics["accuracy"],
    }
    for fact in (
        manifest["data"]["sha256"],
        metrics["split_sha256"],
        "| file | `texts.csv` |",
        "| training texts | 36 |",
        "On the 24 held-out texts of this trial",
        f"| macro-F1 | {metrics['macro_f1']:.4f} |",
        f"| positive | {metrics['per_label']['positive']['precision']:.4f} |",
        f"| answers that are no label | {metrics['unparsed']} |",
        r'| prompt | `"Tweet: {text}\nSentiment:"` |',
        '| target | `" {label}"` |',
        "| `epochs` | `8` |",
        f"| trained parameters | {metrics['parameters']:,} |",
    ):
        assert fact in card
    assert str(tmp_path) not in card
    answer = run_snippet(card, trial / "model")
    assert answer.strip() in {"negative", "positive"}


@pytest.mark.parametrize(
    ("model", "init", "base"),
    [
        ("gpt2", "pretrained", "openai-community/gpt2"),
        ("gpt2", "random", None),
        ("google/flan-t5-base", "pretrained", "google/flan-t5-base"),
        ("./my-model", "pretrained", None),
        ("/models/mine", "pretrained", None),
        (str(Path(__file__).parent.name), "pretrained", "report"),
    ],
)
def test_the_base_model_is_named_where_the_hub_has_it(
    model: str, init: str, base: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = tiny_spec(model, training={"init": init})
    assert model_card._base_model(spec) == base


def test_awkward_words_do_not_break_the_card(tmp_path: Path) -> None:
    prompt = {"input": 'Say `"|": {text}\n```\n', "target": "{label} |", "start_token": "<|a|b|>"}
    labels = {"positive": "so | so", "negative": "a`b"}
    trial = run("gpt2", tmp_path, prompt=prompt, data={"labels": labels})
    card = (trial / "model" / "README.md").read_text("utf-8")
    tables = [line for line in card.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {3, 6}
    assert card.count("\n```") == 2
    run_snippet(card, trial / "model")
