"""T5 through the package SimpleT5: with a stand-in for the worker, and for real."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cli_process import Running
from conftest import Cli, cli_environment
from tgsent.backends.simplet5 import environment, package
from tgsent.config import PromptConfig, TrialSpec
from tgsent.errors import ConfigError, TrialError, UnavailableError
from tgsent.experiment import predict
from tgsent.modeling import loading
from tgsent.records import Split
from tgsent.runs import stored
from tiny_models import LABELS, Silent, check, examples, run_trial, tiny_spec

TEXTS = examples(60)
SPLIT = Split(1, 1, tuple(TEXTS[:48]), tuple(TEXTS[48:]), sha256="5" * 64, overlap=0)
VERSIONS = {"simplet5": "0.1.4", "transformers": "4.57.6"}
WORKER = Path(package.__file__).with_name("worker.py")

TELL = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)
job = json.loads(Path("job.json").read_text())
n, size = len(job["test"]), job["batch_size"]
steps = -(-len(job["train"]["source_text"]) // size) * job["epochs"]
"""
WORKS = """
Path(os.environ["SEEN"]).write_text(json.dumps(job))
tell("loaded")
for step in range(steps):
    tell("step", loss=4.0 - step / 10, examples=size)
for _ in range(n):
    tell("answer")
Path("outputs/last").mkdir(parents=True)
Path("outputs/last/config.json").write_text("{}")
Path("outputs/last/tokenizer.json").write_text("{}")
tell("results", generated=[" positive", "negative", "I think"] * (n // 3), measured=dict(
    train_seconds=2.0, eval_seconds=0.5, truncated=3, truncated_tokens=9, peak_memory_bytes=9,
    parameters=7, trainable_parameters=7, device="cpu"))
"""
FAILS = """
tell("loaded")
print("a warning", "Traceback", "RuntimeError: no luck", sep="\\n\\n", file=sys.stderr)
sys.exit(4)
"""
HANGS = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
tell("loaded")
for step in range(steps // job["epochs"]):
    tell("step", loss=1.0, examples=size)
Path(os.environ["SEEN"]).write_text(json.dumps([os.getpid(), child.pid, os.getcwd()]))
time.sleep(600)
"""


def stand_in(folder: Path, body: str) -> str:
    """An interpreter that has the package, it says, and runs `body` instead of any script."""
    (folder / "fake.py").write_text(TELL + body)
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f"if [ \"$2\" = -c ]; then echo '{json.dumps(VERSIONS)}'\n"
        f'else exec "{sys.executable}" "{folder / "fake.py"}"; fi\n'
    )
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a stand-in writes what it has seen."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return tmp_path / "seen.json"


def spec_for(**training: Any) -> TrialSpec:
    return tiny_spec("t5", training={"backend": "simplet5", **training})


def run(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: TrialSpec | None = None
) -> Any:
    monkeypatch.setenv(environment.VARIABLE, stand_in(tmp_path, body))
    return run_trial(spec or spec_for(epochs=2), SPLIT, Silent())


# ---------------------------------------------------------------------------- the worker's script


def test_the_worker_imports_nothing_of_tgsent() -> None:
    imported = [
        name
        for node in ast.walk(ast.parse(WORKER.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    ]
    assert "simplet5" in imported
    assert not [name for name in imported if name and name.startswith("tgsent")]
    assert not [n for n in ast.walk(ast.parse(WORKER.read_text())) if getattr(n, "level", 0)]


def test_the_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    os.mkfifo(folder / "job.json")  # for which it waits
    with subprocess.Popen(
        [sys.executable, "-I", str(WORKER)], cwd=folder, stdin=subprocess.PIPE
    ) as worker:
        time.sleep(0.5)
        assert worker.poll() is None
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(20) == 1
    assert not folder.exists()


# ------------------------------------------------------------------------------- with a stand-in


def test_the_worker_is_told_the_recipe_and_its_answers_are_scored(
    tmp_path: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(WORKS, tmp_path, monkeypatch)
    job = json.loads(seen.read_text())
    assert job["train"]["source_text"][0] == f"Tweet: {TEXTS[0].text}\nSentiment:"
    assert job["train"]["target_text"][:2] == [" negative", " positive"]
    assert job["test"][0] == f"Tweet: {TEXTS[48].text}\nSentiment:"
    told = ("seed", "device", "epochs", "batch_size", "source_max_tokens", "target_max_tokens")
    assert [job[key] for key in told] == [1, "cpu", 2, 8, 64, 200]
    assert (job["num_beams"], job["repetition_penalty"]) == (2, 2.5)

    answers = [(p.predicted, p.generated) for p in result.predictions]
    assert answers == 4 * [
        ("positive", " positive"), ("negative", "negative"), (None, "I think")
    ]  # fmt: skip
    assert [(p.text, p.label) for p in result.predictions] == [
        (e.text, e.label) for e in SPLIT.test
    ]
    assert result.log[0] == {"step": 1, "epoch": 1, "loss": 4.0, "learning_rate": 1e-4}
    assert [row["epoch"] for row in result.log] == [1] * 6 + [2] * 6
    native = run_trial(tiny_spec("t5"), SPLIT, Silent()).metrics
    assert result.metrics.to_json().keys() == native.to_json().keys()
    assert (
        result.metrics.to_json().items()
        >= {
            "unparsed": 4,
            "truncated": 3,
            "truncated_tokens": 9,
            "steps": 12,
            "learning_rate": 1e-4,
            "train_seconds": 2.0,
            "train_examples_per_second": 48.0,
            "eval_examples_per_second": 24.0,
            "precision": "fp32",
            "backend": "simplet5",
            "backend_versions": VERSIONS,
        }.items()
    )
    assert "|backend:simplet5|" in result.metrics.signature


def test_a_model_is_lent_in_words_that_the_package_knows(
    tmp_path: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = "tell('loaded'); settings = Path('model/tokenizer_config.json').read_text()\n"
    look += "Path(os.environ['SEEN']).write_text(settings); sys.exit(1)"
    with pytest.raises(TrialError):
        run(look, tmp_path, monkeypatch)
    settings = json.loads(seen.read_text())
    assert (settings["tokenizer_class"], settings["extra_ids"]) == ("T5Tokenizer", 0)
    assert not {"backend", "extra_special_tokens"} & settings.keys()


def test_settings_of_the_older_transformers_stay_as_they_are(
    t5_folder: Path, tmp_path: Path
) -> None:
    package._lend_model(t5_folder, tmp_path / "lent")
    lent = {path.name: path.read_bytes() for path in (tmp_path / "lent").iterdir()}
    assert lent == {path.name: path.read_bytes() for path in t5_folder.iterdir()}


def test_settings_of_the_newer_transformers_are_translated(tmp_path: Path) -> None:
    newer = {"backend": "tokenizers", "extra_special_tokens": ["<extra_id_0>"], "eos_token": "x"}
    (tmp_path / "start").mkdir()
    written = tmp_path / "start/tokenizer_config.json"
    written.write_text(json.dumps(newer))
    package._lend_model(tmp_path / "start", tmp_path / "lent")
    assert json.loads((tmp_path / "lent/tokenizer_config.json").read_bytes()) == {
        "eos_token": "x",
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 1,
        "additional_special_tokens": ["<extra_id_0>"],
    }
    assert json.loads(written.read_bytes()) == newer


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (FAILS, TrialError, r"failed \(exit code 4\): RuntimeError: no luck\nall that it said is"),
        ("sys.exit(0)", TrialError, r"failed \(exit code 0\): it said nothing"),
        ("tell('loaded'); os.kill(os.getpid(), 9)", TrialError, r"failed \(exit code -9\)"),
        ("tell('loaded'); tell('step', loss=float('nan'))", TrialError, "loss is nan at step 1"),
        ("tell('unavailable')", UnavailableError, "training.device: .* finds no cuda device"),
    ],
)  # fmt: skip
def test_failures(
    body: str,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with pytest.raises(error, match=message) as caught:
        run(body, tmp_path, monkeypatch)
    assert len(str(caught.value).splitlines()) <= 3
    assert list(temporary.iterdir()) == []


def command_line(*more: str) -> list[str]:
    return [
        "run", "-m", "t5", "-n", "1", "--set", "data.path=texts.csv",
        "--set", "data.sample_size=null", "--set", "data.test_fraction=0.2",
        "--set", "training.init=tiny", "--set", "training.max_tokens=64",
        "--set", "training.batch_size=8", *more,
    ]  # fmt: skip


def write_texts(folder: Path) -> None:
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((example.text, example.label) for example in TEXTS)


def test_all_that_the_package_said_is_kept_where_it_failed(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    python = {environment.VARIABLE: stand_in(tmp_path, FAILS)}
    done = cli(*command_line("--set", "training.backend=simplet5"), env=python)
    assert done.returncode == 1
    assert re.search(r"^│ t5 \(simplet5\) +│ +failed │", done.stdout, re.MULTILINE)
    assert "failed (exit code 4): RuntimeError: no luck" in done.stderr
    said = (tmp_path / "runs/default/t5 (simplet5)/trial-1/error.txt").read_text()
    assert said.split() == ["a", "warning", "Traceback", "RuntimeError:", "no", "luck"]


def test_an_interrupted_run_ends_the_worker_and_its_children(tmp_path: Path, seen: Path) -> None:
    write_texts(tmp_path)
    python = {environment.VARIABLE: stand_in(tmp_path, HANGS)}
    command = command_line("--set", "training.backend=simplet5")
    process = Running(command, tmp_path, cli_environment(python))
    process.wait_for("epoch 1/3")
    while not seen.exists() or not seen.read_text().endswith("]"):
        time.sleep(0.05)
    process.send(signal.SIGINT)
    assert process.ended(60).returncode == 130
    worker, child, folder = json.loads(seen.read_text())
    assert not [pid for pid in (worker, child) if is_running(pid)]
    assert not Path(folder).exists()


def is_running(pid: int) -> bool:
    """Check whether a process is there and no mere entry that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --------------------------------------------------------------------------------------- checks


def test_only_t5_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.VARIABLE, stand_in(tmp_path, ""))
    check(spec_for())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    spec = tiny_spec(str(tmp_path), training={"backend": "simplet5", "init": "pretrained"})
    with pytest.raises(ConfigError, match=r'SimpleT5 trains T5, and .* of type "gpt2"'):
        check(spec)


# ------------------------------------------------------------------------------------- for real

BOTH = "models=[t5, {model: t5, training: {backend: simplet5}}]"
REAL = command_line("--set", BOTH, "--set", "output.save_model=first")
ROW = "runs/default/t5 (simplet5)/trial-1"
RealRun = tuple[Path, subprocess.CompletedProcess[str]]


def real_run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    write_texts(folder)
    return Running((*REAL, *more), folder, cli_environment()).ended()


@pytest.fixture(scope="session")
def both_ways(simplet5: None, tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    """A finished run of tiny T5 both ways: its working folder, and what it printed."""
    folder = tmp_path_factory.mktemp("both")
    done = real_run(folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_both_ways_stand_in_one_table_on_the_same_splits(both_ways: RealRun) -> None:
    folder, done = both_ways
    rows = re.findall(r"^│ (t5[^│]*?) +│ +[\d.]+ │", done.stdout, re.MULTILINE)
    assert rows == ["t5", "t5 (simplet5)"]
    assert re.search(r"^t5 \(simplet5\) trial 1: epoch 3/3, mean loss", done.stderr, re.MULTILINE)
    native, package = (
        json.loads((folder / row / "metrics.json").read_text())
        for row in ("runs/default/t5/trial-1", ROW)
    )
    assert native["split_sha256"] == package["split_sha256"]
    assert native.keys() == package.keys()
    for same in ("n_train", "n_test", "steps", "parameters", "seed", "truncated"):
        assert native[same] == package[same], same
    assert native["fingerprint"] != package["fingerprint"]
    assert package["backend_versions"]["simplet5"] == "0.1.4"
    assert package["peak_memory_bytes"] > 50_000_000
    assert sorted(path.name for path in folder.iterdir()) == ["runs", "texts.csv"]


def test_the_package_learns(both_ways: RealRun) -> None:
    rows = [
        json.loads(line) for line in (both_ways[0] / ROW / "log.jsonl").read_text().splitlines()
    ]
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (step, 1 + (step - 1) // 6) for step in range(1, 19)
    ]
    epochs = [sum(row["loss"] for row in rows if row["epoch"] == k) for k in (1, 2, 3)]
    assert epochs[0] > 1.02 * epochs[1] > 1.03 * epochs[2]
    assert {row["learning_rate"] for row in rows} == {1e-4}


def test_the_answers_are_those_of_the_kept_model(both_ways: RealRun) -> None:
    """Which plain transformers loads, and asked the package's way answers the same."""
    folder = both_ways[0] / ROW
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        source = f"Tweet: {row['text']}\nSentiment:"
        inputs = tokenizer(source, return_tensors="pt").input_ids
        assert inputs[0, -1] == tokenizer.eos_token_id
        with torch.no_grad():
            generated = model.generate(
                inputs, num_beams=2, max_length=200, repetition_penalty=2.5, early_stopping=True
            )
        assert tokenizer.decode(generated[0], skip_special_tokens=True) == row["generated"]
    card = (folder / "model/README.md").read_text("utf-8")
    assert "num_beams=2, early_stopping=True, repetition_penalty=2.5" in card


def test_the_same_command_gives_the_same_predictions(both_ways: RealRun, tmp_path: Path) -> None:
    done = real_run(tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("predictions.csv", "log.jsonl"):
        assert (tmp_path / ROW / name).read_bytes() == (both_ways[0] / ROW / name).read_bytes()


def test_finished_trials_of_the_package_are_not_run_again(both_ways: RealRun) -> None:
    done = real_run(both_ways[0])
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "already finished: 2 of 2 trials"
    assert "epoch" not in done.stderr


def test_a_kept_model_is_trained_on(both_ways: RealRun, tmp_path: Path) -> None:
    """One of each kind: what transformers 5 saved, and what the package did."""
    start = [
        f"{{model: {both_ways[0] / row / 'model'}, as: {name}}}"
        for row, name in (("runs/default/t5/trial-1", "ours"), (ROW, "theirs"))
    ]
    done = real_run(
        tmp_path, "--set", f"models=[{', '.join(start)}]", "--set", "training.init=pretrained",
        "--set", "training.backend=simplet5", "--set", "training.epochs=1",
        "--set", "output.save_model=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^(ours|theirs) trial 1: macro-F1", done.stderr, re.MULTILINE)) == 2


def test_a_kept_model_answers_as_the_package_did(both_ways: RealRun) -> None:
    run = stored.read(both_ways[0] / "runs/default")
    expected = run.predictions["t5 (simplet5)", 1]
    classifier = predict.load(run, "t5 (simplet5)", 1)
    answers = list(classifier.classify([p.text for p in expected], Silent()))
    assert [(p.text, p.predicted, p.generated.split()) for p in answers] == [
        (p.text, p.predicted, p.generated.split()) for p in expected
    ]


def test_a_dry_run_counts_the_packages_steps(both_ways: RealRun, cli: Cli) -> None:
    done = cli(*REAL, "--dry-run", cwd=both_ways[0])
    assert done.returncode == 0, done.stderr
    plan = done.stdout.partition("\nt5 (simplet5) (")[2]
    assert "18 optimizer steps at 0.0001," in plan


def test_labels_too_long_for_the_package(simplet5: None) -> None:
    spec = spec_for(simplet5={"target_max_tokens": 2})
    with pytest.raises(TrialError, match="target_max_tokens: 2 is too few, the longest label ta"):
        run_trial(spec, SPLIT, Silent())


def test_texts_that_are_cut_are_counted(simplet5: None) -> None:
    spec = tiny_spec(
        "t5",
        training={"backend": "simplet5", "max_tokens": 8},
        prompt=PromptConfig(input="{text}", target="{label}"),
    )
    result = run_trial(spec, SPLIT, Silent())
    loaded = loading.load(spec, SPLIT.train)
    lengths = [len(loaded.tokenizer(e.text).input_ids) for e in SPLIT.train]
    assert result.metrics.truncated == sum(length > 8 for length in lengths) > 0
    assert result.metrics.truncated_tokens == sum(max(0, length - 8) for length in lengths)
    assert len(result.predictions) == 12
    assert set(LABELS) >= {p.predicted for p in result.predictions} - {None}
