"""Bad configs and data files at the door: what `torture.py` does to the command line."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_corpus import Case, configs, data_files
from torture_runs import Tally

SECONDS_FOR_A_CASE = 10.0
MEMORY_OF_A_PROCESS, CASES_OF_A_PROCESS = 1_500_000_000, 1_000
_LINES_OF_AN_ERROR = 3


class _Hang(BaseException):
    pass


@dataclass
class Answer:
    """What the command line did."""

    code: int
    output: str
    seconds: float


def feed_configs(folder: Path, count: int, seed: int) -> Tally:
    """Make the command line check configs; those that are right go on to a plan, unshown."""
    from tgsent import cli, config
    from tgsent.config import DataConfig
    from tgsent.data.dataset import load_dataset

    dataset = load_dataset(DataConfig(path="sample", sample_size=200))

    def plan(settings: Any, *_: Any, **__: Any) -> None:
        again = folder / "again.yaml"
        again.write_text(settings.to_yaml(), "utf-8", "surrogatepass")
        if config.load(str(again)) != settings:
            raise AssertionError("the config does not come back the same")
        settings.trial_specs(dataset.labels)

    with (
        mock.patch.object(cli, "_print_plan", plan),
        mock.patch("tgsent.data.dataset.load_dataset", return_value=dataset),
        mock.patch("tgsent.data.splits.TrialSplits", return_value=mock.Mock(summaries=())),
    ):
        command = ("run", "-c", "config.yaml", "--dry-run", "--output", str(folder))
        return _feed(folder, configs(seed, count), command)


def feed_data_files(folder: Path, count: int, seed: int) -> Tally:
    """Make the command line read, check, sample and split data files."""
    from tgsent import cli

    with mock.patch.object(cli, "_print_plan", return_value=None):
        return _feed(folder, data_files(seed, count), ("run", "-c", "default", "--dry-run"))


def _feed(folder: Path, cases: Iterator[Case], command: tuple[str, ...]) -> Tally:
    """Feed the cases to processes that take a thousand each, in bounded memory."""
    tally = Tally()
    folder.mkdir(parents=True)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        while some := list(islice(cases, CASES_OF_A_PROCESS)):
            fed = pool.apply(_feed_some, (folder, some, tally.cases, command))
            tally.cases += fed.cases
            tally.survived += fed.survived
            tally.problems += fed.problems
    return tally


def _feed_some(folder: Path, cases: list[Case], first: int, command: tuple[str, ...]) -> Tally:
    tally = Tally()
    before = Path.cwd()
    os.chdir(folder)
    os.environ["TGSENT_CACHE"] = str(folder / "cache")
    try:
        for number, case in enumerate(cases, start=first):
            Path(case.name).write_bytes(case.content)
            path = (f"data.path={case.name}",) if case.name.startswith("data") else ()
            sets = [part for one in (*path, *case.sets) for part in ("--set", one)]
            answer = ask([*command, *sets])
            tally.add(f"{case.kind} {number}", problems(answer))
            Path(case.name).unlink()
            if left := [path.name for path in folder.iterdir() if path.name not in _OURS]:
                tally.problems.append(f"{case.kind} {number}: wrote {left}")
    finally:
        os.chdir(before)
    if peak_memory() > MEMORY_OF_A_PROCESS:
        tally.problems.append(f"{peak_memory():,} bytes of memory")
    return tally


_OURS = ("cache", "again.yaml")


def ask(arguments: list[str]) -> Answer:
    """Call the command line as `tgsent ARGUMENTS` does; a hang is a case of its own."""
    from tgsent import cli

    def hang(*_: Any) -> None:
        raise _Hang

    output, code = io.StringIO(), 70
    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_FOR_A_CASE)
    started = time.perf_counter()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            sys.argv = ["tgsent", *arguments]
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        except _Hang:
            code = -1
        except BaseException:  # noqa: BLE001  what a user would see as a traceback
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return Answer(code, output.getvalue(), time.perf_counter() - started)


def problems(answer: Answer) -> list[str]:
    """Return what is wrong with an answer to an input that may be wrong in any way."""
    if answer.code == -1:
        return [f"hangs for {SECONDS_FOR_A_CASE} s"]
    if "Traceback" in answer.output:
        return [f"a traceback: {answer.output.strip().splitlines()[-1][:300]}"]
    found = []
    if answer.code not in (0, 2):
        found.append(f"exit code {answer.code}: {answer.output[:300]}")
    lines = answer.output.splitlines()
    if answer.code == 2:
        # every mistake in a config has a line of its own, below the first
        told = [line for line in lines if not line.startswith("  ")]
        if not told or not told[0].startswith("tgsent: ") or len(told) > _LINES_OF_AN_ERROR:
            found.append(f"no clean error: {answer.output[:300]!r}")
    if any(len(line) > 2000 for line in lines):
        found.append(f"a line of {max(map(len, lines))} characters")
    if not all(c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in answer.output):
        found.append("control characters in the terminal")
    return found


def peak_memory() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
