"""The user's cache folder: what is downloaded or worked out once; all of it can be deleted."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def cache_folder() -> Path:
    """Name the folder, which need not exist: `TGSENT_CACHE`, or the system's place for caches."""
    if named := os.environ.get("TGSENT_CACHE"):
        return Path(named).absolute()  # programs are run in other folders
    import pooch

    return Path(pooch.os_cache("tgsent"))


@contextlib.contextmanager
def placing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Lend a file to write; it takes its place at `path` when all went well, else it is gone.

    Several processes may place the same file at once: each has its own until then. Only a durable
    one is sure to be whole after a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
