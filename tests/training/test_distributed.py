"""Several processes that share each trial: what they do is what one does."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli_process import Running
from conftest import Cli, cli_environment
from run_folders import write_texts

# of 96 training texts, 19 at a time, the last batch has one: nothing for the second process
SETTINGS = (
    "-m", "gpt2", "-m", "t5", "-n", "1", "--set", "data.path=texts.csv",
    "--set", "data.sample_size=null", "--set", "data.test_fraction=0.2",
    "--set", "training.init=tiny", "--set", "training.epochs=2", "--set", "training.batch_size=19",
    "--set", "training.gradient_accumulation=2", "--set", "training.device=cpu",
)  # fmt: skip
LONG = ("--set", "models=[gpt2]", "--set", "training.epochs=30", "--set", "trials=1")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts.csv")
    return tmp_path


def alone(place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return Running(("run", *SETTINGS, *more), place, cli_environment()).ended()


def together(place: Path, *more: str, **env: str) -> list[Running]:
    """Start two processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", **env}
    return [
        Running(
            ("run", *SETTINGS, *more), place,
            cli_environment({**where, "RANK": rank, "LOCAL_RANK": rank}),
        )
        for rank in ("0", "1")
    ]  # fmt: skip


def ends(processes: list[Running]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    done = [process.ended() for process in processes]
    return [(one.returncode, one.stdout, one.stderr) for one in done]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_bytes())
    return found


def losses(folder: Path) -> list[float]:
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("*/trial-1/log.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [row["loss"] for row in rows]


def answers(folder: Path) -> dict[str, bytes]:
    found = folder.glob("*/trial-*/predictions.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_two_processes_do_what_one_does(place: Path) -> None:
    one = alone(place, "--set", "name=one")
    assert one.returncode == 0, one.stderr
    main, other = ends(together(place, "--set", "name=two"))
    assert main[0] == other[0] == 0, main[2] + other[2]
    assert other[1:] == ("", "")
    folders = place / "runs/one", place / "runs/two"
    assert losses(folders[1]) == pytest.approx(losses(folders[0]), rel=1e-4)
    assert answers(folders[0]) == answers(folders[1])
    found = [[m["trials"][0] for m in results(folder)["models"]] for folder in folders]
    for ours, theirs in zip(*found, strict=True):
        assert ours["macro_f1"] == theirs["macro_f1"]
        assert (ours["steps"], ours["n_train"]) == (theirs["steps"], theirs["n_train"]) == (12, 96)
        assert (ours["processes"], theirs["processes"]) == (1, 2)
    files = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in folders]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--nproc-per-node", "2"),
        pytest.param(
            ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_launchers_start_them(place: Path, launcher: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"--{'master-port' if 'torch' in launcher[0] else 'main_process_port'}"
        where = (port, str(free.getsockname()[1]))
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *where, "-m", "tgsent", "run", *SETTINGS,
         "--set", "models=[t5, tfidf]", "--set", "trials=2",
         "--set", "training.report_to=[tensorboard]", "--json"],
        cwd=place, env=cli_environment(), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    neural, fitted = json.loads(done.stdout)["models"]
    assert (neural["trials"][1]["processes"], fitted["trials"][1]["processes"]) == (2, 1)
    assert len(list(place.glob("runs/default/t5/trial-*/trackers/**/events.*"))) >= 2


def wait_for_a_checkpoint(place: Path) -> None:
    deadline = time.monotonic() + 480
    while not list(place.glob("runs/*/gpt2/trial-1/checkpoint/*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_the_run_and_any_number_goes_on(place: Path, rank: int) -> None:
    processes = together(place, *LONG)
    wait_for_a_checkpoint(place)
    processes[rank].send(signal.SIGKILL)
    code, _, told = ends(processes)[1 - rank]
    assert code == 1
    assert "another of the 2 processes has ended" in told
    assert "resume from the last checkpoint" in told
    assert "Traceback" not in told
    if rank:
        again = alone(place, *LONG)
        code, told = again.returncode, again.stderr
    else:
        code, _, told = ends(together(place, *LONG))[0]
    assert code == 0, told
    assert "resumes after step " in told
    assert alone(place, *LONG, "--set", "name=whole").returncode == 0
    assert losses(place / "runs/default") == pytest.approx(losses(place / "runs/whole"), rel=0.02)


def test_a_signal_to_one_stops_all_with_a_checkpoint(place: Path) -> None:
    processes = together(place, *LONG, "--set", "training.epochs=500")
    wait_for_a_checkpoint(place)
    processes[1].send(signal.SIGTERM)
    main, other = ends(processes)
    assert (main[0], other[0]) == (130, 130)
    assert "run the same command again to resume" in main[2]
    assert other[2] == ""


@pytest.mark.parametrize(
    ("more", "env", "message"),
    [
        (("--engine", "ray"), {}, "--engine ray starts processes itself: start one tgsent only"),
        ((), {"ACCELERATE_USE_FSDP": "true"}, "accelerate is set to FSDP: tgsent shares out"),
        (("--set", "trialss=1"), {}, "unknown key; did you mean `trials`?"),
    ],
)
def test_what_they_cannot_do_is_said_once(
    place: Path, more: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    main, other = ends(together(place, *more, **env))
    assert (main[0], other[0]) == (2, 2)
    assert message in main[2]
    assert other[2] == ""
    assert not (place / "runs").exists()


def test_what_the_main_process_refuses_ends_the_others(place: Path) -> None:
    main, other = ends(together(place, "--set", "data.path=nowhere.csv"))
    assert (main[0], other[0]) == (2, 0)
    assert "nowhere.csv: cannot read the data" in main[2]
    assert other[2] == ""


@pytest.mark.parametrize(
    ("command", "env", "message"),
    [
        (("report", "."), {"WORLD_SIZE": "2", "RANK": "0"}, "tgsent report is for one process"),
        (("run", "-c", "smoke"), {"WORLD_SIZE": "2"}, "but RANK does not say which one this is"),
        (
            ("run", "-c", "smoke", "--dry-run"),
            {"WORLD_SIZE": "2", "RANK": "0"},
            "--dry-run is for one process",
        ),
    ],
)
def test_what_is_for_one_process(
    command: tuple[str, ...], env: dict[str, str], message: str, cli: Cli
) -> None:
    done = cli(*command, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
