"""The formats of a run folder: records as JSON, predictions as CSV and as JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from pydantic import TypeAdapter

from tgsent.config import TrialSpec
from tgsent.errors import RunFolderError
from tgsent.files import json_line
from tgsent.records import Prediction

T = TypeVar("T")


class UnusableError(RunFolderError):
    """A file of a run folder is damaged, or belongs to another run."""


def read_record(kind: type[T], file: Path) -> T | None:
    """Read a dataclass from a JSON file, whose other keys are ignored; None where it is missing.

    Raises UnusableError where it holds something else, RunFolderError where it cannot be read.
    """
    try:
        values = json.loads(file.read_bytes())
        return cast("T", _adapter(kind).validate_python(values))  # type: ignore[arg-type]  # hashable
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UnusableError(
            f"{file}: is damaged, or was not written by tgsent; delete it, or move the run folder"
            " aside with --fresh"
        ) from None


@cache
def _adapter(kind: type[object]) -> TypeAdapter[object]:
    return TypeAdapter(kind)  # takes 40 ms to build, so that each is built once


def predictions_csv(
    predictions: Sequence[Prediction], labels: Sequence[str], *, escape_formulas: bool
) -> str:
    """Write `text,label,predicted,generated` and, where there are any, the probabilities."""
    with_probabilities = any(p.probabilities is not None for p in predictions)
    shares = [f"p_{label}" for label in labels] if with_probabilities else []
    rows = [["text", "label", "predicted", "generated", *shares]]
    rows += [[p.text, p.label, *_answer(p)] for p in predictions]
    return "".join(_csv_row(row, escape=escape_formulas) for row in rows)


def prediction_lines(
    predictions: Iterable[tuple[int, Prediction]], spec: TrialSpec, *, as_json: bool
) -> Iterator[str]:
    """Write answers to texts without labels: as CSV with a header, or as JSON lines.

    Each answer comes with the line number of its text.
    """
    if not as_json:
        header = ["line", "text", "predicted", "generated", *(f"p_{x}" for x in spec.labels)]
        yield _csv_row(header, escape=spec.escape_formulas)
    for line, p in predictions:
        if as_json:
            shares = dict(zip(spec.labels, p.probabilities or (), strict=True))
            row = {"line": line, "text": p.text, "predicted": p.predicted, "generated": p.generated}
            yield json_line({**row, "probabilities": shares}) + "\n"
        else:
            yield _csv_row([str(line), p.text, *_answer(p)], escape=spec.escape_formulas)


def _answer(p: Prediction) -> list[str]:
    """Return the cells of an answer."""
    return [p.predicted or "", p.generated, *(f"{share:.6f}" for share in p.probabilities or ())]


def _csv_row(cells: Sequence[str], *, escape: bool) -> str:
    if escape:
        cells = [escape_formula(cell) for cell in cells]
    # a reader that takes another character for the delimiter finds no formula behind one
    separated = any(set(cell) & set(";\t|") for cell in cells)
    file = io.StringIO(newline="")
    csv.writer(
        file,
        # only with this line end do all versions of Python quote a cell that holds a lone "\r"
        lineterminator="\r\n",
        quoting=csv.QUOTE_ALL if separated else csv.QUOTE_MINIMAL,
    ).writerow(cells)
    return file.getvalue().removesuffix("\r\n") + "\n"


def read_predictions(content: str, *, escaped: bool) -> list[Prediction]:
    """Read what `predictions_csv` wrote; raise ValueError or csv.Error for something else."""
    csv.field_size_limit(2**31 - 1)  # a text may be as long as it likes
    exact = unescape_formula if escaped else str
    _, *rows = csv.reader(io.StringIO(content, newline=""))
    return [
        Prediction(
            text=exact(text),
            label=exact(label),
            predicted=exact(predicted) or None,
            generated=exact(generated),
            probabilities=tuple(map(float, shares)) or None,
        )
        for text, label, predicted, generated, *shares in rows
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
