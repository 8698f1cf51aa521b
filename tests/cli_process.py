"""The command line in a process of its own that has imported already what takes seconds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

# variables that are read while modules are imported: they need a new interpreter
_READ_BY_IMPORTS = ("OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")


@cache
def server() -> ForkServerContext:
    """Return what makes the processes: forks of one that has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli_imports"])
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        forkserver.ensure_running()
    first = context.Process(target=int)  # tests that measure the time do not wait for the imports
    first.start()
    first.join()
    return context


class Running:
    """A process of the command line, with what it has written so far."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.arguments = arguments
        self._folder = tempfile.TemporaryDirectory()
        self._written = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._process = server().Process(
            target=_main, args=(list(arguments), cwd, dict(env), *self._written)
        )
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def stderr(self) -> str:
        """What was written to stderr."""
        return self._written[1].read_text("utf-8") if self._written[1].exists() else ""

    def wait_for(self, text: str, timeout: float = 300) -> None:
        """Wait until stderr holds a text; raise TimeoutExpired if it comes too late or never."""
        deadline = time.monotonic() + timeout
        while text not in self.stderr:
            if not self._process.is_alive() or time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.arguments, timeout, stderr=self.stderr)
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def ended(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for the end; kill the process and raise TimeoutExpired if it takes longer."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.arguments, timeout, stderr=self.stderr)
        out = self._written[0].read_text("utf-8") if self._written[0].exists() else ""
        err = self.stderr
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode, out, err)


def needs_an_interpreter(env: Mapping[str, str]) -> bool:
    """Check whether modules must be imported anew under these variables."""
    return any(key.startswith(_READ_BY_IMPORTS) and os.environ.get(key) != env[key] for key in env)


def _main(arguments: list[str], cwd: Path, env: dict[str, str], out: Path, err: Path) -> None:
    assert "cli_imports" in sys.modules  # a forkserver is silent about imports that fail
    os.environ.clear()
    os.environ.update(env)
    importlib.reload(constants)  # its HF_ variables
    hf_api.api.endpoint = constants.ENDPOINT
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    sys.argv = ["tgsent", *arguments]
    from tgsent import cli

    cli.main()
