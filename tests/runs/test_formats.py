"""Predictions as CSV: read back as they were, safe for spreadsheets."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.records import Prediction
from tgsent.runs.formats import (
    escape_formula,
    predictions_csv,
    read_predictions,
    unescape_formula,
)

_nasty = st.text(
    st.one_of(
        st.sampled_from("\n\r\",;' \t\x01\x0b\x1a\x85\u2028\ufeff😀"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
)


@given(st.lists(st.tuples(_nasty, st.none() | st.just("x y"), _nasty), min_size=1))
def test_predictions_round_trip(answers: list[tuple[str, str | None, str]]) -> None:
    predictions = [Prediction(text, "x y", said, raw) for text, said, raw in answers]
    content = predictions_csv(predictions, ("x y", "z"), escape_formulas=False)
    expected = [[p.text, p.label, p.predicted or "", p.generated] for p in predictions]

    header, *by_csv = csv.reader(io.StringIO(content, newline=""))
    assert header == ["text", "label", "predicted", "generated"]
    assert by_csv == expected
    frame = pd.read_csv(io.BytesIO(content.encode()), dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == expected


def test_predictions_have_probabilities_where_decoding_gives_them() -> None:
    predictions = [
        Prediction("a", "x", "x", " x", (0.75, 0.25)),
        Prediction("b", "y", "y", " y", (1 / 3, 2 / 3)),
    ]
    assert predictions_csv(predictions, ("x", "y"), escape_formulas=True) == (
        "text,label,predicted,generated,p_x,p_y\n"
        "a,x,x, x,0.750000,0.250000\n"
        "b,y,y, y,0.333333,0.666667\n"
    )


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("\uff1d1", "'\uff1d1"), ("'=1", "''=1"),
        ("a=1", "a=1"), ("'tis", "'tis"), ("", ""), ("' =1", "' =1"),
    ],
)  # fmt: skip
def test_formulas_are_escaped(cell: str, written: str) -> None:
    assert escape_formula(cell) == written


@given(st.text("'=+-@\t\r\n a"))
def test_escaping_formulas_can_be_undone(cell: str) -> None:
    assert unescape_formula(escape_formula(cell)) == cell
    assert not re.match(r"[=+\-@\t\r\n]", escape_formula(cell))


def test_formulas_in_texts_and_answers_are_escaped_unless_told_otherwise() -> None:
    predictions = [Prediction("=cmd()", "-a", "-a", "+b")]
    assert predictions_csv(predictions, ("-a", "c"), escape_formulas=True).splitlines()[1] == (
        "'=cmd(),'-a,'-a,'+b"
    )
    assert predictions_csv(predictions, ("-a", "c"), escape_formulas=False).splitlines()[1] == (
        "=cmd(),-a,-a,+b"
    )


@given(
    st.lists(
        st.builds(
            Prediction,
            text=st.text(st.characters(exclude_categories=["Cs"])),
            label=st.sampled_from(("x", "=y", "'-z")),
            predicted=st.sampled_from((None, "x", "=y", "'-z")),
            generated=st.text("=+-'x\r\n,\"", max_size=5),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_predictions_are_read_back_as_they_were(
    predictions: list[Prediction], escape: bool
) -> None:
    content = predictions_csv(predictions, ("x", "=y", "'-z"), escape_formulas=escape)
    assert read_predictions(content, escaped=escape) == predictions


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_no_delimiter_of_a_spreadsheet_makes_a_formula_of_the_middle(delimiter: str) -> None:
    predictions = [Prediction(f"x{delimiter}=cmd(){delimiter}@y", "a", "a", "b")]
    content = predictions_csv(predictions, ("a", "c"), escape_formulas=True)
    for row in csv.reader(io.StringIO(content, newline=""), delimiter=delimiter):
        assert not any(cell.startswith(("=", "@")) for cell in row)
