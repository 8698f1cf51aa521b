"""Plots for the report, as SVG that takes its colours from the page, in light and dark mode.

No plotting library is used: there are few marks, and the output does not depend on a library's
version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tgsent.report.markup import shortened
from tgsent.terminal import printable

WIDTH = 420
"""Width in SVG units. On a phone a unit is a little smaller than a pixel, so text of size 13 stays
legible."""
_HEIGHT, _LEFT, _GUTTER, _MARGIN, _LINE = 200, 44, 62, 16, 20


@dataclass(frozen=True)
class Row:
    """One line of a plot of intervals; without a value it is a heading."""

    label: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    series: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Curve:
    """A line of points `(x, y)`; with `sizes`, each point has a dot of that relative area."""

    series: int
    points: Sequence[tuple[float, float]]
    sizes: Sequence[float] = ()


def intervals(
    rows: Sequence[Row], *, title: str, description: str, axis: str, zero: float | None = None
) -> Markup:
    """Draw values with their intervals, one below the other; `zero` is marked by a line."""
    ends = [x for row in rows if row.value is not None for x in (row.value, *(row.interval or ()))]
    scale = _Scale.over([*ends, *([] if zero is None else [zero])], _GUTTER, WIDTH - _MARGIN)
    height = _LINE * len(rows) + 6
    parts = []
    for tick, shown in scale.ticks:
        parts.append(_line(scale(tick), 0, scale(tick), height, "grid"))
        parts.append(_text(scale(tick), height + 16, shown, "tick", "middle"))
    if zero is not None:
        parts.append(_line(scale(zero), 0, scale(zero), height, "zero"))
    for number, row in enumerate(rows):
        y = _LINE * number + 14
        parts.append(_text(0, y, row.label, "strong" if row.strong or row.value is None else ""))
        mark = f"s{row.series % 6}{' strong' if row.strong else ''}"
        if row.interval:
            parts.append(_line(scale(row.interval[0]), y - 4, scale(row.interval[1]), y - 4, mark))
        if row.value is not None:
            parts.append(_dot(scale(row.value), y - 4, 5 if row.strong else 3.5, mark))
    parts.append(_text((_GUTTER + WIDTH - _MARGIN) / 2, height + 34, axis, "tick", "middle"))
    return _svg(parts, height, title, description)


def curves(
    lines: Sequence[Curve],
    *, title: str, description: str, across: str, up: str, diagonal: bool = False,
) -> Markup:  # fmt: skip
    """Draw lines, each in the colour of its series; with `diagonal`, both axes end at 1."""
    ends = [0.0, 1.0] if diagonal else [0.0]
    points = [point for line in lines for point in line.points]
    horizontal = _Scale.over([*ends, *(x for x, _ in points)], _LEFT, WIDTH - _MARGIN)
    vertical = _Scale.over([*ends, *(y for _, y in points)], _HEIGHT, 10)
    parts = [_text(_LEFT + 4, 8, up, "tick")]
    for tick, shown in vertical.ticks:
        parts.append(_line(_LEFT, vertical(tick), WIDTH - _MARGIN, vertical(tick), "grid"))
        parts.append(_text(_LEFT - 6, vertical(tick) + 4, shown, "tick", "end"))
    for tick, shown in horizontal.ticks:
        parts.append(_text(horizontal(tick), _HEIGHT + 16, shown, "tick", "middle"))
    parts.append(_text((_LEFT + WIDTH - _MARGIN) / 2, _HEIGHT + 34, across, "tick", "middle"))
    if diagonal:
        parts.append(_line(horizontal(0), vertical(0), horizontal(1), vertical(1), "zero"))
    for line in lines:
        places = [(horizontal(x), vertical(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        mark = f"s{line.series % 6}"
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(mark, path))
        for (x, y), size in zip(places, line.sizes, strict=False):
            parts.append(_dot(x, y, 2 + 4 * math.sqrt(size / max(line.sizes)), mark))
    return _svg(parts, _HEIGHT, title, description)


@dataclass(frozen=True)
class _Scale:
    """From values to places in the drawing; `step` is the distance of its ticks."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        """Return a scale over all values, with ticks at both ends.

        A step is 1, 2 or 5 times a power of ten, for four to eight ticks.
        """
        low, high = min(values), max(values)
        if high - low < 1e-6 * max(1, abs(high)):
            low, high = low - 0.05, high + 0.05
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * 0.999)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, step, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The ticks, and how each is written: with as many digits as the steps have."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        ticks = [self.low + self.step * n for n in range(count + 1)]
        return [(tick, f"{round(tick, digits) + 0.0:,.{digits}f}") for tick in ticks]  # no -0


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _dot(x: float, y: float, radius: float, kind: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(
        kind, x, y, radius
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, shortened(printable(text), 50)
    )


def _svg(parts: Iterable[Markup], height: float, title: str, description: str) -> Markup:
    """Put a drawing together; below `height` is room for the ticks and the name of an axis."""
    return Markup(
        '<svg viewBox="0 0 {} {:g}" style="max-width: {:.0f}px" role="img" aria-label="{}. {}">\n'
        "{}\n</svg>"
    ).format(
        WIDTH, height + 42, 1.25 * WIDTH, title, printable(description), Markup("\n").join(parts)
    )
