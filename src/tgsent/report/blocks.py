"""The blocks that a report is made of; the templates know how each kind looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table, to be rendered for a terminal, as HTML or as Markdown; shown if it has rows."""

    kind: ClassVar = "table"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    title: str = ""
    align: Literal["left", "right"] = "right"
    """Of the columns after the first one, which names the rows."""
    is_quoted: bool = False
    """Whether the cells quote texts of the data, which are code in Markdown."""
    shades: Sequence[Sequence[int]] = ()
    """Percentages by which the cells after the first column are shaded in HTML."""


@dataclass(frozen=True)
class Figure:
    """A plot, for HTML only; the legend has the number and the name of each colour."""

    kind: ClassVar = "figure"
    svg: Markup
    caption: str = ""
    legend: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Bullets:
    """A list of sentences; shown if it has any."""

    kind: ClassVar = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Verbatim:
    """A text shown unchanged, with the completion that a model is trained to write, if any."""

    kind: ClassVar = "verbatim"
    title: str
    text: str
    completion: str = ""


Block = Table | Figure | Bullets | Verbatim

Section = tuple[str, Sequence[Block | None]]
"""Title and blocks; it is shown if one of them is. None stands for a plot without values."""
