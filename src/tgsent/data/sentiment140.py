"""Sentiment140's training file: found on this machine, or fetched once into the cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from tgsent.errors import ConfigError, UnavailableError
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


def _unavailable(reason: str) -> UnavailableError:
    return UnavailableError(f"Sentiment140 {reason}\n{_WAYS_OUT}")


def _fetch_once(file: Path, url: str, md5: str, progress: Progress) -> None:
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.line(f"Sentiment140: waiting for another run to fetch it into {folder}")
        lock.acquire()
    try:
        if file.is_file():  # fetched by the run that had the lock
            return
        for left in (*folder.glob(".*.tmp"), *folder.glob("*.zip")):  # by a run that was killed
            left.unlink()
        progress.line(f"Sentiment140: fetching {url}")
        with tempfile.TemporaryFile(dir=folder) as archive:
            if _download(archive, url, progress) != md5:
                raise _unavailable(f"cannot be fetched: what {url} sends is not MD5 {md5}")
            _extract(archive, file, url)
        progress.line(f"Sentiment140: kept in {folder}")
    finally:
        lock.release()


def _download(archive: IO[bytes], url: str, progress: Progress) -> str:
    """Fetch the archive and return its MD5; a connection that breaks off is tried once more."""
    from requests import exceptions

    for attempt in (1, 2):
        try:
            return _receive(archive, url, progress)
        except (exceptions.ChunkedEncodingError, exceptions.ReadTimeout):
            if attempt == 2:
                raise _unavailable(f"cannot be fetched: {url} broke off twice") from None
        except exceptions.RequestException as error:
            reason = str(error).splitlines()[0][:200]
            if isinstance(error, exceptions.ConnectTimeout):
                reason = f"no answer within {_CONNECT_SECONDS} seconds"
            elif isinstance(error, exceptions.ConnectionError):
                reason = "no connection; is there a network?"
            raise _unavailable(f"cannot be fetched: {url}: {reason}") from None
    raise AssertionError


def _receive(archive: IO[bytes], url: str, progress: Progress) -> str:
    """Write what the address sends to the file; return its MD5."""
    import requests

    archive.seek(0)
    archive.truncate()
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with requests.get(url, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS)) as answer:
        if not answer.ok:
            status = f"{answer.status_code} {answer.reason}".strip()
            raise _unavailable(f"cannot be fetched: {answer.url} answers {status}")
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else 0
        with progress.task("Sentiment140, MB", max(1, total // _MB)) as task:
            for chunk in answer.iter_content(1 << 16):
                archive.write(chunk)
                digest.update(chunk)
                before, size = size, size + len(chunk)
                if more := size // _MB - before // _MB:
                    task.advance(more)
    return digest.hexdigest()


def _extract(archive: IO[bytes], file: Path, url: str) -> None:
    try:
        with (
            zipfile.ZipFile(archive) as members,
            members.open(FILE) as packed,
            atomic_writer(file) as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except KeyError:
        raise _unavailable(f"cannot be read: the archive from {url} has no {FILE}") from None
    # damaged headers, damaged data, an unknown compression, a truncated member
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        raise _unavailable(f"cannot be read: what {url} sends is not a valid archive") from None
