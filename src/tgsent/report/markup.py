"""Escape untrusted text for Markdown, and for the HTML that it is rendered to."""

from __future__ import annotations

import html
import re

from tgsent.terminal import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~])")


def shortened(text: str, most: int) -> str:
    """Truncate a text to `most` characters."""
    return text if len(text) <= most else f"{text[: most - 2]} …"


def markdown(text: str) -> str:
    """Escape a text for a line of Markdown, or a cell of a table."""
    one_line = " ".join(printable(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(one_line, quote=False))


def code(text: str) -> str:
    """Write a text as code within a line; `|` is escaped for the cell of a table."""
    one_line = " ".join(printable(text).split())
    fence = _fence(one_line, 1)
    space = " " if one_line.startswith("`") or one_line.endswith("`") else ""
    return f"{fence}{space}{one_line}{space}{fence}".replace("|", "\\|")


def fenced(text: str) -> str:
    """Write a text as a block of code."""
    fence = _fence(text, 3)
    return f"{fence}\n{printable(text).rstrip()}\n{fence}"


def _fence(text: str, shortest: int) -> str:
    """Return backticks that nothing in the text closes."""
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", text)), default=0))
