"""The run folder: every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import yaml

from tgsent.config import RunConfig, TrialSpec
from tgsent.errors import RunFolderError
from tgsent.records import Prediction, TrialResult

# Keys that say how a run is carried out, not what it measures: they may differ between runs in
# one folder, and so may the choice of models and the number of trials.
_FREE_KEYS = ("name", "models", "trials", "output.", "training.device", "evaluation.batch_size")


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run folder."""

    path: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out while the context is open.

        The operating system frees the lock of a process that dies. Raises RunFolderError where
        another run has it or the folder cannot be written.
        """
        # beside the folder, so that moving the folder aside does not move the lock
        lock = filelock.FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"{self.path}: another run is writing to this folder;"
                " wait for it, or choose another with --output"
            ) from None
        except (FileExistsError, NotADirectoryError):
            raise RunFolderError(f"{self.path.parent}: is a file, not a folder") from None
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot write here: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    def move_aside(self) -> Path | None:
        """Put the old results out of the way of a fresh start; returns where they are now."""
        if not self.path.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{n}" for n in range(2, 100))):
            aside = self.path.with_name(f"{self.path.name}.old-{stamp}{suffix}")
            if not aside.exists():
                self.path.rename(aside)
                return aside
        raise RunFolderError(f"{self.path}: cannot move the old results aside")

    def check_same_experiment(self, config: RunConfig) -> None:
        """Raise RunFolderError where the folder holds results of other settings."""
        try:
            before = yaml.safe_load((self.path / "config.yaml").read_bytes())
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise RunFolderError(f"{self.path}: is a file, not a run folder") from None
        except yaml.YAMLError:
            before = None
        if not isinstance(before, dict) or not isinstance(before.get("models"), list):
            raise RunFolderError(
                f"{self.path / 'config.yaml'}: is not the config of a run;"
                " --fresh moves the folder aside, --output DIR takes another"
            )
        now = yaml.safe_load(config.to_yaml())
        old, new = _flat(before), _flat(now)
        differing = [
            f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
            for key in dict.fromkeys((*old, *new))
            if old.get(key) != new.get(key) and not key.startswith(_FREE_KEYS)
        ]
        old_models, new_models = _models(before), _models(now)
        differing += [
            f"the settings of model {key[0]} differ"
            for key in old_models.keys() & new_models.keys()
            if old_models[key] != new_models[key]
        ]
        if differing:
            more = f" (and {len(differing) - 2} more)" if len(differing) > 2 else ""
            raise RunFolderError(
                f"{self.path}: holds results of other settings: {'; '.join(differing[:2])}{more}\n"
                "--fresh moves them aside; --set name=NAME or --output DIR starts another folder"
            )

    def write(self, name: str, content: str) -> None:
        """Write a text file of the run folder."""
        write_atomic(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run folder."""
        self.write(name, to_json(value))

    def trial_folder(self, spec: TrialSpec) -> Path:
        """Where the files of a trial are."""
        return self.path / spec.name / f"trial-{spec.trial}"

    def finished(self, spec: TrialSpec, split_sha256: str) -> dict[str, Any] | None:
        """Give the metrics of a finished trial of this very recipe and split, or None."""
        folder = self.trial_folder(spec)
        try:
            metrics = json.loads((folder / "metrics.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        expected = {"fingerprint": spec.fingerprint, "split_sha256": split_sha256}
        if not isinstance(metrics, dict) or any(metrics.get(k) != v for k, v in expected.items()):
            return None
        if spec.save_model and not (folder / "model").is_dir():
            return None
        return metrics

    def other_trials(self, specs: Sequence[TrialSpec]) -> list[str]:
        """Name the finished trials in the folder that are none of `specs`."""
        ours = {self.trial_folder(spec) for spec in specs}
        found = sorted(path.parent for path in self.path.glob("*/trial-*/metrics.json"))
        return [str(path.relative_to(self.path)) for path in found if path not in ours]

    @contextlib.contextmanager
    def model_folder(self, spec: TrialSpec) -> Iterator[Path | None]:
        """Lend a folder to save the model of a trial in; it takes its place when all went well."""
        if not spec.save_model:
            yield None
            return
        folder = self.trial_folder(spec)
        temporary = folder / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(folder / "model", ignore_errors=True)
            temporary.rename(folder / "model")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """Write all files of a finished trial; `metrics.json` comes last and makes it finished."""
        folder = self.trial_folder(spec)
        for outdated in ("metrics.json", "error.txt"):
            (folder / outdated).unlink(missing_ok=True)
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in result.log))
        write_atomic(folder / "predictions.csv", predictions_csv(result.predictions, spec.labels))
        write_atomic(folder / "metrics.json", to_json(result.metrics))


def write_atomic(path: Path, content: str) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name is always the same, so that what a killed run left is overwritten by the next
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_json(value: Any) -> str:
    """Write JSON for people and programs; NaN is refused, as it is no JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def predictions_csv(predictions: Sequence[Prediction], labels: Sequence[str]) -> str:
    """Write `text,label,predicted,generated` and, where there are any, the probabilities."""
    with_probabilities = any(p.probabilities is not None for p in predictions)
    header = ["text", "label", "predicted", "generated"]
    header += [f"p_{label}" for label in labels] if with_probabilities else []
    lines = [_csv_line(header)]
    for p in predictions:
        numbers = [f"{number:.6f}" for number in p.probabilities or ()]
        lines.append(_csv_line([p.text, p.label, p.predicted or "", p.generated, *numbers]))
    return "".join(lines)


def _csv_line(fields: Sequence[str]) -> str:
    file = io.StringIO(newline="")
    # only with this line end do all versions of Python quote a field that holds a lone "\r"
    csv.writer(file, lineterminator="\r\n").writerow(fields)
    return file.getvalue().removesuffix("\r\n") + "\n"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.")
    return flat


def _models(values: dict[str, Any]) -> dict[tuple[str, str | None], Any]:
    """Give what the models of a resolved config override, by name or model and by backend."""
    items: list[dict[str, Any]] = [
        {"model": m} if isinstance(m, str) else m for m in values["models"]
    ]
    return {
        (item.get("as", item["model"]), item.get("training", {}).get("backend")): {
            k: v for k, v in item.items() if k != "as"
        }
        for item in items
    }
