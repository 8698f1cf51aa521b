"""What SIGINT, SIGTERM and SIGHUP do: they end the run soon, and training between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from tgsent.training import distributed

SECONDS_TO_STOP = 8.0
"""A step or a file that takes longer than this to finish is left unfinished."""

RESUME = "finished work is kept; run the same command again to resume"


@dataclass
class _State:
    requested: bool = False
    deferring: bool = False


_state = _State()
"""Process-wide, because signals are sent to the process."""


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let a signal end the context by KeyboardInterrupt, or as `deferred` says.

    A second signal ends the process at once, as a kill would, which loses nothing that was
    finished. Of several processes, each may get a signal twice, from the terminal and from its
    launcher, and ignores the second. Signals that this process was started to ignore, as `nohup`
    does with SIGHUP, stay ignored.
    """
    _state.requested = _state.deferring = False
    watch = threading.Timer(SECONDS_TO_STOP, _leave)
    watch.daemon = True

    def handle(_number: int, _frame: FrameType | None) -> None:
        if not _state.requested:
            _state.requested = True
            watch.start()
            if not _state.deferring:
                raise KeyboardInterrupt
        elif distributed.world_size() == 1:
            _leave()

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        watch.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only note the first signal while the context is open; code in it checks `requested`."""
    _state.deferring = True
    try:
        yield
    finally:
        _state.deferring = False
    if _state.requested:  # the signal came after the last check
        raise KeyboardInterrupt


def requested() -> bool:
    """Check whether a signal has come, also one whose KeyboardInterrupt a library swallowed."""
    return _state.requested


def _leave() -> None:
    """End this process as a kill would, and show the cursor of a terminal again."""
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{show_cursor}tgsent: interrupted; {RESUME}\n".encode())
    os._exit(130)
