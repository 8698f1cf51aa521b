"""The run folder: every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from tgsent import files
from tgsent.config import TrialSpec
from tgsent.errors import RunFolderError
from tgsent.files import json_line, storage_errors, to_json, write_atomic
from tgsent.records import LogRow, Prediction, SplitSummary
from tgsent.runs import manifest
from tgsent.runs.formats import UnusableError, predictions_csv, read_predictions, read_record
from tgsent.runs.manifest import SweepReport
from tgsent.runs.metrics import TrialMetrics, TrialResult


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run folder."""

    path: Path

    @contextlib.contextmanager
    def locked(self, *, wait_seconds: float = 0) -> Iterator[None]:
        """Lock the folder while the context is open; `wait_seconds` of -1 waits forever.

        Raises RunFolderError where another run has it or the folder cannot be written.
        """
        # beside the folder, so that moving the folder aside does not move the lock
        place = self.path.with_name(f".{self.path.name}.lock")
        work = "writing to this folder; wait for it, or choose another with --output"
        try:
            lock = self._acquire(place, work, wait_seconds)
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot write here: {error.strerror}") from None
        with lock:
            yield

    @contextlib.contextmanager
    def trial_locked(self, spec: TrialSpec) -> Iterator[None]:
        """Lock a trial while the context is open, so that no other process runs it.

        The process that finishes the trial removes the file of the lock. Raises RunFolderError
        where another process has the lock.
        """
        place = self.trial_folder(spec) / ".lock"
        with storage_errors(place):
            lock = self._acquire(place, f"running {spec.title}; wait for it")
        with lock:
            yield

    def _acquire(
        self, place: Path, work: str, wait_seconds: float = 0
    ) -> contextlib.AbstractContextManager[object]:
        """Return an acquired lock, which names this process, as a context that releases it.

        The operating system releases the lock of a process that dies. Raises RunFolderError where
        another process has the lock for its `work`.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = filelock.FileLock(place).acquire(timeout=wait_seconds, poll_interval=0.02)
        except filelock.Timeout:
            holder = "another run"
            with contextlib.suppress(OSError, ValueError):  # it may have ended meanwhile
                holder = place.read_text("utf-8").strip() or holder
            raise RunFolderError(f"{self.path}: {holder} is {work}") from None
        with storage_errors(place):
            place.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")
        return lock

    def move_aside(self) -> Path | None:
        """Rename the folder with the old results, if there is one; return its new path."""
        if not self.path.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        stamps = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
        places = (self.path.with_name(f"{self.path.name}.old-{one}") for one in stamps)
        aside = next(place for place in places if not place.exists())
        with storage_errors(aside):
            return self.path.rename(aside)

    def sweeps(self) -> tuple[SweepReport, ...]:
        """Return how the settings of the results in the folder were chosen, by its manifest."""
        has_results = any(self.path.glob("*/trial-*/metrics.json"))
        found = manifest.read(self.path) if has_results else None
        return found.sweep if found else ()

    def write(self, name: str, content: str) -> None:
        """Write a text file of the run folder."""
        write_atomic(self.path / name, content)

    def trial_folder(self, spec: TrialSpec) -> Path:
        """Return the folder of a trial."""
        return self.path / spec.name / f"trial-{spec.trial}"

    def tidy(self, spec: TrialSpec, *, finished: bool) -> None:
        """Remove what a killed run left: half-written files, a finished trial's checkpoints."""
        folder = self.trial_folder(spec)
        stale = [*folder.glob(".*.tmp"), *folder.glob("checkpoint/.*.tmp")]
        if finished:
            stale += [folder / "checkpoint", folder / ".lock"]
        for path in stale:
            with storage_errors(path), contextlib.suppress(FileNotFoundError):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def finished(self, spec: TrialSpec, split: SplitSummary) -> TrialMetrics | None:
        """Return the metrics of a finished trial of these settings and this split, or None."""
        folder = self.trial_folder(spec)
        try:
            metrics = read_record(TrialMetrics, folder / "metrics.json")
        except UnusableError:
            return None
        if metrics is None:
            return None
        recorded = metrics.weights_sha256 or ""
        if recorded != spec.weights and not (recorded and spec.weights):
            spec = spec.with_weights(recorded)  # only one of the two has a hash: take them as equal
        is_same = (metrics.fingerprint, metrics.split_sha256, metrics.extra_sha256) == (
            spec.fingerprint, split.sha256, split.extra_sha256
        )  # fmt: skip
        has_files = (folder / "predictions.csv").is_file() and (
            not spec.save_model or (folder / "model").is_dir()
        )
        return metrics if is_same and has_files else None

    def predictions(self, metrics: TrialMetrics) -> list[Prediction]:
        """Read the answers of the finished trial that has these metrics."""
        file = self.path / metrics.model / f"trial-{metrics.trial}" / "predictions.csv"
        content = file.read_bytes().decode("utf-8", "surrogatepass")
        return read_predictions(content, escaped=metrics.formulas_escaped)

    def log(self, metrics: TrialMetrics) -> list[LogRow]:
        """Read the training log of the finished trial that has these metrics."""
        file = self.path / metrics.model / f"trial-{metrics.trial}" / "log.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    def other_trials(self, specs: Sequence[TrialSpec]) -> list[str]:
        """Return the finished trials in the folder that are not among `specs`."""
        ours = {self.trial_folder(spec) for spec in specs}
        found = sorted(path.parent for path in self.path.glob("*/trial-*/metrics.json"))
        return [str(path.relative_to(self.path)) for path in found if path not in ours]

    @contextlib.contextmanager
    def model_folder(self, spec: TrialSpec) -> Iterator[Path | None]:
        """Yield a temporary folder for the model of a trial, which `write_trial` then keeps."""
        if not spec.save_model:
            yield None
            return
        temporary = self.trial_folder(spec) / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        with storage_errors(temporary):
            temporary.mkdir(parents=True, mode=0o700)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_trial(self, spec: TrialSpec, result: TrialResult, model: Path | None = None) -> None:
        """Write all files of a finished trial; `metrics.json` comes last and makes it finished.

        `model` is the folder of `model_folder`, if a model was saved in it.
        """
        folder = self.trial_folder(spec)
        if model is not None:
            with storage_errors(folder / "model"):
                for file in (*model.rglob("*"), model):
                    files.sync(file)
                model.chmod(folder.stat().st_mode)
                shutil.rmtree(folder / "model", ignore_errors=True)
                model.rename(folder / "model")
        for outdated in (folder / "metrics.json", folder / "error.txt"):
            with storage_errors(outdated):
                outdated.unlink(missing_ok=True)
        predictions = predictions_csv(
            result.predictions, spec.labels, escape_formulas=spec.escape_formulas
        )
        write_atomic(folder / "log.jsonl", "".join(json_line(row) + "\n" for row in result.log))
        write_atomic(folder / "predictions.csv", predictions)
        write_atomic(folder / "metrics.json", to_json(result.metrics.to_json()))
        self.tidy(spec, finished=True)
