"""Fetching Sentiment140, from a server in the test: a small archive in the real layout."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli_process import Running
from conftest import Cli, cli_environment
from tgsent import files as cache
from tgsent.config import DataConfig
from tgsent.data.dataset import load_dataset
from tgsent.data.sentiment140 import FILE, find_sentiment140
from tgsent.errors import ConfigError, UnavailableError
from tgsent.records import Task

ROWS = b"".join(
    b'"%d","%d","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","nobody","made up tweet %d "\n'
    % (4 * (i % 2), 1467810369 + i, i)
    for i in range(200)
)
DRY_RUN = ("run", "--dry-run", "-m", "gpt2", "--set", "training.init=tiny", "--set",
           "data.sample_size=100")  # fmt: skip


def packed(name: str = FILE, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("testdata.manual.2009.06.14.csv", b"")
        archive.writestr(name, ROWS)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one archive; the first answers can be told to be bad ones."""

    archive = packed()
    faults: list[str]
    requests = 0
    delay = 0.0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.archive)))
        self.end_headers()
        half = len(self.server.archive) // 2
        self.wfile.write(self.server.archive[:half])
        self.wfile.flush()
        time.sleep(self.server.delay)
        if fault != "cut":
            self.wfile.write(self.server.archive[half:])

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the other side went away
            self.close_connection = True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.faults = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.chdir(tmp_path)
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TGSENT_SENTIMENT140", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def environment(server: Server, folder: Path) -> dict[str, str]:
    return {
        "TGSENT_CACHE": str(folder / "cache"),
        "TGSENT_SENTIMENT140_URL": f"http://127.0.0.1:{server.server_port}/a.zip",
        "TGSENT_SENTIMENT140_MD5": hashlib.md5(server.archive).hexdigest(),
        "NO_PROXY": "127.0.0.1",
    }


def kept(folder: Path) -> list[str]:
    """Files in the cache folder, but for the lock."""
    return sorted(p.name for p in (folder / "cache").rglob("*") if p.is_file() and p.name != "lock")


class Shown:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.totals: list[int] = []
        self.advanced = 0

    def task(self, name: str, total: int) -> AbstractContextManager[Task]:
        self.totals.append(total)

        @contextmanager
        def show() -> Iterator[Task]:
            yield self

        return show()

    def advance(self, examples: int, note: str = "") -> None:
        self.advanced += examples

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_the_archive_is_fetched_once(server: Server, tmp_path: Path) -> None:
    shown = Shown()
    path = find_sentiment140(shown)
    assert path.read_bytes() == ROWS
    assert kept(tmp_path) == [FILE]
    assert [line.split(" ")[1] for line in shown.lines] == ["fetching", "kept"]
    assert find_sentiment140() == path
    assert server.requests == 1
    dataset = load_dataset(DataConfig(sample_size=None))
    assert (dataset.rows, dataset.is_sentiment140, dataset.source) == (200, True, str(path))


def test_megabytes_are_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.archive = packed() + b"\0" * 3_000_000
    monkeypatch.setenv("TGSENT_SENTIMENT140_MD5", hashlib.md5(server.archive).hexdigest())
    shown = Shown()
    with pytest.raises(UnavailableError, match="sends no valid archive"):
        find_sentiment140(shown)
    assert shown.totals == [4]
    assert shown.advanced == 4


@pytest.mark.parametrize(
    ("fault", "message"), [("cut", "Connection broken"), ("missing", "404 Client Error: Not Found")]
)
def test_what_goes_wrong_is_said_and_the_next_run_works(
    fault: str, message: str, server: Server, tmp_path: Path
) -> None:
    server.faults = [fault]
    check_refused(message, tmp_path)
    assert server.requests == 1
    assert find_sentiment140().read_bytes() == ROWS


def check_refused(message: str, folder: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        find_sentiment140()
    text = str(caught.value)
    assert text.startswith("Sentiment140 cannot be ")
    assert message in text
    for way in ("data/", "TGSENT_SENTIMENT140", "--set data.path=FILE", "-c smoke"):
        assert way in text
    assert text.count("\n") < 3
    assert kept(folder) == []


def test_a_wrong_checksum(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TGSENT_SENTIMENT140_MD5")
    check_refused("does not have the MD5 checksum 1647eb110dd2492512e27b9a70d5d1bc", tmp_path)
    assert server.requests == 1


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (packed("other.csv"), f"sends no valid archive with {FILE}"),
        (b"<html>", "sends no valid archive"),
        (packed().replace(b"made up tweet 9", b"made up tweet 8"), "sends no valid archive"),
    ],
)
def test_an_archive_without_the_file(
    archive: bytes,
    message: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.archive = archive
    monkeypatch.setenv("TGSENT_SENTIMENT140_MD5", hashlib.md5(archive).hexdigest())
    check_refused(message, tmp_path)


def test_a_checksum_needs_its_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TGSENT_SENTIMENT140_URL")
    with pytest.raises(ConfigError, match="needs TGSENT_SENTIMENT140_URL beside it"):
        find_sentiment140()


def test_an_address_that_is_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://", "nonsense", "gopher://x/y.zip"):
        monkeypatch.setenv("TGSENT_SENTIMENT140_URL", url)
        with pytest.raises(UnavailableError, match="Sentiment140 cannot be fetched"):
            find_sentiment140()


@pytest.mark.parametrize("limit", [4_000, 12_000])
def test_a_full_disk(limit: int, server: Server, tmp_path: Path) -> None:
    """Files may have this many bytes: too few for the archive, or for the file beside it."""
    if limit > 4_000:
        server.archive = packed(compression=zipfile.ZIP_DEFLATED)
        assert len(server.archive) < 12_000 < len(ROWS)
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from tgsent.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *DRY_RUN],
        env=cli_environment(environment(server, tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "Sentiment140 cannot be kept" in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert kept(tmp_path) == []


def test_a_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TGSENT_CACHE", str(tmp_path / "file"))
    check_refused("cannot be kept", tmp_path)


def test_without_a_server_the_command_says_so_soon(cli: Cli, tmp_path: Path) -> None:
    begin = time.monotonic()
    done = cli(*DRY_RUN)
    assert time.monotonic() - begin < 10
    assert done.returncode == 3
    assert "no connection; is there a network?" in done.stderr
    assert done.stderr.strip().count("\n") < 4


def test_the_command_fetches_and_quiet_says_nothing(cli: Cli, server: Server) -> None:
    settings = environment(server, Path())
    done = cli(*DRY_RUN, "--quiet", env=settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fetching" not in cli(*DRY_RUN, env=settings).stderr
    assert server.requests == 1


def test_of_two_runs_at_once_one_fetches(server: Server, tmp_path: Path) -> None:
    server.delay = 1.0
    runs = [start(server, tmp_path) for _ in range(2)]
    ended = [run.ended(120) for run in runs]
    assert [run.returncode for run in ended] == [0, 0], [run.stderr for run in ended]
    assert server.requests == 1
    assert kept(tmp_path) == [FILE]


def start(server: Server, folder: Path) -> Running:
    return Running(DRY_RUN, folder, cli_environment(environment(server, folder)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_disturbs_no_later_one(
    number: signal.Signals, code: int, server: Server, tmp_path: Path
) -> None:
    server.delay = 5.0
    run = start(server, tmp_path)
    while not server.requests:
        time.sleep(0.02)
    time.sleep(0.3)
    run.send(number)
    assert run.ended(60).returncode == code
    if number == signal.SIGINT:
        assert kept(tmp_path) == []
    server.delay = 0.0
    assert find_sentiment140().read_bytes() == ROWS
    assert kept(tmp_path) == [FILE]


def test_a_file_at_hand_is_taken_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Path("data") / FILE
    local.parent.mkdir()
    local.write_bytes(ROWS)
    assert find_sentiment140() == local
    monkeypatch.setenv("TGSENT_SENTIMENT140", "named.csv")
    assert find_sentiment140() == Path("named.csv")
    assert server.requests == 0


def test_the_cache_folder_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TGSENT_CACHE", raising=False)
    assert cache.cache_folder().name == "tgsent"
