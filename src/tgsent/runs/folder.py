"""The run folder: every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from tgsent import files
from tgsent.config import TrialSpec
from tgsent.errors import RunFolderError
from tgsent.files import json_line, read_object, storage_errors, to_json, write_atomic
from tgsent.records import LogRow, Prediction, SplitSummary
from tgsent.runs.formats import predictions_csv, read_predictions, record
from tgsent.runs.manifest import SweepReport
from tgsent.runs.metrics import TrialMetrics, TrialResult


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run folder."""

    path: Path

    @contextlib.contextmanager
    def locked(self, *, wait_seconds: float = 0) -> Iterator[None]:
        """Lock the folder while the context is open; `wait_seconds` of -1 waits for ever.

        The operating system frees the lock of a process that dies. Raises RunFolderError where
        another run has it or the folder cannot be written.
        """
        # beside the folder, so that moving the folder aside does not move the lock
        place = self.path.with_name(f".{self.path.name}.lock")
        lock = filelock.FileLock(place)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait_seconds, poll_interval=0.02)
        except filelock.Timeout:
            if not place.exists():  # an error in making it may look like a timeout
                raise RunFolderError(f"{self.path.parent}: no file can be written here") from None
            raise RunFolderError(
                f"{self.path}: {_holder(place)} is writing to this folder;"
                " wait for it, or choose another with --output"
            ) from None
        except (FileExistsError, NotADirectoryError):
            raise RunFolderError(
                f"{self.path.parent}: is a file or a broken link, not a folder"
            ) from None
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot write here: {error.strerror}") from None
        try:
            _sign(place)
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def trial_locked(self, spec: TrialSpec) -> Iterator[None]:
        """Lock a trial while the context is open, so that no other process runs it.

        The process that finishes the trial removes the file of the lock. Raises RunFolderError
        where another process has the lock.
        """
        place = self._trial_lock(spec)
        with storage_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(place)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"{self.path}: {_holder(place)} is running {spec.title}; wait for it"
            ) from None
        try:
            _sign(place)
            yield
        finally:
            lock.release()

    def _trial_lock(self, spec: TrialSpec) -> Path:
        return self.trial_folder(spec) / ".lock"

    def move_aside(self) -> Path | None:
        """Rename the folder with the old results, if there is one; return its new path."""
        if not self.path.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{n}" for n in range(2, 100))):
            aside = self.path.with_name(f"{self.path.name}.old-{stamp}{suffix}")
            if not aside.exists():
                with storage_errors(aside):
                    self.path.rename(aside)
                return aside
        raise RunFolderError(f"{self.path}: cannot move the old results aside")

    def sweeps(self) -> tuple[SweepReport, ...]:
        """Return how the settings of the results in the folder were chosen, by its manifest."""
        if not any(self.path.glob("*/trial-*/metrics.json")):
            return ()
        file = self.path / "manifest.json"
        found = read_object(file).get("sweep", [])
        try:
            return record(tuple[SweepReport, ...], found)
        except ValueError:
            raise RunFolderError(
                f"{file}: its sweep is damaged; --fresh moves the results aside"
            ) from None

    def write(self, name: str, content: str) -> None:
        """Write a text file of the run folder."""
        write_atomic(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run folder."""
        self.write(name, to_json(value))

    def tidy(self, spec: TrialSpec, *, finished: bool) -> None:
        """Remove what a killed run left: half-written files, a finished trial's checkpoints."""
        folder = self.trial_folder(spec)
        for stale in (*folder.glob(".*.tmp"), *folder.glob("checkpoint/.*.tmp")):
            with storage_errors(stale):
                if stale.is_dir():
                    shutil.rmtree(stale)
                else:
                    stale.unlink()
        if finished:
            self._remove_leftovers(spec)

    def trial_folder(self, spec: TrialSpec) -> Path:
        """Return the folder of a trial."""
        return self.path / spec.name / f"trial-{spec.trial}"

    def checkpoint_folder(self, spec: TrialSpec) -> Path:
        """Return the folder of a trial's checkpoints, which a finished trial does not have."""
        return self.trial_folder(spec) / "checkpoint"

    def tracker_folder(self, spec: TrialSpec) -> Path:
        """Return the folder for the files of a trial's trackers."""
        return self.trial_folder(spec) / "trackers"

    def _remove_leftovers(self, spec: TrialSpec) -> None:
        folder = self.checkpoint_folder(spec)
        with storage_errors(folder), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        with storage_errors(self._trial_lock(spec)):
            self._trial_lock(spec).unlink(missing_ok=True)

    def finished(self, spec: TrialSpec, split: SplitSummary) -> TrialMetrics | None:
        """Return the metrics of a finished trial of these settings and this split, or None."""
        folder = self.trial_folder(spec)
        try:
            metrics = TrialMetrics.from_json(json.loads((folder / "metrics.json").read_bytes()))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise RunFolderError(
                f"{folder / 'metrics.json'}: cannot be read: {error.strerror}"
            ) from None
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

    def log(self, model: str, trial: int) -> list[LogRow]:
        """Read the training log of a finished trial."""
        content = (self.path / model / f"trial-{trial}" / "log.jsonl").read_text("utf-8")
        return [json.loads(line) for line in content.splitlines()]

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
        folder = self.trial_folder(spec)
        temporary = folder / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        with storage_errors(temporary):
            temporary.mkdir(parents=True, mode=0o700)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _place_model(self, saved: Path) -> None:
        place = saved.with_name("model")
        with storage_errors(place):
            for file in (*saved.rglob("*"), saved):
                files.sync(file)
            saved.chmod(place.parent.stat().st_mode)
            shutil.rmtree(place, ignore_errors=True)
            saved.rename(place)

    def write_trial(self, spec: TrialSpec, result: TrialResult, model: Path | None = None) -> None:
        """Write all files of a finished trial; `metrics.json` comes last and makes it finished.

        `model` is the folder of `model_folder`, if a model was saved in it.
        """
        folder = self.trial_folder(spec)
        if model is not None:
            self._place_model(model)
        for outdated in ("metrics.json", "error.txt"):
            with storage_errors(folder / outdated):
                (folder / outdated).unlink(missing_ok=True)
        predictions = predictions_csv(
            result.predictions, spec.labels, escape_formulas=spec.escape_formulas
        )
        write_atomic(folder / "log.jsonl", "".join(json_line(row) + "\n" for row in result.log))
        write_atomic(folder / "predictions.csv", predictions)
        write_atomic(folder / "metrics.json", to_json(result.metrics.to_json()))
        self._remove_leftovers(spec)


def _sign(lock: Path) -> None:
    """Write the name of this process to the file of a lock, for the errors of others."""
    with storage_errors(lock):
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")


def _holder(lock: Path) -> str:
    """Return the name of the process that has a lock."""
    with contextlib.suppress(OSError, ValueError):
        if holder := lock.read_text("utf-8").strip():
            return holder
    return "another run"
