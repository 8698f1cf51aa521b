"""How progress looks: bars on a terminal, lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from tgsent.records import Progress, Task
from tgsent.terminal import message, printable


def make_progress(console: Console, *, quiet: bool) -> Progress:
    """Choose what suits the console."""
    if quiet:
        return Quiet()
    return _Bars(console) if console.is_terminal else _Lines(console)


class _NoTask:
    def advance(self, examples: int, note: str = "") -> None:
        """Show nothing."""


class Quiet:
    """Shows nothing."""

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:  # noqa: ARG002  of the protocol
        """Show nothing."""
        yield _NoTask()

    def line(self, text: str) -> None:
        """Show nothing."""


class _Lines(Quiet):
    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str) -> None:
        """Print the milestone."""
        self._console.print(message(text), markup=False, highlight=False, soft_wrap=True)


class _Bars(Quiet):
    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Speed(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bars:
            yield _Bar(bars, bars.add_task(printable(name), total=total, note=""))


class _Bar:
    def __init__(self, bars: RichProgress, task_id: int) -> None:
        self._bars, self._id = bars, task_id

    def advance(self, examples: int, note: str = "") -> None:
        """Move the bar."""
        self._bars.update(self._id, advance=examples, note=note)  # type: ignore[arg-type]


class _Speed(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")
