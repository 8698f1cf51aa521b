"""Text in Markdown: what is data stays data, in Markdown and in the HTML that becomes of it."""

from __future__ import annotations

import html
import re

from tgsent.terminal import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~])")


def markdown(text: str) -> str:
    """Escape a text for a line of Markdown, or a cell of a table."""
    one_line = " ".join(printable(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(one_line, quote=False))


def code(text: str) -> str:
    """Write a text as code, in a fence that nothing in it closes; `|` suits a table's cell."""
    one_line = " ".join(printable(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", one_line)), default=0))
    space = " " if one_line.startswith("`") or one_line.endswith("`") else ""
    return f"{fence}{space}{one_line}{space}{fence}".replace("|", "\\|")
