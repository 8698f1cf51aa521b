"""Write files whole or not at all, and say what is in the way where one cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tgsent.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: str) -> None:
    """Write a text file whole or not at all; raises StorageError where that cannot be done."""
    data = content.encode("utf-8", "surrogatepass")
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """Lend a file beside `path` to write `size` bytes to; it takes its place when all went well.

    It can be read by nobody else until then. Raises StorageError where it cannot be written.
    """
    # the name is always the same, so that what a killed run left is overwritten by the next
    temporary = path.with_name(f".{path.name}.tmp")
    with write_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield temporary
            sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_names(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    """Have new names survive a power failure, too, where the file system knows of that."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


@contextlib.contextmanager
def write_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise StorageError, with advice, for a failure to write `path` in the context."""
    try:
        yield
    except Exception as error:
        number = _os_error(error)
        if number is None:
            raise
        message = f"{path}: cannot be written: {os.strerror(number)}"
        if number in _FULL:
            needed = f"it needs {show_size(size)} and " if size else ""
            message += (
                f"; {needed}{_free(path)} left there\n"
                "what was finished is kept: make room, and the same command does the rest"
            )
        raise StorageError(message) from error


def _os_error(error: Exception) -> int | None:
    """Give the system's number of an error; libraries written in Rust only have it as text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _free(path: Path) -> str:
    folder = next((one for one in path.absolute().parents if one.is_dir()), None)
    if folder is None:
        return "nothing is"
    return f"{show_size(shutil.disk_usage(folder).free)} are"


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def show_size(size: int) -> str:
    """Write a number of bytes for people."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def cache_folder() -> Path:
    """Name the folder, which need not exist: `TGSENT_CACHE`, or the system's place for caches."""
    if named := os.environ.get("TGSENT_CACHE"):
        return Path(named).absolute()  # programs are run in other folders
    import pooch

    return Path(pooch.os_cache("tgsent"))


@contextlib.contextmanager
def atomic_writer(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write, which becomes `path` at the end of a context without errors.

    Several processes may write the same path at once: each has its own file until then. Only a
    durable file is sure to be complete after a loss of power.
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
