"""Trials as processes of their own, in one run folder: what shells and clusters do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_process import Running
from conftest import ROOT, Cli, cli_environment
from run_folders import write_texts

SETTINGS = (
    "-m", "gpt2", "-m", "tfidf", "-m", "majority", "--set", "data.path=texts.csv",
    "--set", "data.sample_size=null", "--set", "data.test_fraction=0.2",
    "--set", "training.init=tiny", "--set", "training.epochs=1",
)  # fmt: skip
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts.csv")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """The answers of every trial."""
    found = folder.rglob("predictions.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def script(name: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ROOT / "scripts" / name), *args], cwd=cwd,
        env=cli_environment({"PATH": PATH, **env}), capture_output=True, text=True,
    )  # fmt: skip


def test_three_processes_at_once_do_what_one_does(place: Path, cli: Cli) -> None:
    swept = script("sweep.sh", "3", *SETTINGS, "-n", "1", cwd=place)
    assert swept.returncode == 0, swept.stderr
    assert all(f"│ {name}" in swept.stdout for name in ("gpt2", "tfidf", "majority"))
    whole = cli("run", *SETTINGS, "-n", "1", "--set", "name=whole")
    assert whole.returncode == 0, whole.stderr
    again = cli("run", *SETTINGS, "-n", "1")
    assert (again.returncode, again.stdout) == (0, swept.stdout)  # nothing is left to do
    assert len(contents(place / "runs/default")) == 3
    assert contents(place / "runs/default") == contents(place / "runs/whole")
    ours, theirs = (
        json.loads((place / f"runs/{name}/results.json").read_bytes())
        for name in ("default", "whole")
    )
    for key in ("verdict", "comparisons", "signature"):
        assert ours[key] == theirs[key]
    assert [m["macro_f1"] for m in ours["models"]] == [m["macro_f1"] for m in theirs["models"]]
    assert ours["manifest"]["finished"]
    assert not [path for path in (place / "runs/default").rglob(".*") if path.is_file()]


@pytest.mark.slow
def test_a_failed_trial_fails_its_own_process_and_the_sweep(place: Path, cli: Cli) -> None:
    models = "models=[{model: gpt2, training: {learning_rate: 1.0e+30}}, majority]"
    wrong = ("-n", "1", *SETTINGS[6:], "--set", models)
    fine = cli("run", *wrong, "--only", "majority:1")
    assert fine.returncode == 0, fine.stderr
    assert cli("run", *wrong, "--only", "gpt2:1").returncode == 1
    finished = place / "runs/default/majority/trial-1/predictions.csv"
    written = finished.stat().st_mtime_ns
    swept = script("sweep.sh", "2", *wrong, cwd=place)
    assert swept.returncode == 1
    assert "failed" in swept.stdout
    assert finished.stat().st_mtime_ns == written  # it does what is missing, and nothing else


@pytest.mark.parametrize(
    ("task", "trial"), [pytest.param("0", "tfidf:1", marks=pytest.mark.slow), ("3", "majority:2")]
)
def test_a_task_of_a_slurm_array_runs_its_trial(task: str, trial: str, place: Path) -> None:
    done = script(
        "slurm_array.sh", cwd=place, SLURM_ARRAY_TASK_ID=task, MODELS="tfidf majority",
        TRIALS="2", OPTIONS=" ".join(SETTINGS[6:]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model, _, number = trial.partition(":")
    assert list(contents(place / "runs/default")) == [f"{model}/trial-{number}/predictions.csv"]


def test_a_trial_that_is_being_run_is_not_run_twice(place: Path, cli: Cli) -> None:
    slow = ("run", *SETTINGS[:2], *SETTINGS[6:-2], "-n", "2", "--set", "training.epochs=400")
    process = Running((*slow, "--only", "gpt2:1"), place, cli_environment())
    process.wait_for("gpt2 trial 1: epoch 1/400")
    for more in ((), ("--only", "gpt2:1")):
        refused = cli(*slow, *more)
        assert refused.returncode == 2
        assert f"process {process.pid} on " in refused.stderr
        assert "is running gpt2 trial 1; wait for it" in refused.stderr
    process.send(signal.SIGKILL)
    process.ended()
    started = time.monotonic()
    quick = cli(*slow, "--only", "gpt2:2", "--dry-run")  # what a dead process held is free
    assert quick.returncode == 0
    assert time.monotonic() - started < 60
    shutil.rmtree(place / "runs")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--only", "gpt2:3"), "a model of gpt2, tfidf, majority and a trial of 1 to 2"),
        (("--only", "t5:1"), '--only: there is no trial "t5:1"; it takes MODEL:TRIAL'),
        (("--only", "gpt2"), '--only: there is no trial "gpt2"'),
        (("--only", "gpt2:1", "--fresh"), "--only adds to a run folder"),
    ],
)
def test_what_is_no_trial_is_refused(
    args: tuple[str, ...], message: str, place: Path, cli: Cli
) -> None:
    done = cli("run", *SETTINGS, "-n", "2", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not (place / "runs").exists()
