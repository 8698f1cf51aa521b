"""The formats of a run folder: records as JSON, predictions as CSV and as JSON lines."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tgsent.config import TrialSpec
from tgsent.files import json_line
from tgsent.records import Prediction

T = TypeVar("T")


def record(kind: type[T], values: object) -> T:
    """Build a dataclass from what JSON holds; raise ValueError where a field is missing or wrong.

    Keys that it does not know are ignored.
    """
    found: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]  # it is hashable
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # takes 40 ms to build, so that each is built once


def predictions_csv(
    predictions: Sequence[Prediction], labels: Sequence[str], *, escape_formulas: bool
) -> str:
    """Write `text,label,predicted,generated` and, where there are any, the probabilities."""
    with_probabilities = any(p.probabilities is not None for p in predictions)
    header = ["text", "label", "predicted", "generated"]
    header += [f"p_{label}" for label in labels] if with_probabilities else []
    rows = [header]
    for p in predictions:
        numbers = [f"{number:.6f}" for number in p.probabilities or ()]
        rows.append([p.text, p.label, p.predicted or "", p.generated, *numbers])
    return "".join(_csv_row(row, escape=escape_formulas) for row in rows)


def prediction_lines(
    predictions: Iterable[tuple[int, Prediction]], spec: TrialSpec, *, as_json: bool
) -> Iterator[str]:
    """Write answers to texts without labels: as CSV with a header, or as JSON lines.

    Each answer comes with the line number of its text.
    """
    if not as_json:
        names = [f"p_{label}" for label in spec.labels]
        yield _csv_row(
            ["line", "text", "predicted", "generated", *names], escape=spec.escape_formulas
        )
    for line, p in predictions:
        likely = p.probabilities or ()
        if as_json:
            shares = dict(zip(spec.labels, likely, strict=True))
            row = {"line": line, "text": p.text, "predicted": p.predicted, "generated": p.generated}
            yield json_line({**row, "probabilities": shares}) + "\n"
        else:
            cells = [
                str(line),
                p.text,
                p.predicted or "",
                p.generated,
                *(f"{x:.6f}" for x in likely),
            ]
            yield _csv_row(cells, escape=spec.escape_formulas)


def _csv_row(cells: Sequence[str], *, escape: bool) -> str:
    return _csv_line(list(map(escape_formula, cells)) if escape else cells)


_APOSTROPHE_FIRST = re.compile("[,\"\n]'")


def read_predictions(content: str, *, escaped: bool) -> list[Prediction]:
    """Read what `predictions_csv` wrote."""
    csv.field_size_limit(2**31 - 1)  # a text may be as long as it likes
    escaped = escaped and _APOSTROPHE_FIRST.search(content) is not None
    exact: Callable[[str], str] = unescape_formula if escaped else str
    _, *rows = csv.reader(io.StringIO(content, newline=""))
    return [
        Prediction(
            text=exact(row[0]),
            label=exact(row[1]),
            predicted=exact(row[2]) or None,
            generated=exact(row[3]),
            probabilities=tuple(map(float, row[4:])) or None,
        )
        for row in rows
    ]


# What spreadsheets take for the start of a formula, or skip before one (OWASP, "CSV Injection").
# Apostrophes may precede it, so that removing one apostrophe always undoes the escape.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def escape_formula(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet could run, so that it is text there."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape_formula(cell: str) -> str:
    """Undo `escape_formula`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _csv_line(fields: Sequence[str]) -> str:
    file = io.StringIO(newline="")
    # only with this line end do all versions of Python quote a field that holds a lone "\r"
    # and a reader that takes another character for the delimiter finds no formula behind one
    separated = any(set(field) & set(";\t|") for field in fields)
    csv.writer(
        file,
        lineterminator="\r\n",
        quoting=csv.QUOTE_ALL if separated else csv.QUOTE_MINIMAL,
    ).writerow(fields)
    return file.getvalue().removesuffix("\r\n") + "\n"
