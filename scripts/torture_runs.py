"""Runs that are killed, or find the disk full, again and again: what `torture.py` does to runs.

Every run is a real process, forked from one that has imported the libraries and used none of them
yet, so that hundreds take minutes. Nothing of tgsent is replaced but for the counting: which trials
start and finish, and how many optimizer steps are taken.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

FAMILIES = ("gpt2", "gpt-neo", "t5")
# what is imported while a run goes on
_IMPORTS = (
    "tgsent.experiment.execute", "tgsent.experiment.local_engine", "tgsent.backends.native",
    "tgsent.backends.baselines", "tgsent.report.model_card",
    "tgsent.modeling.loading", "tgsent.data.dataset", "tgsent.report.pages",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.gpt_neo.modeling_gpt_neo",
    "transformers.models.t5.modeling_t5", "transformers.models.auto.modeling_auto",
    "transformers.generation.utils", "rich.table", "torch._dynamo",
)  # fmt: skip
_MEASURED = {
    "train_seconds", "train_examples_per_second", "eval_seconds", "eval_examples_per_second",
    "peak_memory_bytes",
}  # fmt: skip
# where a run touches its folder; each call that names a path in it is one place to fail
_WRITING = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "chmod", "rmdir")
_NEEDING_SPACE = ("open", "fsync", "mkdir", "replace", "rename", "write")
SECONDS_FOR_A_RUN = 300.0


def import_everything() -> None:
    """Import what a run imports, so that forks need not."""
    for name in _IMPORTS:
        importlib.import_module(name)


def options(models: Sequence[str] = FAMILIES, *, trials: int = 1, texts: int = 90) -> list[str]:
    """Return the command line of a run that takes some seconds and writes all the time."""
    chosen = [part for model in models for part in ("-m", model)]
    settings = (
        "data.path=sample", f"data.sample_size={texts}", "data.test_fraction=0.2",
        "training.init=tiny", "training.epochs=2", "training.batch_size=8",
        "training.max_tokens=64", "training.device=cpu", "output.save_model=first",
        "output.checkpoint_minutes=0.0005",
    )  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["run", "-c", "default", *chosen, "-n", str(trials), *sets, "--set", "name=run"]


@dataclass
class Fault:
    """Something that happens when a run touches its folder for the `at`-th time."""

    at: int
    kind: str
    """`kill before`, `kill after`, or `disk full`."""


@dataclass
class Tally:
    """What became of the runs."""

    cases: int = 0
    survived: int = 0
    problems: list[str] = field(default_factory=list)
    steps: int = 0
    """Optimizer steps taken, all runs."""
    needed: int = 0
    """Those that undisturbed runs take."""

    def add(self, case: str, problems: Sequence[str]) -> None:
        """Count one case."""
        self.cases += 1
        self.survived += not problems
        self.problems += [f"{case}: {problem}" for problem in problems]


class Place:
    """A folder to run in, with a ledger of what the runs did there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.ledger, self.output = folder / "ledger.txt", folder / "output.txt"

    @property
    def run_folder(self) -> Path:
        """Where the results are."""
        return self.folder / "runs/run"

    def note(self, line: str) -> None:
        """Write a line at once, also where this process is killed right after."""
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def notes(self, kind: str) -> list[str]:
        """Return what was noted of one kind, in order."""
        lines = self.ledger.read_text("utf-8").splitlines() if self.ledger.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(kind)]

    def start(self, command: Sequence[str], fault: Fault | None = None) -> int:
        """Start a run; give its process id."""
        if pid := os.fork():
            return pid
        code: Any = 70
        try:
            self._run(command, fault)
        except SystemExit as error:
            code = error.code
        except BaseException:  # noqa: BLE001  nothing may get back into the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)

    def _run(self, command: Sequence[str], fault: Fault | None) -> None:
        from tgsent import cli

        os.chdir(self.folder)
        os.environ.update(TGSENT_CACHE=str(self.folder / "cache"), HF_HUB_OFFLINE="1")
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        sys.argv = ["tgsent", *command]
        with self._counting(), Touches(str(self.run_folder), fault, self.note).counted():
            cli.main()

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        from tgsent.backends.native import Native
        from tgsent.runs import folder
        from tgsent.training import loop

        run_trial, write_trial, step = Native.run, folder.RunFolder.write_trial, loop.take_step

        def counted_trial(backend: Native, spec: Any, *args: Any) -> Any:
            self.note(f"start {spec.title}")
            return run_trial(backend, spec, *args)

        def counted_write(folder: Any, spec: Any, *args: Any) -> None:
            write_trial(folder, spec, *args)
            self.note(f"finish {spec.title}")
            self.note(f"memory {resident_memory()}")

        def counted_step(*args: Any) -> float:
            self.note("step")
            return step(*args)

        with (
            mock.patch.object(Native, "run", counted_trial),
            mock.patch.object(folder.RunFolder, "write_trial", counted_write),
            mock.patch.object(loop, "take_step", counted_step),
        ):
            yield


@dataclass
class Touches:
    """Every call that touches a run folder, in order; the fault happens at one of them."""

    folder: str
    fault: Fault | None
    note: Callable[[str], None]
    names: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count while the context is open, and have the fault happen there."""
        from tgsent.training import checkpoint

        write_bytes, save_file = Path.write_bytes, checkpoint.save_file

        def write(path: Path, data: bytes) -> None:
            self.write(path, write_bytes, path, data)

        def save(tensors: Any, path: Path, about: Any) -> None:
            self.write(path, save_file, tensors, path, about)

        with contextlib.ExitStack() as stack:
            for name in _WRITING:
                call = functools.partial(self.call, name, getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, call))
            stack.enter_context(mock.patch.object(Path, "write_bytes", write))
            stack.enter_context(mock.patch.object(checkpoint, "save_file", save))
            try:
                yield
            finally:
                self.note(f"touched {' '.join(self.names)}")

    def call(self, name: str, original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Stand for a function of `os`."""
        fault = self.now(name, args[0], named.get("dir_fd"))
        if fault and fault.kind == "kill before":
            kill_this_process()
        if fault and fault.kind == "disk full":
            raise no_space(args[0])
        result = original(*args, **named)
        if fault:
            kill_this_process()
        return result

    def write(self, path: Path, original: Callable[..., Any], *args: Any) -> None:
        """Stand for what writes a file's content: the fault comes when half of it is written."""
        fault = self.now("write", path, None)
        original(*args)
        if fault:
            os.truncate(path, path.stat().st_size // 2)
            if fault.kind == "disk full":
                raise no_space(path)
            kill_this_process()

    def now(self, name: str, target: Any, dir_fd: int | None) -> Fault | None:
        """Count a call that touches the folder; give the fault where it is to happen now."""
        with contextlib.suppress(OSError):  # of a descriptor that is closed already
            if isinstance(target, int):
                target = Path(f"/proc/self/fd/{target}").readlink()
            elif dir_fd is not None:
                target = Path(f"/proc/self/fd/{dir_fd}").readlink() / target
        if not isinstance(target, str | os.PathLike):
            return None
        if not os.path.abspath(target).startswith(self.folder):  # noqa: PTH100  follows no link
            return None
        if name == "mkdir" and Path(target).is_dir():  # which takes no space
            return None
        self.names.append(name)
        if self.fault is None or len(self.names) != self.fault.at:
            return None
        self.note(f"fault {self.fault.kind} {name} {target}")
        return self.fault


def no_space(path: Any) -> OSError:
    """Make the error of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def kill_this_process() -> None:
    """Die as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def resident_memory() -> int:
    """Return the memory that this process holds now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait(pid: int, seconds: float) -> int | None:
    """Wait for a process, so long at most; give its exit code (-9: killed), None while it runs."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def kill(pid: int) -> None:
    """Kill a process and wait for it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def undisturbed(place: Place, command: Sequence[str]) -> float:
    """Run to the end; give the seconds that took."""
    started = time.monotonic()
    code = wait(place.start(command), SECONDS_FOR_A_RUN)
    if code != 0:
        raise RuntimeError(f"an undisturbed run ended with {code}: {place.output.read_text()}")
    return time.monotonic() - started


def finish(place: Place, command: Sequence[str]) -> list[str]:
    """Run the same command again until it ends; say what went wrong."""
    pid = place.start(command)
    code = wait(pid, SECONDS_FOR_A_RUN)
    if code is None:
        kill(pid)
        return ["the run hangs"]
    return [] if code == 0 else [f"exit code {code}: {place.output.read_text()[-500:]}"]


def differences(place: Place, reference: Place) -> list[str]:
    """Return where the results are not those of the undisturbed run, times aside."""
    ours, theirs = files_of(place.run_folder), files_of(reference.run_folder)
    found = [f"{name} is missing" for name in sorted(theirs.keys() - ours.keys())]
    found += [f"{name} is left over" for name in sorted(ours.keys() - theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if name != "manifest.json" and comparable(ours[name]) != comparable(theirs[name]):
            found.append(f"{name} differs")
    return found + run_twice(place)


def run_twice(place: Place) -> list[str]:
    """Name the trials that were started again after they were finished."""
    lines = place.ledger.read_text("utf-8").splitlines()
    finished: set[str] = set()
    again = []
    for kind, _, title in (line.partition(" ") for line in lines):
        if kind == "finish":
            finished.add(title)
        elif kind == "start" and title in finished:
            again.append(f"{title} was finished and is run again")
    return again


def files_of(folder: Path) -> dict[str, Path]:
    """Return all files, hidden ones too, by their names."""
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


def comparable(path: Path) -> Any:
    """Return the content of a file without what a clock or the system measured."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return without_measures(json.loads(content))
    if path.name == "results.csv":
        rows = csv.DictReader(content.decode().splitlines())
        return [{k: v for k, v in row.items() if k not in _MEASURED} for row in rows]
    if path.name == "README.md":  # of a saved model: tells how fast it was trained
        return [line for line in content.decode().splitlines() if "/s" not in line]
    if path.name.startswith("report."):  # tells of times and dates all over
        return re.sub(r"\d+", "0", content.decode()).splitlines()[-1]
    return content


def without_measures(value: Any) -> Any:
    """Leave out times and memory, and the manifest, which tells of dates."""
    if isinstance(value, dict):
        left_out = _MEASURED | {"manifest"}
        return {k: without_measures(v) for k, v in value.items() if k not in left_out}
    return [without_measures(one) for one in value] if isinstance(value, list) else value


def half_written(place: Place) -> list[str]:
    """Look at what a kill left: every file under its own name must be whole."""
    from safetensors import safe_open

    found = []
    for name, path in files_of(place.run_folder).items():
        if path.name.startswith(".") or ".model.tmp" in name:
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as tensors:
                    [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
        except Exception as error:  # noqa: BLE001  whatever it is, the file is not whole
            found.append(f"{name} is half-written: {error}")
    return found


def kill_at_random(folder: Path, kills: int, seed: int) -> Tally:
    """Kill runs of all three families at random moments until so many kills have hit."""
    rng, tally, command = random.Random(seed), Tally(), options(trials=2)
    reference = Place(folder / "reference")
    seconds = undisturbed(reference, command)
    needed = len(reference.notes("step"))
    number = 0
    while tally.cases < kills:
        number += 1
        place = Place(folder / f"case-{number}")
        case, problems, hits = f"kills, seed {seed}, run {number}", [], 0
        while tally.cases + hits < kills:
            pid = place.start(command)
            if wait(pid, rng.uniform(0, seconds / 3)) is not None:
                break
            kill(pid)
            hits += 1
            problems += half_written(place)
        problems += finish(place, command)
        problems += differences(place, reference)
        for _ in range(hits):
            tally.add(case, problems)
        tally.steps += len(place.notes("step"))
        tally.needed += needed
        shutil.rmtree(place.folder)
    return tally


def fail_in_writes(folder: Path, cases: int | None, kinds: Sequence[str], seed: int) -> Tally:
    """Make each write step fail once, or so many of them, evenly taken."""
    tally, command = Tally(), options(("gpt2",), texts=60)
    reference = Place(folder / "reference")
    undisturbed(reference, command)
    names = reference.notes("touched")[-1].split()
    points = [
        (at, kind)
        for at, name in enumerate(names, start=1)
        for kind in kinds
        if kind != "disk full" or name in _NEEDING_SPACE
    ]
    if cases is not None and cases < len(points):
        points = random.Random(seed).sample(points, cases)
    for at, kind in points:
        place = Place(folder / f"case-{at}-{kind.replace(' ', '-')}")
        code = wait(place.start(command, Fault(at, kind)), SECONDS_FOR_A_RUN)
        problems = half_written(place) if place.run_folder.exists() else []
        if kind == "disk full" and place.notes("fault"):
            problems += refusal_problems(code, place.output.read_text("utf-8"))
        problems += finish(place, command)
        problems += differences(place, reference)
        tally.add(f"{kind} at write step {at} of {len(names)}, {names[at - 1]}", problems)
        tally.steps += len(place.notes("step"))
        tally.needed += len(reference.notes("step"))
        shutil.rmtree(place.folder)
    return tally


def refusal_problems(code: int | None, output: str) -> list[str]:
    """Return what is wrong with the way a run ended that found the disk full."""
    problems = [] if code in (1, 2) else [f"exit code {code} on a full disk"]
    if "No space left" not in output or "runs/run" not in output or "left there" not in output:
        problems.append(f"a full disk is told so: {output[-300:]!r}")
    if "Traceback" in output:
        problems.append("a traceback")
    return problems


def fill_a_disk(folder: Path, cases: int) -> Tally | None:
    """Run on small disks of growing size, then with room enough; None where none can be mounted.

    Needs the right to mount, which `unshare` gives in a namespace of its own.
    """
    tally, command = Tally(), options(("gpt2",), trials=2, texts=60)
    reference = Place(folder / "reference")
    undisturbed(reference, command)
    written = sum(path.stat().st_size for path in files_of(reference.run_folder).values())
    for number in range(cases):
        place = Place(folder / f"disk-{number}")
        disk = place.folder / "runs"
        disk.mkdir()
        # up to all that stays and one checkpoint of two; a run in which it suffices is a case, too
        size = 4096 * (1 + int(2.2 * written * number / cases / 4096))
        if not mount(disk, f"size={size}"):
            return None
        try:
            code = wait(place.start(command), SECONDS_FOR_A_RUN)
            output = place.output.read_text("utf-8")
            problems = half_written(place) if place.run_folder.exists() else []
            problems += refusal_problems(code, output) if code else []
            kept = {name: path.read_bytes() for name, path in files_of(place.run_folder).items()
                    if path.name == "metrics.json"}  # fmt: skip
            mount(disk, "remount,size=1g")
            problems += finish(place, command)
            problems += differences(place, reference)
            problems += [f"{name} was lost" for name, content in kept.items()
                         if (place.run_folder / name).read_bytes() != content]  # fmt: skip
        finally:
            subprocess.run(["umount", str(disk)], check=True)  # noqa: S607  the system's own
        tally.add(f"a disk of {size} bytes", problems)
        shutil.rmtree(place.folder)
    return tally


def mount(disk: Path, how: str) -> bool:
    """Mount a disk in memory; tell whether that could be done."""
    command = ["mount", "-t", "tmpfs", "-o", how, "none", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
