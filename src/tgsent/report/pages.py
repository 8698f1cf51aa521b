"""The report of a run as pages: `report.html` for a browser, `report.md` for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jinja2

from tgsent.files import json_line
from tgsent.report.blocks import Figure, Section
from tgsent.report.markup import code, fenced, markdown
from tgsent.report.results import Results
from tgsent.report.sections import sections
from tgsent.runs.stored import StoredRun
from tgsent.terminal import printable, without_secrets


def html(results: Results, run: StoredRun) -> str:
    """Write the report as one file that needs no other, no network and no script."""
    return _render("report.html", results, sections(results, run))


def markdown_page(results: Results, run: StoredRun) -> str:
    """Write the same as Markdown, without the plots."""
    without_plots = [
        replace(section, blocks=[one for one in section.blocks if not isinstance(one, Figure)])
        for section in sections(results, run)
    ]
    return _render("report.md", results, without_plots)


def _render(template: str, results: Results, shown: Sequence[Section]) -> str:
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
        # as code, mentions and references in a text are none where the page is pasted
        code=lambda text: code(without_secrets(text)) if text.strip() else "",
        fenced=lambda text: fenced(without_secrets(text)),
        json=json_line,
    )
    page = environment.get_template(template).render(
        name=results.name,
        is_demo=results.manifest.data.path == "sample",
        verdict=results.verdict,
        sections=[section for section in shown if section.blocks],
    )
    return without_secrets(page) + "\n"
