"""The formats that results are shown in."""

from __future__ import annotations

import io
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tgsent.errors import ConfigError
from tgsent.files import to_json
from tgsent.terminal import printable

if TYPE_CHECKING:
    from tgsent.report.results import Results
    from tgsent.runs.stored import StoredRun


class Format(StrEnum):
    """Output formats of `tgsent report`."""

    table = "table"
    markdown = "markdown"
    json = "json"
    csv = "csv"
    html = "html"

    @classmethod
    def of_file(cls, path: Path) -> Format:
        """Return the format for the ending of a file name; raise ConfigError for others."""
        endings = {
            ".md": cls.markdown, ".json": cls.json, ".csv": cls.csv, ".html": cls.html,
            ".txt": cls.table,
        }  # fmt: skip
        if path.suffix.lower() in endings:
            return endings[path.suffix.lower()]
        raise ConfigError(
            f"-o {path}: name the format with --format, or by one of {' '.join(endings)}"
        )


def render(found: Results, run: StoredRun, form: Format, *, to_terminal: bool) -> str:
    """Render results in one of the formats."""
    from tgsent.report import pages
    from tgsent.report.tables import results_csv

    if form is Format.json:
        return to_json(found.to_json())
    if form is Format.csv:
        return results_csv(found, escape_formulas=run.settings.output.escape_formulas)
    if form is Format.html:
        return pages.html(found, run)
    if form is Format.markdown:
        return pages.markdown_page(found, run)
    return render_table(found, to_terminal=to_terminal)


def render_table(results: Results, *, to_terminal: bool) -> str:
    """Render the table and the sentences below it; only a terminal gets colours and cut cells."""
    from rich.console import Console

    from tgsent.report.tables import results_table, sentences

    console = Console() if to_terminal else Console(width=250, file=io.StringIO())
    with console.capture() as captured:
        console.print(results_table(results))
        for sentence in sentences(results):
            console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)
    return captured.get()
