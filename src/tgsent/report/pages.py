"""The report of a run as pages: `report.html` for a browser, `report.md` for a pull request."""

from __future__ import annotations

import jinja2

from tgsent.files import json_line
from tgsent.report.blocks import Block, Bullets, Figure, Table
from tgsent.report.markup import code, fenced, markdown
from tgsent.report.results import Results
from tgsent.report.sections import sections
from tgsent.runs.stored import StoredRun
from tgsent.terminal import printable, without_secrets


def html(results: Results, run: StoredRun) -> str:
    """Write the report as one file that needs no other, no network and no script."""
    return _render("report.html", results, run, plots=True)


def markdown_page(results: Results, run: StoredRun) -> str:
    """Write the same as Markdown, without the plots."""
    return _render("report.md", results, run, plots=False)


def _render(template: str, results: Results, run: StoredRun, *, plots: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tgsent.report"),
        autoescape=jinja2.select_autoescape(),  # in HTML; Markdown has filters of its own
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        shown=lambda text: printable(without_secrets(text)),
        md=lambda text: markdown(without_secrets(text)),
        # as code, so that GitHub does not link @names and #numbers in a text
        code=lambda text: code(without_secrets(text)) if text.strip() else "",
        fenced=lambda text: fenced(without_secrets(text)),
        json=json_line,
    )
    shown = [
        (title, [block for block in blocks if _is_shown(block, plots=plots)])
        for title, blocks in sections(results, run)
    ]
    page = environment.get_template(template).render(
        name=results.name,
        is_demo=results.manifest.data.path == "sample",
        verdict=results.verdict,
        sections=[(title, blocks) for title, blocks in shown if blocks],
    )
    return without_secrets(page) + "\n"


def _is_shown(block: Block | None, *, plots: bool) -> bool:
    match block:
        case None | Table(rows=[]) | Bullets(items=[]):
            return False
        case Figure():
            return plots
    return True
