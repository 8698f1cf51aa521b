"""Write files whole or not at all, with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tgsent.errors import StorageError


def write_atomic(path: Path, content: str) -> None:
    """Write a text file whole or not at all; raise StorageError where that cannot be done."""
    data = content.encode("utf-8", "surrogatepass")
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """Yield a file beside `path` to write `size` bytes to; it replaces `path` if all went well.

    Raises StorageError where it cannot be written.
    """
    # the name is always the same, so that what a killed run left is overwritten by the next
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path, size), _replacing(path, temporary, mode=0o666):
        yield temporary


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Yield an opened file that replaces `path` if all went well; several processes may do so.

    Nobody else can read it, as the cache holds texts of the user. Raises OSError where it cannot be
    written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _replacing(path, temporary, mode=0o600), temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def _replacing(path: Path, temporary: Path, *, mode: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    try:
        sync(path.parent)  # the new name
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can do it
            raise


def to_json(value: object) -> str:
    """Write an indented JSON document, as `json_line` writes a line."""
    return json_line(value, indent=2) + "\n"


def json_line(value: object, indent: int | None = None) -> str:
    """Write a value as JSON, in one line unless indented; the result is valid YAML.

    Control characters are escaped; the value stays the same. Raises ValueError for NaN, which JSON
    does not have.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def read_object(path: Path) -> dict[str, Any]:
    """Load the object in a JSON file; return an empty one if it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn a failure to write `path` into a StorageError that says what to do."""
    try:
        yield
    except Exception as error:
        # libraries written in Rust have the system's number of an error only as text
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = getattr(error, "errno", None) or (int(found[1]) if found else None)
        if number is None:
            raise
        message = f"{path}: cannot be written: {os.strerror(number)}"
        if number in (errno.ENOSPC, errno.EDQUOT):
            folder = next(one for one in path.absolute().parents if one.is_dir())
            needed = f"it needs {show_size(size)} and " if size else ""
            message += (
                f"; {needed}{show_size(shutil.disk_usage(folder).free)} are left there\n"
                "finished work is kept; free some space, then run the same command again to resume"
            )
        raise StorageError(message) from error


def show_size(size: int) -> str:
    """Write a number of bytes for people."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def cache_folder() -> Path:
    """Return the cache folder, which may not exist: `TGSENT_CACHE`, or the system's default."""
    if named := os.environ.get("TGSENT_CACHE"):
        return Path(named).absolute()  # programs are run in other folders
    import pooch

    return Path(pooch.os_cache("tgsent"))
