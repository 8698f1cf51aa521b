"""Texts to classify, read one by one, so that the input may be of any length."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tgsent.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = {".jsonl", ".ndjson"}


@dataclass(frozen=True, slots=True)
class Line:
    """One text, or the reason why it cannot be read."""

    number: int
    """Number of the line that it begins on, from 1."""
    text: str
    problem: str = ""


def read(source: BinaryIO, name: str, column: str | None) -> Iterator[Line]:
    """Read the texts of a file: `.csv`, `.tsv` and `.jsonl` by a column, others line by line.

    Raises DataError where the file has no such column.
    """
    ending = Path(name).suffix.lower()
    if ending == ".parquet":
        raise DataError(f"--file: {name}: Parquet cannot be read as a stream; write it as .csv")
    if ending in DELIMITERS:
        return _table(source, name, column or "text", DELIMITERS[ending])
    if ending in JSON_LINES:
        return _lines(source, lambda line: _from_json(line, column or "text"))
    if column is not None:
        raise DataError(f"--column: {name} is read line by line and has no columns")
    return _lines(source, lambda line: line)


def given(texts: Iterable[str]) -> Iterator[Line]:
    """Check texts that are not from a file."""
    return (_checked(number, text) for number, text in enumerate(texts, start=1))


def _lines(source: BinaryIO, text_of: Callable[[str], str]) -> Iterator[Line]:
    for number, raw in enumerate(source, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            yield _checked(number, text_of(line))
        except UnicodeDecodeError:
            yield Line(number, "", "is not UTF-8")
        except DataError as error:
            yield Line(number, "", str(error))


def _from_json(line: str, column: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError("is not JSON") from None
    text = value.get(column) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(f'holds no text under the key "{column}"')
    return text


def _table(source: BinaryIO, name: str, column: str, delimiter: str) -> Iterator[Line]:
    csv.field_size_limit(2**31 - 1)  # a text may be of any length
    # bytes that are not UTF-8 become lone surrogates, which are reported with their line
    decoded = io.TextIOWrapper(source, "utf-8-sig", "surrogateescape", newline="")
    rows = csv.reader(decoded, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise DataError(f"{name}: its header is not CSV: {error}") from None
    if column not in header:
        raise DataError(
            f'{name}: has no column "{column}"; --column names one of {", ".join(header)}'
        )
    place = header.index(column)
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Line(number, "", f"is not CSV: {error}")
            continue
        if len(row) != len(header):
            yield Line(number, "", f"has {len(row)} of {len(header)} fields")
        else:
            yield _checked(number, row[place])


def _checked(number: int, text: str) -> Line:
    if has_lone_surrogate(text):
        return Line(number, "", "is not UTF-8")
    if not text.strip():
        return Line(number, "", "is empty")
    return Line(number, text)


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text has half of a surrogate pair, which UTF-8 cannot encode."""
    return re.search("[\ud800-\udfff]", text) is not None
