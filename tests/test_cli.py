"""The command line as its users meet it: every test starts processes."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

import tgsent
from cli_process import Running
from conftest import Cli, cli_environment
from tgsent.config import load

WORDS = {"joy": "lovely great happy", "anger": "awful hate rage", "calm": "quiet slow still"}
ON_TEXTS = (
    "--set", "data.path=texts.csv", "--set", "data.sample_size=null",
    "--set", "data.test_fraction=0.2", "--set", "training.init=tiny",
)  # fmt: skip
RUN = ("run", "-m", "gpt2", "-m", "t5", "-n", "2", *ON_TEXTS, "--set", "training.epochs=1")
FirstRun = tuple[Path, subprocess.CompletedProcess[str]]


def write_texts(folder: Path) -> None:
    """60 made-up texts with one of three labels each."""
    labels = list(WORDS)
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(60):
            label = labels[i % 3]
            writer.writerow([f"so {WORDS[label].split()[i // 3 % 3]} today, number {i}", label])


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob(pattern)}


def progress_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("tgsent: ")]


def notes_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("tgsent: ")]


# ------------------------------------------------------------------------ help, version, errors


def test_version(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tgsent {tgsent.__version__}\n", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(flag: str, cli: Cli) -> None:
    done = cli(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run" in done.stdout
    assert "tgsent run -c smoke" in done.stdout


def test_no_arguments_show_the_help(cli: Cli) -> None:
    done = cli()
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage" in done.stdout


def test_help_of_run_explains_every_flag_and_has_examples(cli: Cli) -> None:
    done = cli("run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    flags = (
        "--config -c --model -m --trials -n --output -o --set --dry-run --json --quiet -q --fresh"
    )
    for flag in flags.split():
        assert re.search(rf"^  .*(?<!\S){flag}(,| ).*  \w+", done.stdout, re.MULTILINE), flag
    assert "Examples" in done.stdout
    assert "tgsent run --model gpt2 --trials 3" in done.stdout
    assert "130 interrupted" in done.stdout


def test_help_is_there_at_once() -> None:
    """Beside what the two libraries take by themselves; of many runs, the least disturbed ones."""
    bare = [sys.executable, "-c", "import typer, rich"]
    helps = [sys.executable, "-m", "tgsent", "--help"]
    seconds: dict[str, list[float]] = {"bare": [], "help": []}
    for _ in range(10):
        for name, command in (("bare", bare), ("help", helps)):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=cli_environment())
            seconds[name].append(time.perf_counter() - started)
    assert min(seconds["help"]) < 2 * min(seconds["bare"]), seconds


@pytest.mark.parametrize(
    "arguments", [None, ["--help"], ["run", "--help"], ["run", "--set", "x=1"], ["run", "-c", "no"]]
)
def test_heavy_libraries_stay_away(arguments: list[str] | None) -> None:
    script = (
        "import sys, tgsent.cli\n"
        "sys.argv[0] = 'tgsent'\n"
        "try:\n"
        "    sys.argv[1:] == ['import'] or tgsent.cli.main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'sklearn', 'numpy', 'scipy', 'accelerate'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *(["import"] if arguments is None else arguments)],
        capture_output=True,
        text=True,
        env=cli_environment(),
    )
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--nope"], "No such option: --nope"),
        (["walk"], "No such command 'walk'"),
        (["run", "more"], "(more)"),
        (["run", "-n", "many"], "'-n' / '--trials'"),
        (["run", "-n", "0"], "trials (--trials): must be greater than or equal to 1, not 0"),
        (["run", "-c", "articel"], "articel: cannot read this config: No such file or directory;"),
        (
            ["run", "-c", "wrong.yaml"],
            "training.epoch (line 1): unknown key; did you mean `epochs`?",
        ),
        (["run", "--set", "trials"], "--set trials: must be KEY=VALUE"),
        (["run", "--set", "traning.epochs=1"], "did you mean `training`?"),
        (["run", "--set", "data.path=no.csv"], "no.csv: cannot read the data: No such file"),
        (
            ["run", *ON_TEXTS, "--set", "data.test_fraction=0.01"],
            "60 texts of 3 labels cannot be split",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_few_lines(
    arguments: list[str], message: str, cli: Cli, tmp_path: Path
) -> None:
    write_texts(tmp_path)
    (tmp_path / "wrong.yaml").write_text("training: {epoch: 3}\n")
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tgsent: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not (tmp_path / "runs").exists()


def test_the_traceback_is_for_those_who_ask(cli: Cli) -> None:
    done = cli("run", "-c", "no", env={"TGSENT_DEBUG": "1"})
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tgsent: no: cannot read this config")


def test_without_sentiment140_the_ways_out_are_named(cli: Cli) -> None:
    done = cli("run", "--quiet", "--set", "training.init=tiny")
    assert (done.returncode, done.stdout) == (3, "")
    for way in ("TGSENT_SENTIMENT140", "--set data.path=FILE", "-c smoke"):
        assert way in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_model_that_does_not_exist_is_found_out_before_anything_runs(
    cli: Cli, tmp_path: Path
) -> None:
    write_texts(tmp_path)
    done = cli("run", "-m", "gpt2", "-m", "./nowhere", *ON_TEXTS)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "tgsent: ./nowhere: no such folder; name a folder that holds a model\n"
    assert not (tmp_path / "runs").exists()


def test_shells_can_complete(tmp_path: Path) -> None:
    script = "import sys; sys.argv = ['tgsent', *sys.argv[1:]]; from tgsent.cli import main; main()"

    def tgsent_with(env: dict[str, str], *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *args],
            capture_output=True,
            text=True,
            env=cli_environment(env),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = tgsent_with(
        {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}, "--show-completion", "bash"
    )
    assert "_TGSENT_COMPLETE=complete_bash" in shown
    asked = {
        "_TGSENT_COMPLETE": "complete_bash",
        "COMP_WORDS": "tgsent run --dr",
        "COMP_CWORD": "2",
    }
    assert tgsent_with(asked).split() == ["--dry-run"]


# -------------------------------------------------------------------------------------- dry run


def test_a_dry_run_shows_what_would_be_done_and_does_nothing(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    done = cli(*RUN, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    config, _, plan = done.stdout.partition("\n\n" + "data ")
    (tmp_path / "shown.yaml").write_text(config)
    assert load(str(tmp_path / "shown.yaml")).training.epochs == 1
    for part in (
        "texts.csv: 60 rows, 0 repeated texts (0 dropped), 60 sampled",
        "trial 2   train 48 (16 anger, 16 calm, 16 joy); test 12 (4 anger, 4 calm, 4 joy)",
        "gpt2 (",
        "t5 (",
        "2 optimizer steps at ",
        " trained)",
        "MB for weights, gradients and optimizer state",
        "FLOP for training",
    ):
        assert part in plan
    assert re.search(r"training prompt +'.*Tweet: so .*\\nSentiment: (joy|anger|calm)<\|", plan)
    assert re.search(r"test prompt +'.*Tweet: so .*\\nSentiment:'", plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shown.yaml", "texts.csv"]


def test_a_dry_run_as_json_is_one_document(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    done = cli(*RUN, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["config"]["data"]["path"] == "texts.csv"
    assert [split["test"] for split in plan["splits"]] == [{"anger": 4, "calm": 4, "joy": 4}] * 2
    assert [model["model"] for model in plan["models"]] == ["gpt2", "t5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.csv"]


# ------------------------------------------------------------------------------------------ run


@pytest.fixture(scope="session")
def first_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> FirstRun:
    """A finished run: its working folder, and what it printed."""
    folder = tmp_path_factory.mktemp("first")
    write_texts(folder)
    return folder, Running(RUN, folder, cli_environment()).ended()


@pytest.fixture
def finished(first_run: FirstRun, tmp_path: Path) -> Path:
    """A working folder of one's own where the run is finished."""
    shutil.copytree(first_run[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_prints_its_table_and_tells_its_progress(
    first_run: FirstRun,
) -> None:
    _, done = first_run
    assert done.returncode == 0, done.stderr
    assert "default: macro-F1" in done.stdout
    rows = re.findall(r"^│ (\S+) +│ +([\d.]+) │ +([\d.]+) │", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["gpt2", "t5"]
    assert (
        len(re.findall(r"^(gpt2|t5) trial [12]: epoch 1/1, mean loss", done.stderr, re.MULTILINE))
        == 4
    )
    assert len(re.findall(r"^(gpt2|t5) trial [12]: macro-F1 \d", done.stderr, re.MULTILINE)) == 4
    assert len(progress_of(done)) == 8
    assert all(re.match(r"tgsent: (warning: )?(gpt2|t5)", line) for line in notes_of(done))
    assert "\x1b" not in done.stdout + done.stderr


def test_a_run_folder_holds_what_is_promised(
    first_run: FirstRun,
) -> None:
    folder = first_run[0] / "runs/default"
    trials = [f"{model}/trial-{k}" for model in ("gpt2", "t5") for k in (1, 2)]
    expected = (
        ["config.yaml", "manifest.json", "report.html", "report.md"]
        + ["results.csv", "results.json"]
        + [
            f"{trial}/{name}"
            for trial in trials
            for name in ("log.jsonl", "metrics.json", "predictions.csv")
        ]
    )
    assert sorted(contents(folder, "*.*")) == sorted(expected)
    assert load(str(folder / "config.yaml")).trials == 2

    results = json.loads((folder / "results.json").read_text())
    assert (results["schema_version"], results["name"]) == (1, "default")
    assert "article" not in results
    manifest = json.loads((folder / "manifest.json").read_text())
    assert results["manifest"] == manifest
    assert manifest["finished"] >= manifest["started"]
    for model in results["models"]:
        for k, metrics in enumerate(model["trials"], start=1):
            trial = folder / model["model"] / f"trial-{k}"
            assert metrics == json.loads((trial / "metrics.json").read_text())
            assert metrics["split_sha256"] == manifest["splits"][k - 1]["sha256"]
            with (trial / "predictions.csv").open(newline="", encoding="utf-8") as file:
                assert len(list(csv.DictReader(file))) == metrics["n_test"] == 12


def test_the_same_command_in_another_folder_gives_the_same_predictions(
    first_run: FirstRun, cli: Cli, tmp_path: Path
) -> None:
    write_texts(tmp_path)
    done = cli(*RUN, "--json", "-q", "-o", "elsewhere")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "elsewhere/default"
    assert done.stdout == (folder / "results.json").read_text(encoding="utf-8")
    predictions = contents(folder, "predictions.csv")
    assert len(predictions) == 4
    assert predictions == contents(first_run[0] / "runs/default", "predictions.csv")


def test_the_same_command_again_runs_nothing_twice(finished: Path, cli: Cli) -> None:
    before = contents(finished / "runs", "trial-*/*")
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("trial-*/*")}
    done = cli(*RUN)
    assert done.returncode == 0
    assert progress_of(done) == ["already finished: 4 of 4 trials"]
    assert "gpt2" in done.stdout
    assert contents(finished / "runs", "trial-*/*") == before
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("trial-*/*")} == times


def test_an_unfinished_trial_is_run_again_to_the_same_result(finished: Path, cli: Cli) -> None:
    before = contents(finished / "runs", "predictions.csv")
    trial = finished / "runs/default/gpt2/trial-2"
    (trial / "metrics.json").write_text('{"macro_f1": 0.')
    (trial / "predictions.csv").unlink()
    done = cli(*RUN)
    assert done.returncode == 0
    assert done.stderr.startswith("already finished: 3 of 4 trials\ngpt2 trial 2: epoch 1/1,")
    assert len(progress_of(done)) == 3
    assert contents(finished / "runs", "predictions.csv") == before


def test_fresh_moves_the_old_results_aside(finished: Path, cli: Cli) -> None:
    before = contents(finished / "runs/default", "*.*")
    done = cli("run", "-m", "gpt2", "-n", "1", *RUN[7:], "--fresh")
    assert done.returncode == 0
    (aside,) = (finished / "runs").glob("default.old-*")
    assert f"the old results are now in runs/{aside.name}" in done.stderr
    assert contents(aside, "*.*") == before
    assert [p.name for p in (finished / "runs/default").iterdir() if p.is_dir()] == ["gpt2"]


def test_other_settings_do_not_mix_with_old_results(finished: Path, cli: Cli) -> None:
    before = contents(finished / "runs", "*.*")
    done = cli(*RUN, "--set", "training.weight_decay=0.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert "training.weight_decay was 0.01 and is now 0.5" in done.stderr
    assert "--fresh" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert contents(finished / "runs", "*.*") == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_in_the_middle_of_a_trial(
    sent: signal.Signals, cli: Cli, tmp_path: Path
) -> None:
    write_texts(tmp_path)
    command = ("run", "-m", "gpt2", "-n", "1", *ON_TEXTS, "--set", "training.epochs=100")
    process = Running(command, tmp_path, cli_environment())
    process.wait_for("gpt2 trial 1: epoch 1/100, mean loss")
    started = time.monotonic()
    process.send(sent)
    done = process.ended(60)
    assert (done.returncode, done.stdout) == (130, "")
    assert time.monotonic() - started < 10
    *progress, last = done.stderr.splitlines()
    told = "tgsent: interrupted: gpt2 trial 1 after step (\\d+) of 200; run the same command again"
    found = re.fullmatch(f"{told} to resume", last)
    assert found, last
    assert all(line.startswith("gpt2 trial 1: epoch ") for line in progress)
    again = cli(*command)
    assert again.returncode == 0, again.stderr
    assert again.stderr.splitlines()[0] == f"gpt2 trial 1: resumes after step {found[1]} of 200"
    assert not list((tmp_path / "runs").rglob("checkpoint"))


def test_a_second_interrupt_leaves_at_once_and_keeps_what_is_finished(
    cli: Cli, tmp_path: Path
) -> None:
    write_texts(tmp_path)
    slow = "models=[gpt2, {model: t5, training: {epochs: 100}}]"
    command = ("run", "-n", "1", *ON_TEXTS, "--set", slow, "--set", "training.epochs=1")
    process = Running(command, tmp_path, cli_environment())
    process.wait_for("t5 trial 1: epoch 1/100")
    for _ in range(2):
        process.send(signal.SIGINT)
        time.sleep(0.001)
    done = process.ended(60)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("tgsent: interrupted")
    assert (tmp_path / "runs/default/gpt2/trial-1/metrics.json").exists()
    again = cli(*command)
    assert again.returncode == 0, again.stderr
    assert again.stderr.startswith("already finished: 1 of 2 trials\n")


def test_a_secret_is_shown_and_written_nowhere(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    secret = "hf_planted0123456789"
    models = "models=[{model: gpt2, training: {learning_rate: 1.0e+30}}, t5]"
    keep = "output.save_model=all"
    done = cli(
        *("run", "-n", "1", *ON_TEXTS, "--set", models, "--set", "training.epochs=2"),
        *("--set", keep, "--set", f"prompt.input=http://me:{secret}@hub {{text}} ="),
        env={"HF_TOKEN": secret, "TGSENT_DEBUG": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert secret not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        # what the user writes into a prompt is part of the experiment
        if path.is_file() and path.name not in {"config.yaml", "README.md"}:
            assert secret.encode() not in path.read_bytes(), path
    manifest = json.loads((tmp_path / "runs/default/manifest.json").read_bytes())
    assert "prompt.input=http://***@hub {text} =" in manifest["command"]


def test_nothing_in_the_data_is_obeyed(cli: Cli, tmp_path: Path) -> None:
    """Not by a terminal, and not by a spreadsheet."""
    labels = ("-a", "\x1b[31mb")
    rows = [f'"=cmd()|\x1b]0;hacked\x07 {i}","{labels[i % 2]}"' for i in range(40)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]), "utf-8")
    command = ("run", "-m", "gpt2", "-n", "1", *ON_TEXTS, "--set", "training.epochs=1")
    for more in ((), ("--dry-run",), ("--json",)):
        done = cli(*command, *more)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x07" not in done.stdout + done.stderr
    written = (tmp_path / "runs/default/gpt2/trial-1/predictions.csv").read_text("utf-8")
    for cells in csv.reader(written.splitlines()):
        assert not any(cell.startswith(("=", "-", "+", "@")) for cell in cells)


def test_one_failed_trial_leaves_the_others_and_is_told(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    diverging = "models=[{model: gpt2, training: {learning_rate: 1.0e+30}}, t5]"
    command = ("run", "-n", "1", *ON_TEXTS, "--set", diverging, "--set", "training.epochs=2")
    done = cli(*command)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^│ gpt2 +│ +failed │ +- │", done.stdout, re.MULTILINE)
    assert re.search(r"^│ t5 +│ +[\d.]+ │ +[\d.]+ │", done.stdout, re.MULTILINE)
    assert re.search(
        r"^tgsent: gpt2 trial 1 failed: .*the loss is nan at step", done.stderr, re.MULTILINE
    )
    models = json.loads((tmp_path / "runs/default/results.json").read_text("utf-8"))["models"]
    assert [model["macro_f1"]["mean"] is None for model in models] == [True, False]
    assert [[one["trial"] for one in model["failed"]] for model in models] == [[1], []]


def test_the_model_of_the_first_trial_is_kept_where_asked(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    done = cli(*RUN, "--set", "output.save_model=first", "--set", "models=[gpt2]")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/default/gpt2"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (folder / "trial-1/model").iterdir()
    }
    assert not (folder / "trial-2/model").exists()
    again = ("run", "-m", str(folder / "trial-1/model"), "-n", "1", *ON_TEXTS)
    done = cli(*again, "--set", "training.init=pretrained", "--set", "name=again")
    assert done.returncode == 0, done.stderr


def test_a_terminal_gets_bars_with_speed_and_loss(tmp_path: Path) -> None:
    write_texts(tmp_path)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = ("run", "-m", "gpt2", "-n", "1", *ON_TEXTS, "--set", "training.epochs=2")
    with subprocess.Popen(
        [sys.executable, "-m", "tgsent", *command],
        cwd=tmp_path,
        env=cli_environment({"TERM": "xterm-256color"}),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        encoding="utf-8",
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a pseudo-terminal says that all have hung up
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert process.stdout is not None
        assert "default: macro-F1" in process.stdout.read()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode("utf-8"))
    for task in ("loading", "epoch 1/2", "epoch 2/2", "evaluation"):
        assert f"gpt2 trial 1, {task}" in text
    assert re.search(r"epoch 2/2 .*48/48 \d+/s loss \d\.\d{3}", text)
    assert "mean loss" not in text


def test_a_dry_run_counts_the_padding_that_the_recipe_asks_for(cli: Cli, tmp_path: Path) -> None:
    write_texts(tmp_path)
    tokens = []
    for padding in ("longest", "max_tokens"):
        setting = f"training.padding={padding}"
        done = cli("run", "-m", "gpt2", *ON_TEXTS, "--set", setting, "--dry-run", "--json")
        plan = json.loads(done.stdout)
        tokens.append(plan["models"][0]["training_tokens"])
        training, n_train = plan["config"]["training"], sum(plan["splits"][0]["train"].values())
    assert tokens[1] == n_train * training["epochs"] * training["max_tokens"]
    assert tokens[0] < tokens[1]


# ----------------------------------------------------------------------------------- the report


def test_a_report_can_be_made_again_in_every_format(finished: Path, cli: Cli) -> None:
    folder = finished / "runs/default"

    def report(*args: str) -> str:
        done = cli("report", "runs/default", *args, cwd=finished)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    table = report()
    assert table == report("--format", "table")
    assert "gpt2 has the highest mean" in table or "t5 has the highest mean" in table
    assert report("--format", "json").encode() == (folder / "results.json").read_bytes()
    for form, name in (("csv", "results.csv"), ("html", "report.html"), ("markdown", "report.md")):
        assert report("--format", form).encode() == (folder / name).read_bytes()
    assert report("-o", "mine.html") == ""
    assert (finished / "mine.html").read_bytes() == (folder / "report.html").read_bytes()
    assert report("-o", "mine.txt", "--format", "csv") == ""
    assert (finished / "mine.txt").read_bytes() == (folder / "results.csv").read_bytes()


def test_several_runs_are_put_in_one_table_or_it_is_said_why_not(finished: Path, cli: Cli) -> None:
    assert finished.is_dir()
    more = ("-m", "tfidf", "-n", "2", *ON_TEXTS, "--set", "name=more")
    assert cli("run", *more).returncode == 0
    both = cli("report", "runs/default", "runs/more")
    assert both.returncode == 0
    assert "default + more: macro-F1" in both.stdout
    assert all(f"│ {name}" in both.stdout for name in ("gpt2", "t5", "tfidf"))
    assert cli("run", *more[:4], *ON_TEXTS, "--set", "name=odd", "--set", "seed=4").returncode == 0
    refused = cli("report", "runs/default", "runs/odd")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "trial 1 was tested on other texts" in refused.stderr
    assert "seed is 1 and 4" in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("runs/default/gpt2",), "is not a run folder: it has no manifest.json"),
        (("nowhere",), "is not a run folder"),
        ((), "Missing argument"),
        (("runs/default", "--format", "pdf"), "'pdf' is not one of"),
        (("runs/default", "-o", "report.pdf"), "name the format with --format, or by one of .md"),
        (("runs/default", "-o", "nowhere/deep.md"), ""),
    ],
)
def test_what_cannot_be_reported_is_told(
    args: tuple[str, ...], message: str, finished: Path, cli: Cli
) -> None:
    done = cli("report", *args, cwd=finished)
    assert done.returncode == (2 if message else 0)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_report_for_a_file_is_neither_cut_nor_coloured(finished: Path) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "tgsent", "report", "runs/default", "-o", "table.txt"],
        cwd=finished, env=cli_environment({"TERM": "xterm"}), stdout=follower, stderr=follower,
    ) as process:  # fmt: skip
        os.close(follower)
        assert process.wait(60) == 0
    os.close(leader)
    table = (finished / "table.txt").read_text()
    assert "\x1b" not in table
    assert "trial 1 ┃ trial 2" in table


def test_a_wrong_flag_names_the_help_of_its_command(cli: Cli) -> None:
    assert "(see tgsent run --help)" in cli("run", "-n", "x").stderr
    assert "(see tgsent report --help)" in cli("report").stderr
    assert "(see tgsent --help)" in cli("rum").stderr


def test_a_dry_run_asks_for_the_device(cli: Cli, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is the device that is to be missing")
    write_texts(tmp_path)
    done = cli(*RUN, "--dry-run", "--set", "training.device=cuda")
    assert done.returncode == 3
    assert "there is no cuda device on this machine" in done.stderr
