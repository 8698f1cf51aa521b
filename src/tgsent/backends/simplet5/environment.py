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
from collections.abc import Callable, Sequence
from pathlib import Path

import filelock

from tgsent.errors import StorageError, UnavailableError
from tgsent.files import cache_folder, write_atomic

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
_READY = "ready.json"
_ASK_VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in"
    " ('simplet5', 'transformers', 'pytorch-lightning', 'torch')}))"
)

Report = Callable[[str], None]


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
    if chosen := os.environ.get(VARIABLE):
        # absolute, as it is run in another folder; not resolved, or a venv's would lose its venv
        python = Path(shutil.which(chosen) or chosen).absolute()
        try:
            return python, _versions(python)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise UnavailableError(
                f"{VARIABLE}: {chosen} is no Python that has the package simplet5"
                f" ({_reason(error)})\nname another, or unset it and run {COMMAND}"
            ) from error
    place = folder()
    if not (place / _READY).is_file():
        raise UnavailableError(
            "training.backend: the package simplet5 is not set up yet;"
            f" this command does it, once:\n{COMMAND}"
        )
    try:
        return _python(place), _versions(_python(place))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UnavailableError(
            f"training.backend: the environment of the package simplet5 in {place} is broken"
            f" ({_reason(error)});\nthis command makes it anew: {COMMAND} --fresh"
        ) from error


def set_up(report: Report, *, fresh: bool = False) -> None:
    """Create the environment, or check the existing one and rebuild it where it is broken.

    It counts as set up only when the package could be imported. Raises UnavailableError where that
    fails.
    """
    place = folder()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(place.with_name(f".{place.name}.lock")):
            if not fresh and _is_sound(place, report):
                report(f"the package simplet5 is set up in {place}")
                return
            _make(place, report)
    except StorageError as error:
        raise UnavailableError(str(error)) from error
    except OSError as error:
        raise UnavailableError(f"{place}: cannot be written: {error.strerror}") from error


def _is_sound(place: Path, report: Report) -> bool:
    if not (place / _READY).is_file():
        return False
    report(f"checking the environment in {place}")
    try:
        _import_package(place)
    except UnavailableError as error:
        report(f"it is broken and made anew: {str(error).splitlines()[0]}")
        return False
    return True


def _make(place: Path, report: Report) -> None:
    report(f"making an environment for the package simplet5 in {place}")
    (place / _READY).unlink(missing_ok=True)  # first: what is incomplete must not look complete
    shutil.rmtree(place, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(place)], "venv")
    pip = [str(_python(place)), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    report(f"installing {', '.join(requirements())} (torch is large: this takes minutes)")
    _call([*pip, *requirements()], "pip")
    report(f"installing {_PACKAGE}")
    _call([*pip, "--no-deps", _PACKAGE], "pip")
    report("checking it")
    _import_package(place)
    versions = _versions(_python(place))
    write_atomic(place / _READY, json.dumps(versions) + "\n")
    report(f"ready: {', '.join(f'{name} {version}' for name, version in versions.items())}")


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _import_package(place: Path) -> None:
    _call([str(_python(place)), "-I", "-c", "from simplet5 import SimpleT5"], "import simplet5")


def _versions(python: Path) -> dict[str, str]:
    done = subprocess.run(  # noqa: S603  an interpreter that the user named or tgsent made
        [str(python), "-I", "-c", _ASK_VERSIONS],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _call(command: Sequence[str], name: str) -> None:
    # PYTHONPATH would show the new environment the packages of this one
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(  # noqa: S603  our own commands
            command, capture_output=True, text=True, env=env, check=False
        )
    except OSError as error:
        raise UnavailableError(f"{name} cannot be run: {error}") from error
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UnavailableError(
            f"{name} failed (exit code {done.returncode}): {' '.join(said[-2:])[:300]}\n"
            f"the same command tries again: {COMMAND}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        return str(error.stderr).strip().splitlines()[-1]
    return str(error)
