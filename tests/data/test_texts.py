from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.data.texts import Line, read
from tgsent.data.texts import given as taken
from tgsent.errors import DataError

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


def lines(content: bytes, name: str = "texts.txt", column: str | None = None) -> list[Line]:
    return list(read(io.BytesIO(content), name, column))


def test_a_text_on_each_line() -> None:
    assert lines("\ufeffa b\r\nü, \"c\"\nlast".encode()) == [
        Line(1, "a b"), Line(2, 'ü, "c"'), Line(3, "last")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "column", "expected"),
    [
        ("t.csv", b'\xef\xbb\xbftext,n\n"a, ""b""",1\n"two\nlines",2\nc,3\n', None,
         [Line(2, 'a, "b"'), Line(3, "two\nlines"), Line(5, "c")]),
        ("t.tsv", b"n\tbody\n1\ta,b\n", "body", [Line(2, "a,b")]),
        ("t.jsonl", '{"text": "a\\nb"}\n{"text": "ü", "n": 1}\n'.encode(), None,
         [Line(1, "a\nb"), Line(2, "ü")]),
        ("t.jsonl", b'{"t": "x"}', "t", [Line(1, "x")]),
        ("t.csv", b"text\n", None, []),
        ("t.txt", b"", None, []),
    ],
)  # fmt: skip
def test_tables_and_json_lines(
    name: str, content: bytes, column: str | None, expected: list[Line]
) -> None:
    assert lines(content, name, column) == expected


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("t.txt", b"a\n\xff\xfe\n\n \nb\n", {2: "is not UTF-8", 3: "is empty", 4: "is empty"}),
        ("t.csv", b'text,n\na,1\nb\nc,1,2\n"x"y,1\nd,4\n\xff,1\n,1\ne,1\n',
         {3: "has 1 of 2 fields", 4: "has 3 of 2 fields",
          5: "is not CSV: ',' expected after '\"'", 7: "is not UTF-8", 8: "is empty"}),
        ("t.csv", b'text\na\n"never closed\nb', {3: "is not CSV: unexpected end of data"}),
        ("t.jsonl", b'{"text": "a"}\n{"text": 1}\n{"other": "x"}\n[1]\n{\n\xff\n{"text": ""}\n'
         + b"[" * 100_000 + b'\n{"text": "\\ud800"}\n{"text": "z"}',
         {2: 'holds no text under the key "text"', 3: 'holds no text under the key "text"',
          4: 'holds no text under the key "text"', 5: "is not JSON", 6: "is not UTF-8",
          7: "is empty", 8: "is not JSON", 9: "is not UTF-8"}),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_and_the_rest_is_read(
    name: str, content: bytes, problems: dict[int, str]
) -> None:
    found = lines(content, name)
    assert {line.number: line.problem for line in found if line.problem} == problems
    assert next(line.text for line in found if not line.problem) == "a"


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("t.csv", b"a,b\n1,2\n", None, 't.csv: has no column "text"; --column names one of a, b'),
        ("t.csv", b"", "x", 't.csv: has no column "x"'),
        ("t.csv", b'"te"xt,label\na,b\n', None, "t.csv: its header is not CSV: "),
        ("t.txt", b"a\n", "x", "--column: t.txt is read line by line and has no columns"),
    ],
)
def test_a_column_that_is_not_there(
    name: str, content: bytes, column: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        lines(content, name, column)


def test_arguments_are_checked_as_well() -> None:
    assert list(taken(["a", " ", "\udcff"])) == [
        Line(1, "a"), Line(2, "", "is empty"), Line(3, "", "is not UTF-8")
    ]  # fmt: skip


@given(st.lists(TEXTS))
def test_json_lines_are_read_as_they_were_written(texts: list[str]) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    assert [line.text for line in lines(content.encode(), "t.jsonl")] == texts


def test_nothing_is_read_ahead() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"a text\n"

    class Stream(io.RawIOBase):
        source = endless()

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            piece = next(self.source)
            buffer[: len(piece)] = piece
            return len(piece)

    for name in ("-", "t.csv"):
        first = b"text\n" if name == "t.csv" else b""
        stream = Stream()
        stream.source = iter([first, *[b"a text\n"] * 3]) if first else endless()
        assert next(read(io.BufferedReader(stream), name, None)).text == "a text"
