"""Sentiment140's training file: found on this machine, or fetched once into the cache folder."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from tgsent.errors import ConfigError, UnavailableError, reason
from tgsent.files import atomic_writer, cache_folder
from tgsent.progress import Quiet
from tgsent.records import Progress

FILE = "training.1600000.processed.noemoticon.csv"
URL = "http://cs.stanford.edu/people/alecmgo/trainingandtestdata.zip"
MD5 = "1647eb110dd2492512e27b9a70d5d1bc"

_CONNECT_SECONDS, _READ_SECONDS = 4, 20
_MB = 1_000_000
_WAYS_OUT = (
    f"put {FILE} into data/ or name it in TGSENT_SENTIMENT140, take another file with"
    " --set data.path=FILE,\nor the shipped made-up tweets with -c smoke"
)


def find_sentiment140(progress: Progress | None = None) -> Path:
    """Return the path of the training file: the named one, the one in `data/`, or a fetched one.

    Raises UnavailableError where it cannot be fetched. Nothing half-written remains, and of
    several processes one fetches and the others wait for it.
    """
    if named := os.environ.get("TGSENT_SENTIMENT140"):
        return Path(named)
    local = Path("data") / FILE
    if local.is_file():
        return local
    url, md5 = os.environ.get("TGSENT_SENTIMENT140_URL"), os.environ.get("TGSENT_SENTIMENT140_MD5")
    if md5 and not url:
        raise ConfigError("TGSENT_SENTIMENT140_MD5 needs TGSENT_SENTIMENT140_URL beside it")
    md5 = (md5 or MD5).strip().lower()
    file = cache_folder() / f"sentiment140-{md5[:12]}" / FILE
    if not file.is_file():
        try:
            _fetch_once(file, url or URL, md5, progress or Quiet())
        except OSError as error:  # a full disk, a folder that cannot be written
            place = error.filename or file.parent
            raise _unavailable(f"cannot be kept: {place}: {error.strerror or error}") from None
    return file


def _unavailable(why: str) -> UnavailableError:
    return UnavailableError(f"Sentiment140 {why}\n{_WAYS_OUT}")


def _fetch_once(file: Path, url: str, md5: str, progress: Progress) -> None:
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        progress.line(f"Sentiment140: waiting for another run to fetch it into {folder}")
        held = lock.acquire()
    with held:
        if file.is_file():  # fetched by the run that had the lock
            return
        for left in folder.glob(".*.tmp"):  # by a run that was killed
            left.unlink()
        progress.line(f"Sentiment140: fetching {url}")
        with tempfile.TemporaryFile(dir=folder) as archive:
            if _download(archive, url, progress) != md5:
                raise _unavailable(
                    f"cannot be fetched: the file from {url} does not have the MD5 checksum {md5}"
                )
            _extract(archive, file, url)
        progress.line(f"Sentiment140: kept in {folder}")


def _download(archive: IO[bytes], url: str, progress: Progress) -> str:
    """Write what the address sends to the file; return its MD5."""
    import requests

    digest = hashlib.md5(usedforsecurity=False)
    try:
        with requests.get(url, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS)) as answer:
            answer.raise_for_status()
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdecimal() else 0
            with progress.task("Sentiment140, MB", math.ceil(size / _MB)) as task:
                for chunk in answer.iter_content(_MB):
                    archive.write(chunk)
                    digest.update(chunk)
                    task.advance(1)
    except requests.ConnectionError:
        raise _unavailable(
            f"cannot be fetched: {url}: no connection; is there a network?"
        ) from None
    except requests.RequestException as error:
        raise _unavailable(f"cannot be fetched: {url}: {reason(error)}") from None
    return digest.hexdigest()


def _extract(archive: IO[bytes], file: Path, url: str) -> None:
    try:
        with (
            zipfile.ZipFile(archive) as members,
            members.open(FILE) as packed,
            atomic_writer(file) as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    # damaged headers or data, an unknown compression, a truncated member, no such member
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, KeyError):
        raise _unavailable(f"cannot be read: {url} sends no valid archive with {FILE}") from None
