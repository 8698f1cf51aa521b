"""The errors that a user may see, each with its exit code (1 unless a class says otherwise).

A message says what is wrong, where, and what to do, in one to three lines.
"""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """Return what a library's exception says, in one line of at most 300 characters.

    The class comes first where the text alone says little: `KeyError: 'hidden_size'`.
    """
    text = " ".join(str(error).split())[:300]
    worded = isinstance(error, OSError | ImportError) or type(error) is ValueError
    return text if worded and text else f"{type(error).__name__}: {text}"


class TgsentError(Exception):
    """Base of all errors that a user may see without a traceback."""

    exit_code = 1


class ConfigError(TgsentError):
    """The command line or the config is wrong."""

    exit_code = 2


class DataError(TgsentError):
    """The labelled texts cannot be used as they are."""

    exit_code = 2


class RunFolderError(TgsentError):
    """The run folder is in use, or holds another experiment."""

    exit_code = 2


class UnavailableError(TgsentError):
    """Weights, data or a program that this run needs are not available."""

    exit_code = 3


class TrialError(TgsentError):
    """One trial failed; `details` are for the file beside its results."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class DivergedError(TrialError):
    """A loss or a weight is not finite; every process of the trial raises it."""


class ProcessLostError(TgsentError):
    """Another of several processes that work together has ended."""


class StorageError(TgsentError):
    """A file of the run cannot be written; the run ends, and what it finished is kept."""


class StoppedError(TgsentError):
    """A signal ended a trial between two steps, after its checkpoint was written."""

    exit_code = 130
