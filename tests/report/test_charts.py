from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from tgsent.report.charts import WIDTH, Curve, Row, curves, intervals

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def parsed(drawing: Markup) -> ET.Element:
    return ET.fromstring(str(drawing))


def words(drawing: Markup) -> list[str]:
    return [element.text or "" for element in parsed(drawing).iter("text")]


def places(drawing: Markup, kind: str) -> list[float]:
    return [float(mark.get("cx", "")) for mark in parsed(drawing).iter("circle")
            if kind in (mark.get("class") or "")]  # fmt: skip


def test_values_and_intervals_lie_where_the_ticks_say() -> None:
    rows = [Row("m"), Row("mean", 0.5, (0.4, 0.6), 2, strong=True), Row("one", 0.9)]
    drawing = intervals(rows, title="T", description="D", axis="score")
    ticks = {
        text.text: float(text.get("x", ""))
        for text in parsed(drawing).iter("text")
        if text.get("class") == "tick"
    }
    assert places(drawing, "s2")[0] == pytest.approx(ticks["0.5"], abs=0.1)
    assert places(drawing, "s0")[0] == pytest.approx(ticks["0.9"], abs=0.1)
    (line,) = (x for x in parsed(drawing).iter("line") if x.get("class") == "s2 strong")
    ends = [float(line.get(x, "")) for x in ("x1", "x2")]
    assert ends == pytest.approx([ticks["0.4"], ticks["0.6"]], abs=0.1)
    assert words(drawing)[-1] == "score"
    assert parsed(drawing).get("aria-label") == "T. D"
    assert parsed(drawing).get("role") == "img"


def test_zero_is_in_the_plot_wherever_the_values_are() -> None:
    drawing = intervals([Row("x", 8.0, (7.0, 9.0))], title="", description="", axis="", zero=0.0)
    assert "0" in words(drawing)
    assert sum(x.get("class") == "zero" for x in parsed(drawing).iter("line")) == 1


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_nothing_lies_outside_and_ticks_are_few(values: list[tuple[float, float, float]]) -> None:
    rows = []
    for one in values:
        low, middle, high = sorted(one)
        rows.append(Row("x", middle, (low, high)))
    drawing = intervals(rows, title="", description="", axis="a")
    for line in parsed(drawing).iter("line"):
        assert all(0 <= float(line.get(x, "")) <= WIDTH for x in ("x1", "x2"))
    ticks = [text for text in parsed(drawing).iter("text") if text.get("class") == "tick"]
    assert 3 <= len(ticks) <= 11
    assert len({text.text for text in ticks}) == len(ticks)


def test_labels_are_text_and_nothing_else() -> None:
    drawing = intervals([Row("</svg><script>", 1.0)], title='"><b>', description="&", axis="<i>")
    assert "</svg><script>" in words(drawing)
    assert parsed(drawing).get("aria-label") == '"><b>. &'


def test_curves_begin_and_end_at_their_points() -> None:
    drawing = curves(
        [Curve(1, [(1, 4.0), (10, 1.0)]), Curve(7, [(1, 2.0)])],
        title="T", description="D", across="step", up="loss",
    )  # fmt: skip
    first, second = parsed(drawing).iter("polyline")
    assert (first.get("class"), second.get("class")) == ("s1", "s1")  # six colours, then again
    (_, y1), (x2, y2) = (map(float, p.split(",")) for p in (first.get("points") or "").split())
    assert y1 < y2  # a higher loss is higher up, which is a lower number
    assert x2 == pytest.approx(WIDTH - 16, abs=0.1)
    assert {"step", "loss"} <= set(words(drawing))


def test_dots_are_on_the_diagonal_where_both_values_are_equal() -> None:
    drawing = curves(
        [Curve(0, [(0.5, 0.5), (1.0, 1.0)], [10, 40])],
        title="T", description="D", across="confidence", up="accuracy", diagonal=True,
    )  # fmt: skip
    (diagonal,) = (x for x in parsed(drawing).iter("line") if x.get("class") == "zero")
    x1, y1, x2, y2 = (float(diagonal.get(k, "")) for k in ("x1", "y1", "x2", "y2"))
    dots = [
        (float(c.get("cx", "")), float(c.get("cy", ""))) for c in parsed(drawing).iter("circle")
    ]
    assert dots[0] == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.1)
    assert dots[1] == pytest.approx((x2, y2), abs=0.1)
    assert re.search(r'max-width: \d+px"', str(drawing))
