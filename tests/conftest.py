"""What several test files share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the tests run in parallel
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network

import pytest
from hypothesis import settings

import cli_process
from tgsent.backends.simplet5 import environment
from tgsent.errors import UnavailableError

# the tests have cache folders of their own, but share this one thing that takes minutes to make
with contextlib.suppress(UnavailableError):
    os.environ[environment.VARIABLE] = str(environment.find()[0])

settings.register_profile("tgsent", derandomize=True, deadline=None)
settings.load_profile("tgsent")

ROOT = Path(__file__).parents[1]
_NOWHERE = "http://127.0.0.1:9/archive.zip"


_LONGEST = ("test_torture.py", "test_scripted.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker has to wait for it at the end."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests off the user's cache folder."""
    monkeypatch.setenv("TGSENT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and tokenizers that lies beside some checkouts."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared with real tweets and tokenizers, which this checkout lacks")
    return folder


@pytest.fixture(scope="session")
def tweets(shared: Path) -> Path:
    """60,000 tweets of Sentiment140."""
    return shared / "data/sentiment140_60k.csv"


@pytest.fixture(scope="session")
def gpt2_folder(shared: Path) -> Path:
    """GPT-2's tokenizer and configuration, without weights."""
    return shared / "models/gpt2"


@pytest.fixture(scope="session")
def gpt_neo_folder(shared: Path) -> Path:
    """GPT-Neo's tokenizer and configuration, without weights."""
    return shared / "models/gpt-neo-125m"


@pytest.fixture(scope="session")
def t5_folder(shared: Path) -> Path:
    """T5's tokenizer and configuration, without weights."""
    return shared / "models/t5-base"


def simplet5_problem() -> str | None:
    """Why the package SimpleT5 cannot be used, or None if it can."""
    try:
        environment.find()
    except UnavailableError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def simplet5() -> None:
    """Ask for the environment of the package SimpleT5; `scripts/check.sh` makes sure of it."""
    if problem := simplet5_problem():
        if os.environ.get("TGSENT_TESTS_NEED_SIMPLET5"):
            pytest.fail(problem)
        pytest.skip(problem)


class Cli(Protocol):
    """Runs `tgsent ARGS` as a process of its own, in an empty folder unless told otherwise."""

    def __call__(
        self,
        *args: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]: ...


def cli_environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """This environment, less what changes how the command line behaves or looks, or downloads."""
    changing = ("TGSENT_", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERMINAL_WIDTH", "GITHUB_ACTIONS")
    places = {"TGSENT_CACHE", environment.VARIABLE}
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in places or not key.startswith(changing)
    }
    nothing_to_fetch = {"TGSENT_SENTIMENT140_URL": _NOWHERE, "NO_PROXY": "127.0.0.1"}
    return {**kept, **nothing_to_fetch, **(env or {})}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli_process.server()

    def run(
        *args: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        if not cli_process.needs_an_interpreter(env or {}):
            started = cli_process.Running(args, cwd or tmp_path, cli_environment(env))
            return started.ended(timeout)
        return subprocess.run(
            [sys.executable, "-m", "tgsent", *args],
            cwd=cwd or tmp_path,
            env=cli_environment(env),
            timeout=timeout,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )

    return run
