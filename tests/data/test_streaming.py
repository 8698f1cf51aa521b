"""The fast way of Sentiment140's layout gives what the careful way gives, and nothing else."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tgsent.config import DataConfig
from tgsent.data import dataset, streaming
from tgsent.data.dataset import Dataset, load_dataset
from tgsent.errors import DataError

LABELS = {"0": "negative", "4": "positive"}
PLACES = (2, 4, 5)  # of the fields that hold anything: date, user, text


def outcome(load: Callable[[], Dataset]) -> Dataset | str:
    try:
        return load()
    except DataError as error:
        return str(error)


def check_same(content: bytes, folder: Path, **given: object) -> bool:
    """Compare both ways on a file; tell whether it was for the fast one."""
    path = folder / "tweets.csv"
    path.write_bytes(content)
    config = DataConfig.model_validate({"path": str(path), "sample_size": None, **given})
    fast = streaming.draw(path, config, config.labels or LABELS) is not None
    ours = outcome(lambda: load_dataset(config))
    careful = outcome(lambda: dataset._load_carefully(path, config))
    if isinstance(ours, str) or isinstance(careful, str):
        assert ours == careful
        assert not fast
        return False
    pd.testing.assert_frame_equal(ours.frame, careful.frame)
    values = [{**vars(dataset), "frame": None} for dataset in (ours, careful)]
    assert values[0] == values[1]
    return fast


# characters that parsers trip over, among a few harmless ones
pieces = st.text(st.sampled_from('ab\xe9\x85\xa0\x1c ",\n\r\t\0'), max_size=12)
texts = st.one_of(pieces, st.sampled_from(["same", "same ", "x" * 30, "x" * 14 + "y" + "x" * 15]))
rows = st.lists(
    st.tuples(st.sampled_from("0044442"), st.sampled_from(["", "d,e", 'd"e']), texts), max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    rows=rows,
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    tail=st.sampled_from(["", "\n", "cut", "\n\n", " ", "\n1,2", '\n"']),
    seed=st.integers(0, 3),
    deduplicate=st.booleans(),
)
def test_written_files_are_read_alike(
    rows: list[tuple[str, str, str]],
    line_end: str,
    quoting: int,
    tail: str,
    seed: int,
    deduplicate: bool,
    tmp_path: Path,
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, quoting=quoting, lineterminator=line_end)  # type: ignore[arg-type]
    for number, (label, filler, text) in enumerate([("0", "d", "one"), ("4", "d", "two"), *rows]):
        writer.writerow([label, number, filler, "NO_QUERY", filler, text])
    content = file.getvalue()
    content = content[:-2] if tail == "cut" else content.rstrip("\r\n") + tail
    check_same(content.encode("iso-8859-1"), tmp_path, deduplicate=deduplicate, sample_seed=seed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(st.sampled_from(['"', '""', ",", '","', "\n", '"\n"', "\r", "a", "0", " ", "\0"])))
@example(['"', '"'])
@example(["\n", '"', "0"])
def test_any_tail_is_read_alike(tmp_path: Path, tail: list[str]) -> None:
    first = '"0","1","d","q","u","a"\n"4","2","d","q","u","b"\n"4","3","d","q","u","c'
    check_same((first + "".join(tail)).encode(), tmp_path)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("deduplicate", [False, True])
def test_rows_across_blocks(
    block: int, deduplicate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_BLOCK", block)
    content = "".join(
        f'"{4 * (i % 2)}","{i}","","","","text ""{i % 17}"", \xe9\n{"x" * (i % 5)}"\r\n'
        for i in range(60)
    ).encode("iso-8859-1")
    assert check_same(content, tmp_path, deduplicate=deduplicate)
    assert check_same(content, tmp_path, deduplicate=deduplicate, sample_size=15, test_fraction=0.2)
    assert check_same(content.rstrip(), tmp_path, labels={"4": "good", "0": "bad"})


@pytest.mark.parametrize("length", [*range(1, 20), 2_000_000])
def test_texts_that_differ_in_one_place_are_told_apart(length: int, tmp_path: Path) -> None:
    places = range(length) if length < 100 else (0, 10, length - 1)
    variants = ["a" * place + "b" + "a" * (length - place - 1) for place in places]
    lines = [f'"{4 * (i % 2)}","{i}","","","","{text}"\n' for i, text in enumerate(variants * 2)]
    lines += ['"0","1","","","","-"\n', '"4","1","","","","+"\n']
    fast = check_same("".join(lines).encode(), tmp_path, deduplicate=True)
    assert fast == (length < 100)  # such a long row is for the careful way


def test_real_tweets_are_read_alike(tweets: Path, tmp_path: Path) -> None:
    for deduplicate in (False, True):
        assert check_same(
            tweets.read_bytes(), tmp_path, sample_size=10_000, deduplicate=deduplicate
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"encoding": "utf-8"},
        {"text_column": 5, "label_column": 0},
        {"labels": {"0": "a", "4": "b"}},
    ],
)
def test_other_settings_are_read_alike(settings: dict[str, object], tmp_path: Path) -> None:
    check_same(b'"0","1","","","","a\xc3\xa9"\n"4","2","","","","b"\n' * 3, tmp_path, **settings)


def test_a_pipe_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert streaming.draw(tmp_path / "pipe.csv", DataConfig(), LABELS) is None


# ------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Loads a file with the cache at work, and fails if it is scanned when it should not be."""
    monkeypatch.setattr(streaming, "_LEAST_CACHED_FILE", 0)
    path = tmp_path / "tweets.csv"
    lines = [f'"{4 * (i % 2)}","{i}","","","","text {i % 90} \xe9"\n' for i in range(100)]
    path.write_bytes("".join(lines).encode("iso-8859-1"))
    config = DataConfig(path=str(path), sample_size=50)
    scan = streaming._scan

    def load(*, scanned: bool) -> Dataset:
        scans = []
        monkeypatch.setattr(streaming, "_scan", lambda raw: scans.append(1) or scan(raw))
        dataset = load_dataset(config)
        assert bool(scans) == scanned
        careful = dataset._load_carefully(path, config)
        pd.testing.assert_frame_equal(dataset.frame, careful.frame)
        assert {**vars(dataset), "frame": 0} == {**vars(careful), "frame": 0}
        return dataset

    return load


def entries(folder: Path) -> list[Path]:
    return list((folder / "cache" / "samples").iterdir())


def test_a_sample_is_drawn_once(cached: Callable[..., Dataset], tmp_path: Path) -> None:
    cached(scanned=True)
    cached(scanned=False)
    (tmp_path / "tweets.csv").touch()
    cached(scanned=False)
    assert len(entries(tmp_path)) == 1


def test_a_changed_file_of_the_same_size_is_read_again(
    cached: Callable[..., Dataset], tmp_path: Path
) -> None:
    cached(scanned=True)
    path = tmp_path / "tweets.csv"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"text 7", b"next 7"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cached(scanned=True)
    cached(scanned=False)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\xff" * 99, None])
def test_a_damaged_cache_is_written_anew(
    content: bytes | None, cached: Callable[..., Dataset], tmp_path: Path
) -> None:
    cached(scanned=True)
    (entry,) = entries(tmp_path)
    entry.write_bytes(entry.read_bytes()[:-9] if content is None else content)
    cached(scanned=True)
    cached(scanned=False)


def test_a_cache_that_cannot_be_written_is_done_without(
    cached: Callable[..., Dataset], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    cached(scanned=True)
    cached(scanned=True)
