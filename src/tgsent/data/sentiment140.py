"""Sentiment140's training file: found on this machine, or fetched once into the cache folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tgsent.errors import ConfigError, UnavailableError
from tgsent.files import atomic_writer, cache_folder

if TYPE_CHECKING:
    from requests.exceptions import HTTPError

    from tgsent.records import Progress, Task

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
    """Give the path of the training file: the named one, the one in `data/`, or a fetched one.

    Raises UnavailableError where it cannot be fetched. Nothing half-written remains, and of
    several processes one fetches and the others wait for it.
    """
    if named := os.environ.get("TGSENT_SENTIMENT140"):
        return Path(named)
    local = Path("data") / FILE
    if local.is_file():
        return local
    url, md5 = _source()
    folder = cache_folder() / f"sentiment140-{md5[:12]}"
    if not (folder / FILE).is_file():
        try:
            _fetch_once(folder, url, md5, progress)
        except OSError as error:  # a full disk, a folder that cannot be written
            place = error.filename or folder
            raise _unavailable(f"cannot be kept: {place}: {error.strerror or error}") from None
    return folder / FILE


def _source() -> tuple[str, str]:
    """Give the archive's address and checksum; a mirror may name its own."""
    url, md5 = os.environ.get("TGSENT_SENTIMENT140_URL"), os.environ.get("TGSENT_SENTIMENT140_MD5")
    if md5 and not url:
        raise ConfigError("TGSENT_SENTIMENT140_MD5 needs TGSENT_SENTIMENT140_URL beside it")
    return url or URL, (md5 or MD5).strip().lower()


def _unavailable(reason: str) -> UnavailableError:
    return UnavailableError(f"Sentiment140 {reason}\n{_WAYS_OUT}")


def _fetch_once(folder: Path, url: str, md5: str, progress: Progress | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            progress.line(f"Sentiment140: waiting for another run to fetch it into {folder}")
        lock.acquire()
    try:
        if (folder / FILE).is_file():  # fetched by the run that had the lock
            return
        for left in folder.iterdir():  # by a run that was killed
            if left.name != "lock":
                left.unlink()
        archive = _download(folder, url, md5, progress)
        try:
            _extract(archive, folder / FILE, url)
        finally:
            archive.unlink(missing_ok=True)
        if progress:
            progress.line(f"Sentiment140: kept in {folder}")
    finally:
        lock.release()


def _download(folder: Path, url: str, md5: str, progress: Progress | None) -> Path:
    """Fetch the archive; a connection that breaks off is tried once more."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # progress is ours to show
    broken_off = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ReadTimeout)
    if progress:
        progress.line(f"Sentiment140: fetching {url}")
    for attempt in (1, 2):
        try:
            with _Bar(progress) as bar:
                downloader = pooch.HTTPDownloader(
                    progressbar=bar,
                    chunk_size=_Bar.CHUNK,
                    timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                )
                return Path(
                    pooch.retrieve(url, f"md5:{md5}", "archive.zip", folder, None, downloader)
                )
        except requests.exceptions.HTTPError as error:
            raise _unavailable(f"cannot be fetched: {_status(error)}") from None
        except broken_off:
            if attempt == 2:
                raise _unavailable(f"cannot be fetched: {url} broke off twice") from None
        except requests.exceptions.RequestException as error:
            raise _unavailable(f"cannot be fetched: {url}: {_reason(error)}") from None
        except ValueError:
            raise _unavailable(f"cannot be fetched: what {url} sends is not md5 {md5}") from None
    raise AssertionError


def _status(error: HTTPError) -> str:
    answer = error.response
    if answer is None:
        return str(error)
    answer.close()  # which pooch leaves open
    return f"{answer.url} answers {answer.status_code} {answer.reason}".strip()


def _reason(error: BaseException) -> str:
    """Say in a few words what is at the bottom of one of requests' errors."""
    import requests

    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no answer within {_CONNECT_SECONDS} seconds"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection; is there a network?"
    return str(error).splitlines()[0][:200]


def _extract(archive: Path, file: Path, url: str) -> None:
    try:
        with (
            zipfile.ZipFile(archive) as members,
            members.open(FILE) as packed,
            atomic_writer(file) as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except KeyError:
        raise _unavailable(f"cannot be read: the archive from {url} has no {FILE}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        raise _unavailable(f"cannot be read: what {url} sends is no sound archive") from None


class _Bar:
    """What pooch reports to, as one task of ours, in MB."""

    CHUNK = 1 << 16

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._stack = progress, contextlib.ExitStack()
        self._task: Task | None = None
        self._bytes = self._total = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total(self) -> int:
        """Size of the download; setting it, which pooch does first, shows the bar."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._total = total
        if self._progress:
            task = self._progress.task("Sentiment140, MB", max(1, total // _MB))
            self._task = self._stack.enter_context(task)

    def update(self, count: int) -> None:
        """Count more bytes, of which the last chunk may have fewer than it says."""
        before, self._bytes = self._bytes, min(self._bytes + count, self._total)
        if self._task and (more := self._bytes // _MB - before // _MB):
            self._task.advance(more)

    def reset(self) -> None:
        """Do nothing: pooch starts over at the end, to fill the bar."""

    def close(self) -> None:
        """Take the bar off the screen."""
        self._task = None
        self._stack.close()
