from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from tgsent.config import DataConfig, RunConfig, load
from tgsent.data import dataset as module
from tgsent.data.dataset import Dataset, load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.errors import DataError

Read = Callable[..., Dataset]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Writes a file and reads it as data, all rows unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(name: str, content: str | bytes, **settings: Any) -> Dataset:
        raw = content if isinstance(content, bytes) else content.encode()
        Path(name).write_bytes(raw)
        return load_dataset(DataConfig(path=name, **{"sample_size": None, **settings}))

    return write_and_read


def rows(dataset: Dataset) -> list[tuple[str, str]]:
    return list(zip(dataset.texts, dataset.text_labels, strict=True))


AB = [("a", "x"), ("b", "y")]


# -------------------------------------------------------------------------------------- layouts


def test_the_layout_of_sentiment140_is_known(read: Read) -> None:
    lines = [
        '"0","1","Mon Apr 06","NO_QUERY","me","caf\xe9, ""again"""',
        '"4","2","Mon Apr 06","NO_QUERY","you","fine "',
    ]
    dataset = read("tweets.csv", "\n".join(lines).encode("iso-8859-1"))
    assert rows(dataset) == [('caf\xe9, "again"', "negative"), ("fine ", "positive")]
    assert dataset.labels == ("negative", "positive")
    assert dataset.is_sentiment140


def test_labels_of_the_known_layout_can_be_named(read: Read) -> None:
    content = "0,1,d,q,u,a\n4,2,d,q,u,b\n"
    assert read("t.csv", content, labels={"0": "bad", "4": "good"}).labels == ("bad", "good")


def test_the_shipped_sample_is_not_the_articles_data() -> None:
    dataset = load_dataset(DataConfig(path="sample", sample_size=None))
    assert dataset.labels == ("negative", "positive")
    assert not dataset.is_sentiment140


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("t.csv", "text,label\na,x\nb,y\n", {}),
        ("t.CSV", "text,label\na,x\nb,y\n", {}),
        ("t.csv", "label,id,text\nx,1,a\ny,2,b\n", {}),
        ("t.csv", "text,label\r\na,x\r\nb,y\r\n", {}),
        ("t.csv", "text,label\ra,x\rb,y\r", {}),
        ("t.csv", "text,label\n\na,x\n\nb,y", {}),
        ("t.csv", "\ufefftext,label\na,x\nb,y\n", {}),
        ("t.csv", "t,l\na,x\nb,y\n", {"text_column": "t", "label_column": "l"}),
        ("t.csv", "a,9,x\nb,9,y\n", {"text_column": 0, "label_column": 2}),
        ("t.csv", "1,0\nx,a\ny,b\n", {"text_column": "0", "label_column": "1"}),
        ("t.tsv", "text\tlabel\na\tx\nb\ty\n", {}),
        ("t.jsonl", '{"text": "a", "label": "x"}\n\n{"label": "y", "text": "b"}', {}),
        ("t.jsonl", '\ufeff{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', {}),
        ("t.ndjson", '{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n', {}),
    ],
)
def test_layouts(name: str, content: str, settings: dict[str, Any], read: Read) -> None:
    dataset = read(name, content, **settings)
    assert rows(dataset) == AB
    assert dataset.labels == ("x", "y")
    assert not dataset.is_sentiment140


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"label": ["x", "y"], "text": ["a", "b"]}).to_parquet(path)
    assert rows(load_dataset(DataConfig(path=str(path), sample_size=None))) == AB


@pytest.mark.parametrize(
    ("encoding", "settings"), [("utf-8", {}), ("cp1252", {"encoding": "cp1252"})]
)
def test_encodings(encoding: str, settings: dict[str, str], read: Read) -> None:
    content = "text,label\nna\xefve \u20ac,x\nb,y\n".encode(encoding)
    assert rows(read("t.csv", content, **settings))[0] == ("na\xefve \u20ac", "x")


@pytest.mark.parametrize("text", ["NA", "null", "NaN", "None", "#N/A", "  x ", "1.0", "<NA>"])
def test_texts_stay_what_they_are(text: str, read: Read) -> None:
    assert rows(read("t.csv", f"text,label\n{text},x\nb,y\n"))[0] == (text, "x")


@pytest.mark.parametrize("text", ["two\nlines", "two\r\nlines", "lone\rreturn", 'a "b", c', "a\tb"])
def test_quoted_fields_hold_anything(text: str, read: Read) -> None:
    quoted = '"' + text.replace('"', '""') + '"'
    assert rows(read("t.csv", f"text,label\n{quoted},x\nb,y\n"))[0] == (text, "x")


def test_a_line_of_jsonl_ends_at_a_newline_only(read: Read) -> None:
    content = '{"text": "a\u2028b\x85", "label": "x"}\n{"text": "c", "label": "y"}\n'
    assert rows(read("t.jsonl", content))[0] == ("a\u2028b\x85", "x")


# --------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [("xyx", ("x", "y")), ("110", ("0", "1")), (["NA", "b"], ("NA", "b"))],
)
def test_values_are_the_words_where_none_are_given(
    values: list[str], labels: tuple[str, ...], read: Read
) -> None:
    content = "text,label\n" + "".join(f"t{i},{value}\n" for i, value in enumerate(values))
    assert read("t.csv", content).labels == labels


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1], {"0": "no", "1": "yes"}),
        ([0, 1], {0: "no", 1: "yes"}),
        ([False, True], {"false": "no", "true": "yes"}),
        ([False, True], {False: "no", True: "yes"}),
        (["n", "y"], {"n": "no", "y": "yes"}),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_label_values_of_any_kind_get_words(
    suffix: str, values: list[object], words: dict[Any, str], tmp_path: Path
) -> None:
    path = tmp_path / f"t.{suffix}"
    frame = pd.DataFrame({"text": ["a", "b"], "label": values})
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    dataset = load_dataset(DataConfig(path=str(path), labels=words, sample_size=None))
    assert rows(dataset) == [("a", "no"), ("b", "yes")]


def test_words_keep_the_order_of_the_config(read: Read) -> None:
    content = "text,label\na,1\nb,2\nc,3\n"
    words = {"3": "high", "1": "low", "2": "medium"}
    dataset = read("t.csv", content, labels=words)
    assert dataset.labels == ("high", "low", "medium")
    assert [label for _, label in rows(dataset)] == ["low", "medium", "high"]


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("t.xlsx", "x", {}, "t.xlsx: cannot tell the format; use .csv, .tsv, .jsonl or .parquet"),
        ("t", "x", {}, "t: cannot tell the format"),
        ("t.csv", "", {}, "t.csv: cannot be read: No columns"),
        ("t.csv", "text,label\n", {}, "t.csv: contains no texts"),
        ("t.csv", "text,lable\na,x\n", {}, 't.csv: no column "label"; there are: text, lable; set'),
        (
            "t.csv",
            "a,x\nb,y\n",
            {"text_column": 0, "label_column": 7},
            'no column "7"; there are: 0,',
        ),
        (
            "t.csv",
            "a,x\nb,y\n",
            {"text_column": 0, "label_column": "label"},
            'no column "label"; there are: 0, 1; set data.text_column and data.label_column',
        ),
        ("t.csv", b"text,label\na,x\n\xe9,y\n", {}, "t.csv, line 3: not utf-8 text (byte 0xe9)"),
        ("t.csv", b"text,label\na,x\n\xff,y\n", {"encoding": "ascii"}, "line 3: not ascii text"),
        ("t.csv", b"text,label\na,x\n", {"encoding": "hex"}, "t.csv: cannot be decoded as hex"),
        ("t.csv", "text,label\na,x\n,y\nc,x\n,y\n", {}, "t.csv: rows 2, 4 without a text"),
        ("t.csv", "text,label\na,x\nb,\n", {}, "t.csv: row 2 without a label"),
        ("t.csv", "text,label\na,x\nb\n", {}, "t.csv: row 2 without a label"),
        ("t.csv", 'text,label\na,x\n" \t",y\n', {}, "t.csv: row 2 without a text"),
        ("t.csv", "text,label\na,x\nb,y,z\n", {}, "t.csv: cannot be read: Error tokenizing data."),
        ("t.csv", "text,label\na,x,1\nb,y,2\n", {}, "t.csv: row 1 has more fields than the header"),
        ("t.csv", 'text,label\na,x\n"b,y\n', {}, "t.csv: cannot be read: Error tokenizing data."),
        ("t.csv", "text,label\n" + "," * 20_000, {}, "20001 columns; is the delimiter right?"),
        (
            "t.csv",
            "text,label\na,1\nb,0\nc,2\nd, 1\n",
            {"labels": {"0": "n", "1": "p"}},
            't.csv: rows 3, 4 with a label value that data.labels does not name: "2", " 1"',
        ),
        ("t.csv", "0,1,d,q,u,a\n4,2,d,q,u,b\n2,3,d,q,u,c\n", {}, "t.csv: row 3 with a label value"),
        ("t.csv", "0,1,d,q,u,a\n4,2,d,q,u\n", {}, "t.csv: row 2 without a text"),
        ("t.csv", "text,label\na,x\nb,x\n", {}, "t.csv: one label only: x; classifying needs two"),
        (
            "t.csv",
            "text,label\na,bad\nb,badly\n",
            {},
            't.csv: the label word "bad" is the beginning',
        ),
        (
            "t.csv",
            "text,label\na, x\nb,y\n",
            {},
            "t.csv: the label word ' x' is empty or has white",
        ),
        (
            "t.csv",
            "text,label\n" + "".join(f"t{i},l{i:03}\n" for i in range(101)),
            {},
            "t.csv: 101 different labels; is data.label_column right?",
        ),
        (
            "t.csv",
            "text,label\na,x\nb,y\n",
            {"sample_size": 100},
            "t.csv: data.sample_size is 100, but only 2 texts are left; lower it, or take all",
        ),
        (
            "t.csv",
            "text,label\na,x\nb,y\na,x\n",
            {"sample_size": 40},
            "data.sample_size is 40, but only 2 texts are left; lower it, or take all",
        ),
        ("t.jsonl", "", {}, "t.jsonl: contains no texts"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"te', {}, "t.jsonl, line 2: is not JSON"),
        ("t.jsonl", '{"text": "a", "label": 1}\n[1]', {}, "t.jsonl, line 2: must be a JSON object"),
        ("t.jsonl", '{"text": "a"}', {}, 't.jsonl, line 1: no column "label"; there are: text;'),
        ("t.jsonl", '\n{"text": 3, "label": 1}', {}, 't.jsonl, line 2: "text" must be a string'),
        ("t.jsonl", '\n{"text": null, "label": 1}', {}, "t.jsonl: row 2 without a text"),
        ("t.jsonl", '{"text": "a", "label": null}', {}, "t.jsonl: row 1 without a label"),
        (
            "t.jsonl",
            r'{"text": "a\ud83d", "label": 1}',
            {},
            "t.jsonl, line 1: has a lone surrogate",
        ),
        ("t.jsonl", "[" * 100_000, {}, "t.jsonl, line 1: is not JSON"),
        ("t.parquet", "PAR1 and no more PAR1", {}, "t.parquet: cannot be read: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(
    name: str, content: str | bytes, settings: dict[str, Any], message: str, read: Read
) -> None:
    with pytest.raises(DataError) as caught:
        read(name, content, **settings)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") < 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["a"], "label": ["x"]}, 'no column "text"; there are: txt, label'),
        ({"text": [1], "label": ["x"]}, 'the column "text" must hold strings'),
        ({"text": ["a", None], "label": ["x", "y"]}, "row 2 without a text"),
        ({"text": ["a", "b"], "label": [1, None]}, "row 2 without a label"),
    ],
)
def test_what_is_wrong_with_a_parquet_file(
    columns: dict[str, list[Any]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(DataError) as caught:
        load_dataset(DataConfig(path=str(path), sample_size=None))
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.csv", "No such file or directory"),
        (".", "Is a directory"),
        ("nul\0.csv", "embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"cannot read the data: {reason}"):
        load_dataset(DataConfig(path=path))


# ------------------------------------------------------------------------------------ duplicates

REPEATED = "text,label\na,x\nb,y\na,y\nc,x\nb,y\nd,y\n"


def test_deduplicate_keeps_the_first_of_repeated_texts(read: Read) -> None:
    dataset = read("t.csv", REPEATED, deduplicate=True)
    assert rows(dataset) == [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")]
    assert (dataset.rows, dataset.duplicates, dataset.dropped) == (6, 2, 2)
    assert dataset.notes([]) == ["t.csv: 2 repeated texts were dropped"]


def test_without_deduplicate_repeats_are_counted(read: Read) -> None:
    dataset = read("t.csv", REPEATED, deduplicate=False)
    assert len(dataset.texts) == 6
    assert (dataset.rows, dataset.duplicates, dataset.dropped) == (6, 2, 0)


def test_test_texts_that_stand_in_train_are_counted(read: Read) -> None:
    content = "text,label\n" + "same,x\n" * 4 + "".join(f"t{i},y\n" for i in range(4))
    config = {"deduplicate": False, "test_fraction": 0.5}
    dataset = read("t.csv", content, **config)
    splits = TrialSplits(dataset, RunConfig(trials=2, data=DataConfig(**config)))
    assert [split.overlap for split in splits] == [2, 2]
    assert dataset.notes(splits) == [
        "t.csv: test texts that are also in the training part: 2 in trial 1, 2 in trial 2;"
        " data.deduplicate: true avoids that"
    ]


# ---------------------------------------------------------------------------------- real tweets


def test_sample_and_splits_are_those_of_pandas_and_scikit_learn(tweets: Path) -> None:
    frame = pd.read_csv(
        tweets, header=None, encoding="iso-8859-1", dtype=str, keep_default_na=False
    )[[5, 0]]
    sample = frame.sample(10_000, random_state=1)
    words = {"0": "negative", "4": "positive"}

    data = DataConfig(path=str(tweets), deduplicate=False)
    dataset = load_dataset(data)
    assert dataset.is_sentiment140
    assert rows(dataset) == list(zip(sample[5], sample[0].map(words), strict=True))
    for split in TrialSplits(dataset, RunConfig(data=data)):
        parts = train_test_split(
            sample, test_size=0.05, stratify=sample[0], random_state=split.trial
        )
        for part, examples in zip(parts, (split.train, split.test), strict=True):
            assert [e.text for e in examples] == list(part[5])
            assert [e.label for e in examples] == list(part[0].map(words))


# ------------------------------------------------------------------------------- extra test texts


def with_extra(size: int, *overrides: str) -> tuple[Dataset, TrialSplits]:
    config = load(
        "smoke",
        overrides=["data.sample_size=400", f"data.extra_test_size={size}", *overrides],
    )
    dataset = load_dataset(config.data)
    return dataset, TrialSplits(dataset, config)


def test_extra_test_texts_are_from_outside_the_sample_and_the_same_for_all_trials() -> None:
    dataset, splits = with_extra(100)
    plain, plain_splits = with_extra(0)
    assert [s.sha256 for s in splits] == [s.sha256 for s in plain_splits]
    assert rows(dataset) == rows(plain)
    for split in splits:
        assert len(split.extra) == len({e.text for e in split.extra}) == 100
        assert split.tested == (*split.test, *split.extra)
        assert not {e.text for e in split.extra} & {e.text for e in (*split.train, *split.test)}
        of_first = sum(e.label == dataset.labels[0] for e in split.extra)
        assert abs(of_first - 50) <= 1
    assert splits[0].extra_sha256 == splits[1].extra_sha256 != ""
    assert plain_splits[0].extra_sha256 == ""
    assert with_extra(100)[1].summaries == splits.summaries
    assert with_extra(101)[1][0].extra_sha256 != splits[0].extra_sha256


def test_repeats_of_sampled_texts_are_no_extra_test_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = [f"text {i % 60},{'good' if i % 2 else 'bad'}" for i in range(120)]
    path.write_text("\n".join(["text,label", *rows]), "utf-8")
    overrides = (f"data.path={path}", "data.sample_size=40", "data.deduplicate=false")
    _, splits = with_extra(10, *overrides)
    for split in splits:
        assert not {e.text for e in split.extra} & {e.text for e in (*split.train, *split.test)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.sample_size=null",), "but only 0 texts are not in the sample"),
        (
            ("data.sample_size=2900", "data.extra_test_size=300"),
            "but only 100 texts are not in the",
        ),
        (("data.extra_test_size=1",), "data.extra_test_size 1: "),
    ],
)
def test_extra_test_texts_that_are_not_there(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_extra(10, *overrides)


def test_a_blank_line_does_not_hide_rows_with_more_fields_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = [f"id{i},text {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    path.write_text("\n".join(["text,label", "   ", *rows]), "utf-8")
    with pytest.raises(DataError, match="more fields than the header"):
        load_dataset(DataConfig(path=str(path), sample_size=None))


# ------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Loads a file with the cache at work, and fails if it is read when it should not be."""
    monkeypatch.setattr(module, "_LEAST_CACHED_FILE", 0)
    path = tmp_path / "tweets.csv"
    lines = [f'"{4 * (i % 2)}","{i}","","","","text {i % 90} \xe9"\n' for i in range(100)]
    path.write_bytes("".join(lines).encode("iso-8859-1"))
    read_table = module.read_table

    def load(*, is_read: bool, **settings: Any) -> Dataset:
        reads = []
        monkeypatch.setattr(module, "read_table", lambda *a: reads.append(1) or read_table(*a))
        config = DataConfig(**{"path": str(path), "sample_size": 50, **settings})
        dataset = load_dataset(config)
        assert bool(reads) == is_read
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert dataset == module._sampled(content, str(path), config, sha256)
        return dataset

    return load


def entries(folder: Path) -> list[Path]:
    return list((folder / "cache" / "samples").iterdir())


def test_a_sample_is_drawn_once(cached: Callable[..., Dataset], tmp_path: Path) -> None:
    cached(is_read=True)
    cached(is_read=False)
    (tmp_path / "tweets.csv").touch()
    cached(is_read=False)
    cached(is_read=False, test_fraction=0.2)
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_seed": 2},
        {"sample_size": 40},
        {"sample_size": None},
        {"deduplicate": False},
        {"encoding": "cp850"},
        {"labels": {"4": "good", "0": "bad"}},
        {"text_column": 1, "label_column": 0, "encoding": "latin-1"},
    ],
)
def test_settings_that_change_the_sample_have_their_own(
    settings: dict[str, Any], cached: Callable[..., Dataset]
) -> None:
    first = cached(is_read=True)
    assert cached(is_read=True, **settings) != first
    cached(is_read=False, **settings)
    assert cached(is_read=False) == first


def test_a_changed_file_of_the_same_size_is_read_again(
    cached: Callable[..., Dataset], tmp_path: Path
) -> None:
    cached(is_read=True)
    path = tmp_path / "tweets.csv"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"text 7", b"next 7"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cached(is_read=True)
    cached(is_read=False)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\xff" * 99, None])
def test_a_damaged_cache_is_written_again(
    content: bytes | None, cached: Callable[..., Dataset], tmp_path: Path
) -> None:
    cached(is_read=True)
    (entry,) = entries(tmp_path)
    damaged = bytearray(entry.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    entry.write_bytes(damaged if content is None else content)
    cached(is_read=True)
    cached(is_read=False)


def test_a_cache_that_cannot_be_written_is_done_without(
    cached: Callable[..., Dataset], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    cached(is_read=True)
    cached(is_read=True)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    writer = threading.Thread(
        target=(tmp_path / "pipe.csv").write_text, args=("text,label\na,x\nb,y\n",)
    )
    writer.start()
    dataset = load_dataset(DataConfig(path=str(tmp_path / "pipe.csv"), sample_size=None))
    writer.join()
    assert rows(dataset) == AB
