"""The run folder: every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import yaml

from tgsent import files
from tgsent.config import RunConfig, TrialSpec, earlier, resolve_calibration
from tgsent.errors import RunFolderError
from tgsent.files import write_atomic
from tgsent.records import Prediction, SplitSummary, TrialResult

# Keys that say how a run is carried out, not what it measures: they may differ between runs in
# one folder, and so may the choice of models and the number of trials.
_FREE_KEYS = (
    "name", "models", "trials", "output.", "engine.", "training.device", "training.report_to",
    "evaluation.batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run folder."""

    path: Path

    @contextlib.contextmanager
    def locked(self, *, wait_seconds: float = 0) -> Iterator[None]:
        """Keep other runs out while the context is open; wait so long for them, -1 for ever.

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
            if not place.exists():  # what keeps it from being made is not always told
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
        """Keep other processes from running the same trial while the context is open.

        The lock's file is removed by whoever finishes the trial, and whoever then still gets hold
        of it sees that. Raises RunFolderError where another process is at it.
        """
        place = self._trial_lock(spec)
        with files.explained(place):
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
        """Put the old results out of the way of a fresh start; returns where they are now."""
        if not self.path.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{n}" for n in range(2, 100))):
            aside = self.path.with_name(f"{self.path.name}.old-{stamp}{suffix}")
            if not aside.exists():
                with files.explained(aside):
                    self.path.rename(aside)
                return aside
        raise RunFolderError(f"{self.path}: cannot move the old results aside")

    def check_same_data(self, sha256: str) -> None:
        """Raise RunFolderError where the folder holds results of other data."""
        if not any(self.path.glob("*/trial-*/metrics.json")):
            return
        data = read_object(self.path / "manifest.json").get("data")
        before = data.get("sha256") if isinstance(data, dict) else None
        if before and before != sha256:
            raise other_results(self.path, "results of other data: the file's", before, sha256)

    def sweep(self) -> list[dict[str, Any]]:
        """Give how the settings of the results in the folder were chosen, as its manifest says."""
        if not any(self.path.glob("*/trial-*/metrics.json")):
            return []
        found = read_object(self.path / "manifest.json").get("sweep")
        return found if isinstance(found, list) else []

    def check_same_experiment(self, config: RunConfig) -> None:
        """Raise RunFolderError where the folder holds results of other settings."""
        try:
            before = yaml.safe_load((self.path / "config.yaml").read_bytes())
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise RunFolderError(f"{self.path}: is a file, not a run folder") from None
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be read: {error.strerror}") from None
        except yaml.YAMLError:
            before = None
        if not isinstance(before, dict) or not isinstance(before.get("models"), list):
            raise RunFolderError(
                f"{self.path / 'config.yaml'}: is not the config of a run;"
                " --fresh moves the folder aside, --output DIR takes another"
            )
        now = yaml.safe_load(config.to_yaml())
        earlier.fill(before)
        old, new = flat(before), flat(now)
        for settings in (old, new):
            _resolve(settings)
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

    def tidy(self, spec: TrialSpec, *, finished: bool) -> None:
        """Remove what a killed run could not: half-written files, a finished trial's leftovers."""
        folder = self.trial_folder(spec)
        for stale in (*folder.glob(".*.tmp"), *folder.glob("checkpoint/.*.tmp")):
            with files.explained(stale):
                if stale.is_dir():
                    shutil.rmtree(stale)
                else:
                    stale.unlink()
        if finished:
            self._remove_leftovers(spec)

    def trial_folder(self, spec: TrialSpec) -> Path:
        """Where the files of a trial are."""
        return self.path / spec.name / f"trial-{spec.trial}"

    def checkpoint_folder(self, spec: TrialSpec) -> Path:
        """Where the state of a trial's training is, until the trial is finished."""
        return self.trial_folder(spec) / "checkpoint"

    def tracker_folder(self, spec: TrialSpec) -> Path:
        """Where trackers put their files about a trial."""
        return self.trial_folder(spec) / "trackers"

    def _remove_leftovers(self, spec: TrialSpec) -> None:
        folder = self.checkpoint_folder(spec)
        with files.explained(folder), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        with files.explained(self._trial_lock(spec)):
            self._trial_lock(spec).unlink(missing_ok=True)

    def finished(self, spec: TrialSpec, split: SplitSummary) -> dict[str, Any] | None:
        """Give the metrics of a finished trial of this very recipe and split, or None."""
        folder = self.trial_folder(spec)
        try:
            metrics = json.loads((folder / "metrics.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise RunFolderError(
                f"{folder / 'metrics.json'}: cannot be read: {error.strerror}"
            ) from None
        if not isinstance(metrics, dict):
            return None
        recorded = metrics.get("weights_sha256") or ""
        if recorded != spec.weights and not (recorded and spec.weights):
            spec = spec.with_weights(recorded)  # only one of the two has a hash: take them as equal
        expected = {
            "fingerprint": spec.fingerprint,
            "split_sha256": split.sha256,
            "extra_sha256": split.extra_sha256,
        }
        if any(metrics.get(key) != value for key, value in expected.items()):
            return None
        if not (folder / "predictions.csv").is_file():
            return None
        if spec.save_model and not (folder / "model").is_dir():
            return None
        return metrics

    def predictions(self, metrics: dict[str, Any]) -> list[Prediction]:
        """Read the answers of the finished trial that has these metrics."""
        file = self.path / metrics["model"] / f"trial-{metrics['trial']}" / "predictions.csv"
        content = file.read_bytes().decode("utf-8", "surrogatepass")
        return read_predictions(content, escaped=metrics.get("formulas_escaped", True))

    def log(self, model: str, trial: int) -> list[dict[str, Any]]:
        """Read the training log of a finished trial."""
        content = (self.path / model / f"trial-{trial}" / "log.jsonl").read_text("utf-8")
        return [json.loads(line) for line in content.splitlines()]

    def other_trials(self, specs: Sequence[TrialSpec]) -> list[str]:
        """Name the finished trials in the folder that are none of `specs`."""
        ours = {self.trial_folder(spec) for spec in specs}
        found = sorted(path.parent for path in self.path.glob("*/trial-*/metrics.json"))
        return [str(path.relative_to(self.path)) for path in found if path not in ours]

    @contextlib.contextmanager
    def model_folder(self, spec: TrialSpec) -> Iterator[Path | None]:
        """Lend a folder to save the model of a trial in, which `write_trial` puts in its place."""
        if not spec.save_model:
            yield None
            return
        folder = self.trial_folder(spec)
        temporary = folder / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        with files.explained(temporary):
            temporary.mkdir(parents=True, mode=0o700)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _place_model(self, saved: Path) -> None:
        place = saved.with_name("model")
        with files.explained(place):
            for file in (*saved.rglob("*"), saved):
                files.sync(file)
            saved.chmod(place.parent.stat().st_mode)
            shutil.rmtree(place, ignore_errors=True)
            saved.rename(place)

    def write_trial(self, spec: TrialSpec, result: TrialResult, model: Path | None = None) -> None:
        """Write all files of a finished trial; `metrics.json` comes last and makes it finished.

        `model` is the folder that `model_folder` has lent, where a model was saved in it.
        """
        folder = self.trial_folder(spec)
        if model is not None:
            self._place_model(model)
        for outdated in ("metrics.json", "error.txt"):
            with files.explained(folder / outdated):
                (folder / outdated).unlink(missing_ok=True)
        predictions = predictions_csv(
            result.predictions, spec.labels, escape_formulas=spec.escape_formulas
        )
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in result.log))
        write_atomic(folder / "predictions.csv", predictions)
        write_atomic(folder / "metrics.json", to_json(result.metrics))
        self._remove_leftovers(spec)


def other_results(path: Path, what: str, before: str, now: str) -> RunFolderError:
    """Return the error for a run folder whose results come from files with another hash."""
    return RunFolderError(
        f"{path}: holds {what} SHA-256 was {before[:12]}... and is now {now[:12]}...\n"
        "--fresh moves them aside; --set name=NAME or --output DIR starts another folder"
    )


def read_object(path: Path) -> dict[str, Any]:
    """Load the object in a JSON file; return an empty one if it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _sign(lock: Path) -> None:
    """Name this process in a lock's file, for those who find it locked."""
    with files.explained(lock):
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")


def _holder(lock: Path) -> str:
    """Name the process that holds a lock, as it named itself."""
    with contextlib.suppress(OSError, ValueError):
        if holder := lock.read_text("utf-8").strip():
            return holder
    return "another run"


def to_json(value: Any) -> str:
    """Write JSON for people and programs; NaN is refused, as it is no JSON.

    Characters that a terminal would obey are escaped, and stay what they are for a program.
    """
    return _unobeyed(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def _unobeyed(text: str) -> str:
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def predictions_csv(
    predictions: Sequence[Prediction], labels: Sequence[str], *, escape_formulas: bool
) -> str:
    """Write `text,label,predicted,generated` and, where there are any, the probabilities."""
    with_probabilities = any(p.probabilities is not None for p in predictions)
    header = ["text", "label", "predicted", "generated"]
    header += [f"p_{label}" for label in labels] if with_probabilities else []
    rows = [header]
    for p in predictions:
        numbers = [f"{number:.6f}" for number in p.probabilities or ()]
        rows.append([p.text, p.label, p.predicted or "", p.generated, *numbers])
    return "".join(_csv_row(row, escape=escape_formulas) for row in rows)


def prediction_lines(
    predictions: Iterable[tuple[int, Prediction]], spec: TrialSpec, *, as_json: bool
) -> Iterator[str]:
    """Write answers to texts whose label nobody knows: as CSV with a header, or as JSON lines.

    Each comes with the number of the line that its text is on.
    """
    if not as_json:
        names = [f"p_{label}" for label in spec.labels]
        yield _csv_row(
            ["line", "text", "predicted", "generated", *names], escape=spec.escape_formulas
        )
    for line, p in predictions:
        likely = p.probabilities or ()
        if as_json:
            shares = dict(zip(spec.labels, likely, strict=True))
            row = {"line": line, "text": p.text, "predicted": p.predicted, "generated": p.generated}
            yield _unobeyed(json.dumps({**row, "probabilities": shares}, ensure_ascii=False)) + "\n"
        else:
            cells = [
                str(line),
                p.text,
                p.predicted or "",
                p.generated,
                *(f"{x:.6f}" for x in likely),
            ]
            yield _csv_row(cells, escape=spec.escape_formulas)


def _csv_row(cells: Sequence[str], *, escape: bool) -> str:
    return _csv_line(list(map(escape_formula, cells)) if escape else cells)


_APOSTROPHE_FIRST = re.compile("[,\"\n]'")


def read_predictions(content: str, *, escaped: bool) -> list[Prediction]:
    """Read what `predictions_csv` wrote."""
    csv.field_size_limit(2**31 - 1)  # a text may be as long as it likes
    escaped = escaped and _APOSTROPHE_FIRST.search(content) is not None
    exact: Callable[[str], str] = unescape_formula if escaped else str
    _, *rows = csv.reader(io.StringIO(content, newline=""))
    return [
        Prediction(
            text=exact(row[0]),
            label=exact(row[1]),
            predicted=exact(row[2]) or None,
            generated=exact(row[3]),
            probabilities=tuple(map(float, row[4:])) or None,
        )
        for row in rows
    ]


# What spreadsheets take for the beginning of a formula, or skip on the way to one (OWASP, "CSV
# Injection"), after apostrophes: so that taking one apostrophe away undoes it in every case.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def escape_formula(cell: str) -> str:
    """Write an apostrophe before what a spreadsheet could run; it then takes it for a text."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape_formula(cell: str) -> str:
    """Undo `escape_formula`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _csv_line(fields: Sequence[str]) -> str:
    file = io.StringIO(newline="")
    # only with this line end do all versions of Python quote a field that holds a lone "\r"
    # and a reader that takes another character for the delimiter finds no formula behind one
    separated = any(set(field) & set(";\t|") for field in fields)
    csv.writer(
        file,
        lineterminator="\r\n",
        quoting=csv.QUOTE_ALL if separated else csv.QUOTE_MINIMAL,
    ).writerow(fields)
    return file.getvalue().removesuffix("\r\n") + "\n"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Give the values of nested mappings by their dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.")
    return found


def _resolve(settings: dict[str, Any]) -> None:
    """Resolve `evaluation.calibration` in place, so that configs of all versions compare."""
    settings["evaluation.calibration"] = resolve_calibration(
        settings.get("evaluation.calibration", "none"),
        settings.get("evaluation.decoding", "free"),
        settings.get("training.epochs", 1),
    )


def _models(values: dict[str, Any]) -> dict[tuple[str, str | None], Any]:
    """Give what the models of a resolved config override, by name or model and by backend."""
    items: list[dict[str, Any]] = [
        {"model": m} if isinstance(m, str) else m for m in values["models"]
    ]
    return {
        (item.get("as", item["model"]), item.get("training", {}).get("backend")): {
            k: v for k, v in flat(item).items() if k != "as" and not k.startswith(_FREE_KEYS)
        }
        for item in items
    }
