"""Readers of labelled texts, one per file format; each returns the same table."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from tgsent.config import DataConfig
from tgsent.config.sections import label_value
from tgsent.data.texts import DELIMITERS, JSON_LINES, has_lone_surrogate
from tgsent.errors import DataError

_MOST_COLUMNS = 10_000  # pandas takes minutes for many more


def read_table(content: bytes, name: str, config: DataConfig) -> tuple[pd.DataFrame, bool]:
    """Read a file by the ending of its name; tell whether it has Sentiment140's layout.

    The columns are `text` and `label`, strings that are not blank, and `row`, the number in the
    file, from 1. Raises DataError for anything wrong with the file.
    """
    suffix = Path(name).suffix.lower()
    has_names = config.text_column is not None or config.label_column is not None
    is_sentiment140 = suffix == ".csv" and not has_names and _has_sentiment140_layout(content)
    if is_sentiment140:
        encoding = config.encoding or "iso-8859-1"
        columns = {"text_column": 5, "label_column": 0}
        config = config.model_copy(update={**columns, "encoding": encoding})
    if suffix == ".parquet":
        frame = _read_parquet(content, name, config)
    elif suffix in JSON_LINES:
        frame = _read_jsonl(content, name, config)
    elif suffix in DELIMITERS:
        frame = _read_csv(content, name, config, DELIMITERS[suffix])
    else:
        raise DataError(f"{name}: cannot tell the format; use .csv, .tsv, .jsonl or .parquet")
    for column in ("text", "label"):
        is_blank = frame[column].isna() | (frame[column].str.strip() == "")
        if is_blank.any():
            raise DataError(
                f"{name}: {show_rows(frame['row'][is_blank].tolist())} without a {column}"
            )
    if frame.empty:
        raise DataError(f"{name}: contains no texts")
    return frame, is_sentiment140


def show_rows(numbers: Sequence[int]) -> str:
    """Format row numbers for a message; of many, only the first ones."""
    shown = ", ".join(map(str, numbers[:5]))
    if len(numbers) == 1:
        return f"row {shown}"
    more = f", ... ({len(numbers)} rows)" if len(numbers) > 5 else ""
    return f"rows {shown}{more}"


def _read_csv(content: bytes, name: str, config: DataConfig, delimiter: str) -> pd.DataFrame:
    encoding = config.encoding or "utf-8-sig"
    _decode(content, name, encoding)  # pandas' error would name no line
    lines = io.TextIOWrapper(io.BytesIO(content), encoding, newline="")
    with contextlib.suppress(csv.Error):  # of a field that is very long: no reason to refuse it
        for row in islice(filter(None, csv.reader(lines, delimiter=delimiter)), 2):
            if len(row) > _MOST_COLUMNS:
                raise DataError(f"{name}: {len(row)} columns; is the delimiter right?")
    has_positions = isinstance(config.text_column, int) or isinstance(config.label_column, int)
    try:
        frame = pd.read_csv(
            io.BytesIO(content),
            encoding=encoding,
            sep=delimiter,
            header=None if has_positions else 0,
            dtype=str,
            keep_default_na=False,
            na_values=[],
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error, ValueError) as error:
        raise DataError(f"{name}: cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first column for an index
        raise DataError(f"{name}: row 1 has more fields than the header")
    frame.columns = frame.columns.map(str)
    text, label = _columns(config, list(frame.columns), name)
    numbers = range(1, len(frame) + 1)
    return pd.DataFrame({"text": frame[text], "label": frame[label], "row": numbers})


def _has_sentiment140_layout(content: bytes) -> bool:
    """Recognise six columns without a header: label 0, 2 or 4, id, date, query, user, text."""
    first_line = re.split("[\r\n]", content[:10_000].decode("iso-8859-1"), maxsplit=1)[0]
    fields = next(csv.reader([first_line]), [])
    return len(fields) == 6 and fields[0] in {"0", "2", "4"} and fields[1].isdecimal()


def _read_jsonl(content: bytes, name: str, config: DataConfig) -> pd.DataFrame:
    rows = []
    lines = _decode(content, name, config.encoding or "utf-8-sig").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: must be a JSON object with named values")
        text, label = _columns(config, list(row), place)
        if not isinstance(row[text], str | None):
            raise DataError(f'{place}: "{text}" must be a string')
        values = row[text], _label(row[label])
        if any(has_lone_surrogate(value or "") for value in values):
            raise DataError(f"{place}: has a lone surrogate, half of a character")
        rows.append((*values, number))
    return pd.DataFrame(rows, columns=["text", "label", "row"])


def _read_parquet(content: bytes, name: str, config: DataConfig) -> pd.DataFrame:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(content))
        text, label = _columns(config, file.schema_arrow.names, name)
        read = file.read(columns=[text, label])
        # Python values, since pandas would make floats of a column of integers with gaps
        texts, labels = read[text].to_pylist(), read[label].to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from None
    if any(not isinstance(value, str | None) for value in texts):
        raise DataError(f'{name}: the column "{text}" must hold strings')
    frame = pd.DataFrame({"text": texts, "label": list(map(_label, labels))}, dtype=object)
    return frame.assign(row=range(1, len(frame) + 1))


def _columns(config: DataConfig, names: Sequence[str], place: str) -> tuple[str, str]:
    """Return the names of the columns with the texts and the labels, which must be there."""
    text, label = config.text_column, config.label_column
    found = "text" if text is None else str(text), "label" if label is None else str(label)
    for key in found:
        if key not in names:
            shown = ", ".join(map(str, names[:10])) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f'{place}: no column "{key}"; there are: {shown};'
                " set data.text_column and data.label_column"
            )
    return found


def _label(value: object) -> str | None:
    return None if value is None else label_value(value)


def _decode(content: bytes, name: str, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {line}: not {encoding.removesuffix('-sig')} text (byte"
            f" {content[error.start]:#04x}); name the encoding, for example"
            " --set data.encoding=iso-8859-1"
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{name}: cannot be decoded as {encoding}: {error}") from None
