"""The environment of the package SimpleT5: create, find and check it.

The package's pins cannot be installed beside a current transformers, so tgsent never imports it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock

from tgsent.errors import UnavailableError
from tgsent.files import cache_folder

COMMAND = "tgsent setup-simplet5"
VARIABLE = "TGSENT_SIMPLET5_PYTHON"

# the package is installed without its pinned dependencies, which no current Python can install
_PACKAGE = "simplet5==0.1.4"
# the newest transformers and Lightning that the package works with, and what these need
_NEEDED = (
    "transformers==4.57.*",
    "pytorch-lightning==1.9.5",
    "setuptools<81",
    "sentencepiece",
    "pandas",
    "tensorboard",
    "protobuf",
)
_ASK_VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in"
    " ('simplet5', 'transformers', 'pytorch-lightning', 'torch')}))"
)


def requirements() -> tuple[str, ...]:
    """Return what is installed beside the package; torch within the same bounds as for tgsent."""
    ours = importlib.metadata.requires("tgsent") or []
    torch = [line for line in ours if re.match(r"torch(?![\w.-])", line)]
    return (*torch, *_NEEDED)


def folder() -> Path:
    """Return the folder of the environment for these requirements and this version of Python."""
    made_of = [_PACKAGE, *requirements(), f"python{sys.version_info[0]}.{sys.version_info[1]}"]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    return cache_folder() / f"simplet5-{digest[:12]}"


def find() -> tuple[Path, dict[str, str]]:
    """Return the interpreter that has the package, and the versions of its main packages.

    Raises UnavailableError where there is none.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen and not _marker().is_file():
        raise UnavailableError(
            "training.backend: the package simplet5 is not set up yet;"
            f" this command does it, once:\n{COMMAND}"
        )
    # absolute, as it is run in another folder; not resolved, or a venv's would lose its venv
    python = Path(shutil.which(chosen) or chosen).absolute() if chosen else _python()
    try:
        return python, _versions(python)
    except (UnavailableError, ValueError) as error:
        raise UnavailableError(
            f"{VARIABLE if chosen else 'training.backend'}: {python} is no Python that has the"
            f" package simplet5 ({str(error).splitlines()[0]})\n"
            f"name another in {VARIABLE}, or unset it and run: {COMMAND} --fresh"
        ) from error


def set_up(report: Callable[[str], None], *, fresh: bool = False) -> None:
    """Create the environment, or check the existing one and rebuild it where it is broken.

    It counts as set up only when the package could be imported. Raises UnavailableError where that
    fails.
    """
    place = folder()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(place.with_name(f".{place.name}.lock")):
            if not fresh and _marker().is_file():
                report(f"checking the environment in {place}")
                try:
                    _import_package()
                except UnavailableError as error:
                    report(f"it is broken and is rebuilt: {str(error).splitlines()[0]}")
                else:
                    report(f"the package simplet5 is set up in {place}")
                    return
            _make(place, report)
    except OSError as error:
        raise UnavailableError(f"{place}: cannot be written: {error.strerror}") from error


def _make(place: Path, report: Callable[[str], None]) -> None:
    report(f"creating an environment for the package simplet5 in {place}")
    _marker().unlink(missing_ok=True)  # first: what is incomplete must not look complete
    shutil.rmtree(place, ignore_errors=True)
    _call("venv", sys.executable, "-m", "venv", place)
    pip = (_python(), "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    report(f"installing {', '.join(requirements())} (torch is large: this takes minutes)")
    _call("pip", *pip, *requirements())
    report(f"installing {_PACKAGE}")
    _call("pip", *pip, "--no-deps", _PACKAGE)
    report("checking it")
    _import_package()
    versions = _versions(_python())
    _marker().touch()
    report(f"ready: {', '.join(f'{name} {version}' for name, version in versions.items())}")


def _marker() -> Path:
    """Return the file that shows that the environment is complete."""
    return folder() / "ready.json"


def _python() -> Path:
    return folder() / "bin/python"


def _import_package() -> None:
    _call("import simplet5", _python(), "-I", "-c", "from simplet5 import SimpleT5")


def _versions(python: Path) -> dict[str, str]:
    versions: dict[str, str] = json.loads(
        _call(python.name, python, "-I", "-c", _ASK_VERSIONS, seconds=60)
    )
    return versions


def _call(name: str, *command: str | Path, seconds: float | None = None) -> str:
    """Return what a command prints; raise UnavailableError where it fails or takes too long."""
    # PYTHONPATH would show the new environment the packages of this one
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(  # noqa: S603  our own commands
            command, capture_output=True, text=True, env=env, check=False, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{name} cannot be run: {error}") from error
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UnavailableError(
            f"{name} failed (exit code {done.returncode}): {' '.join(said[-2:])[:300]}\n"
            f"the same command tries again: {COMMAND}"
        )
    return done.stdout
