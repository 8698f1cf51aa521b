"""Where the package SimpleT5 lives: with stand-ins for interpreters; nothing is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Cli
from tgsent.backends.simplet5 import environment
from tgsent.errors import UnavailableError

VERSIONS = {"simplet5": "0.1.4", "transformers": "4.57.6"}


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no interpreter named."""
    monkeypatch.setenv("TGSENT_CACHE", str(tmp_path))
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    return tmp_path


class Maker:
    """Stands for venv and pip: remembers what was run, and writes an interpreter that works."""

    def __init__(self, fail_at: str = "nothing") -> None:
        self.fail_at = fail_at
        self.ran: list[str] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        line = " ".join(map(str, command))
        self.ran.append(line)
        if not Path(command[0]).exists():
            raise FileNotFoundError(2, "No such file", command[0])
        if "-m venv" in line:
            write_script(Path(command[-1], "bin/python"), "true")
        out = json.dumps(VERSIONS) if "m.version" in line else ""
        return subprocess.CompletedProcess(command, int(self.fail_at in line), out, "no such wheel")


@pytest.fixture
def maker(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker()
    monkeypatch.setattr(environment.subprocess, "run", made)
    return made


def test_torch_has_the_bounds_of_the_project() -> None:
    torch, *others = environment.requirements()
    assert re.fullmatch(r"torch[<>=0-9.,]+", torch)
    assert "transformers==4.57.*" in others


def test_the_place_depends_on_what_is_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = environment.folder()
    assert before.parent == cache
    assert environment.folder() == before
    monkeypatch.setattr(environment, "_NEEDED", ("transformers==4.57.1",))
    assert environment.folder() != before


def test_it_is_made_once_then_checked(maker: Maker) -> None:
    told: list[str] = []
    environment.set_up(told.append)
    venv, pip, package, imported, _ = maker.ran
    assert venv == f"{sys.executable} -m venv {environment.folder()}"
    assert "torch" in pip
    assert "--no-deps" not in pip
    assert package.endswith("install --no-deps simplet5==0.1.4")
    assert "from simplet5 import SimpleT5" in imported
    assert told[-1] == "ready: simplet5 0.1.4, transformers 4.57.6"
    assert environment.find() == (environment.folder() / "bin/python", VERSIONS)

    maker.ran.clear()
    environment.set_up(told.append)
    assert len(maker.ran) == 1
    assert told[-1] == f"the package simplet5 is set up in {environment.folder()}"

    environment.set_up(told.append, fresh=True)
    assert sum("-m venv" in line for line in maker.ran) == 1


def test_what_is_broken_is_made_anew(maker: Maker) -> None:
    environment.set_up(lambda _: None)
    (environment.folder() / "bin/python").unlink()
    told: list[str] = []
    environment.set_up(told.append)
    assert any("is broken and is rebuilt: import simplet5 cannot be run" in line for line in told)
    assert environment.find()[1] == VERSIONS


@pytest.mark.parametrize("step", ["-m venv", "transformers", "--no-deps", "import SimpleT5"])
def test_half_of_it_never_looks_whole(step: str, maker: Maker) -> None:
    environment.set_up(lambda _: None)
    maker.fail_at = step
    with pytest.raises(UnavailableError, match=r"failed \(exit code 1\): no such wheel"):
        environment.set_up(lambda _: None, fresh=True)
    with pytest.raises(UnavailableError, match="not set up yet"):
        environment.find()


def test_an_environment_that_lost_its_interpreter(cache: Path) -> None:
    folder = environment.folder()
    folder.mkdir()
    (folder / "ready.json").write_text("{}")
    with pytest.raises(
        UnavailableError, match=r"no Python that has the.*\n.*setup-simplet5 --fresh"
    ):
        environment.find()


def test_a_named_interpreter_is_asked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chosen, reason in (
        (tmp_path / "nowhere", "No such file"),
        (write_script(tmp_path / "lacks", "echo 'no package simplet5' >&2; exit 1"), "no package"),
        (write_script(tmp_path / "chats", "echo hello"), "Expecting value"),
    ):
        monkeypatch.setenv(environment.VARIABLE, str(chosen))
        with pytest.raises(UnavailableError, match=f"{environment.VARIABLE}: .*{reason}"):
            environment.find()
    python = write_script(tmp_path / "has", f"echo '{json.dumps(VERSIONS)}'")
    monkeypatch.setenv(environment.VARIABLE, str(python))
    assert environment.find() == (python, VERSIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(environment.VARIABLE, "./has")
    assert environment.find() == (python, VERSIONS)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(environment.VARIABLE, "has")
    assert environment.find() == (python, VERSIONS)


def test_a_missing_environment_is_told_before_anything_runs(cli: Cli, tmp_path: Path) -> None:
    nowhere = {"TGSENT_CACHE": str(tmp_path / "cache"), environment.VARIABLE: ""}
    on_sample = (
        "run", "-m", "t5", "--set", "data.path=sample", "--set", "data.sample_size=null",
        "--set", "training.init=tiny", "--set", "training.backend=simplet5",
    )  # fmt: skip
    message = (
        "tgsent: training.backend: the package simplet5 is not set up yet;"
        " this command does it, once:\ntgsent setup-simplet5\n"
    )
    done = cli(*on_sample, env=nowhere)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", message)
    assert not (tmp_path / "runs").exists()
    done = cli(*on_sample, "--dry-run", env=nowhere)
    assert (done.returncode, done.stderr) == (3, message)
    assert "trial 1" in done.stdout


def test_a_set_up_that_fails_says_why(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("setup-simplet5", env={"TGSENT_CACHE": str(tmp_path / "file")})
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
