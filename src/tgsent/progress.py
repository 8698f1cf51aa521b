"""How progress looks: bars on a terminal, lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from rich import progress
from rich.console import Console
from rich.text import Text

from tgsent.records import Task
from tgsent.terminal import message, printable


class Quiet:
    """Shows nothing."""

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:  # noqa: ARG002  of the protocol
        """Show nothing."""
        yield self

    def line(self, text: str) -> None:
        """Show nothing."""

    def advance(self, examples: int, note: str = "") -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Shown(Quiet):
    """Shows bars on a terminal and lines elsewhere."""

    console: Console

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """Show a bar."""
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            _Speed(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            progress.TimeRemainingColumn(compact=True),
        )
        bars = progress.Progress(*columns, console=self.console, transient=True)
        bars.disable = not self.console.is_terminal
        with bars:
            yield _Bar(bars, bars.add_task(printable(name), total=total, note=""))

    def line(self, text: str) -> None:
        """Print the milestone, unless there are bars."""
        if not self.console.is_terminal:
            self.console.print(message(text), markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Bar:
    bars: progress.Progress
    task_id: progress.TaskID

    def advance(self, examples: int, note: str = "") -> None:
        """Move the bar."""
        self.bars.update(self.task_id, advance=examples, note=note)


class _Speed(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")
