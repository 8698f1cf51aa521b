"""Plots for the report, as SVG within the page, whose colours they take, also in the dark.

Drawn by hand rather than by a library: the marks are few, what is drawn is the same with any
version of anything, and texts and colours follow the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tgsent.terminal import printable

WIDTH = 420
"""In units of the drawing: a phone shows them a little smaller than its pixels, so that texts of 13
stay legible."""
_GUTTER, _MARGIN, _LINE = 62, 12, 20
_MOST_LETTERS = 50


@dataclass(frozen=True)
class Row:
    """One line of a plot of intervals; without a value it is a heading."""

    label: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    series: int = 0
    strong: bool = False


def intervals(
    rows: Sequence[Row], *, title: str, description: str, axis: str, zero: float | None = None
) -> Markup:
    """Draw values with their intervals, one below the other; `zero` is marked by a line."""
    ends = [x for row in rows if row.value is not None for x in (row.value, *(row.interval or ()))]
    scale = _Scale.over([*ends, *([] if zero is None else [zero])], _GUTTER, WIDTH - _MARGIN)
    height = _LINE * len(rows) + 6
    parts = []
    for tick in scale.ticks:
        x = scale(tick)
        parts.append(_line(x, 0, x, height, "grid"))
        parts.append(_text(x, height + 16, scale.show(tick), "tick", "middle"))
    if zero is not None:
        parts.append(_line(scale(zero), 0, scale(zero), height, "zero"))
    for number, row in enumerate(rows):
        y = _LINE * number + 14
        parts.append(_text(0, y, row.label, "strong" if row.strong or row.value is None else ""))
        if row.value is None:
            continue
        mark = f"s{row.series % 6}{' strong' if row.strong else ''}"
        if row.interval:
            parts.append(_line(scale(row.interval[0]), y - 4, scale(row.interval[1]), y - 4, mark))
        x, radius = scale(row.value), 5 if row.strong else 3.5
        parts.append(
            Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="{}"/>').format(mark, x, y - 4, radius)
        )
    parts.append(_text((_GUTTER + WIDTH - _MARGIN) / 2, height + 34, axis, "tick", "middle"))
    return _svg(parts, WIDTH, height + 42, title, description)


def curves(
    lines: Sequence[tuple[int, Sequence[tuple[float, float]]]],
    *, title: str, description: str, across: str, up: str,
) -> Markup:  # fmt: skip
    """Draw lines of points `(x, y)`, each in the colour of its series."""
    height, left = 200, 44
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    horizontal = _Scale.over([0, *xs], left, WIDTH - _MARGIN)
    vertical = _Scale.over([0, *ys], height, 10)
    parts = _axes(horizontal, vertical, left, height, across, up)
    for series, points in lines:
        path = " ".join(f"{horizontal(x):.1f},{vertical(y):.1f}" for x, y in points)
        parts.append(Markup('<polyline class="s{}" points="{}"/>').format(series % 6, path))
    return _svg(parts, WIDTH, height + 42, title, description)


def reliability(
    models: Sequence[tuple[int, Sequence[tuple[float, float, int]]]],
    *, title: str, description: str,
) -> Markup:  # fmt: skip
    """Draw accuracy over confidence; a point is a bin `(confidence, accuracy, texts)`."""
    height, left, right = 260, 44, 310
    horizontal, vertical = _Scale(0, 1, left, right), _Scale(0, 1, height, 10)
    parts = _axes(horizontal, vertical, left, height, "confidence", "accuracy")
    parts.append(_line(left, height, right, 10, "zero"))
    for series, bins in models:
        most = max(n for _, _, n in bins)
        path = " ".join(f"{horizontal(x):.1f},{vertical(y):.1f}" for x, y, _ in bins)
        parts.append(Markup('<polyline class="s{}" points="{}"/>').format(series % 6, path))
        parts += [
            Markup('<circle class="s{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(
                series % 6, horizontal(x), vertical(y), 2 + 4 * math.sqrt(n / most)
            )
            for x, y, n in bins
        ]
    return _svg(parts, right + _MARGIN, height + 42, title, description)


@dataclass(frozen=True)
class _Scale:
    """From values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> _Scale:
        """Return a scale over all values, with whole ticks at both ends."""
        values = list(values)
        low, high = min(values, default=0.0), max(values, default=1.0)
        if high - low < 1e-9:
            low, high = low - 0.05, high + 0.05
        step = _step(low, high)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        step = _step(self.low, self.high)
        return [self.low + step * n for n in range(round((self.high - self.low) / step) + 1)]

    def show(self, tick: float) -> str:
        """Write a tick with as many digits as the steps have."""
        digits = max(0, -math.floor(math.log10(_step(self.low, self.high)) + 1e-9))
        return (
            f"{tick:,.{digits}f}".replace("-0", "0") if abs(tick) < 1e-9 else f"{tick:,.{digits}f}"
        )


def _step(low: float, high: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten, for four to eight ticks."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= raw * 0.999)


def _axes(
    horizontal: _Scale, vertical: _Scale, left: float, height: float, across: str, up: str
) -> list[Markup]:
    parts = []
    for tick in vertical.ticks:
        y = vertical(tick)
        parts.append(_line(left, y, horizontal.end, y, "grid"))
        parts.append(_text(left - 6, y + 4, vertical.show(tick), "tick", "end"))
    parts += [
        _text(horizontal(tick), height + 16, horizontal.show(tick), "tick", "middle")
        for tick in horizontal.ticks
    ]
    parts.append(_text(left + 4, 8, up, "tick"))
    parts.append(_text((left + horizontal.end) / 2, height + 34, across, "tick", "middle"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, _short(printable(text))
    )


def _short(text: str) -> str:
    """Truncate what would not fit the drawing."""
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 2]} …"


def _svg(
    parts: Iterable[Markup], width: float, height: float, title: str, description: str
) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {:g} {:g}" style="max-width: {:.0f}px" role="img" aria-label="{}. {}">\n'
        "{}\n</svg>"
    ).format(width, height, 1.25 * width, title, printable(description), Markup("\n").join(parts))
