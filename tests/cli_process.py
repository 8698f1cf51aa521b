"""The command line in a process of its own that has imported already what takes seconds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

# variables that are read while modules are imported: they need a new interpreter
_READ_BY_IMPORTS = ("OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")


def server() -> ForkServerContext:
    """Return what makes the processes: forks of one that has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli_imports"])
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        forkserver.ensure_running()
    return context


def run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `tgsent ARGUMENTS`; raise TimeoutExpired where it takes longer than `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        process = server().Process(target=_main, args=(list(arguments), cwd, dict(env), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        written = [path.read_text("utf-8") if path.exists() else "" for path in (out, err)]
        return subprocess.CompletedProcess(arguments, process.exitcode, *written)


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
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    sys.argv = ["tgsent", *arguments]
    from tgsent import cli

    cli.main()
