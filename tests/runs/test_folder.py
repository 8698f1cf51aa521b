from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from run_folders import metrics_of
from tgsent.config import TrialSpec, load
from tgsent.errors import RunFolderError
from tgsent.records import Prediction, SplitSummary
from tgsent.runs.folder import RunFolder
from tgsent.runs.metrics import TrialResult


def spec_of(*overrides: str) -> TrialSpec:
    return load("smoke", models=["gpt2"], overrides=overrides).trial_specs(("x", "y"))[0]


def split_of(sha256: str = "abc", extra: str = "") -> SplitSummary:
    return SplitSummary(1, 1, sha256, n_train=0, n_test=0, overlap=0, extra_sha256=extra)


def result_of(spec: TrialSpec, split: str = "abc") -> TrialResult:
    metrics = metrics_of(fingerprint=spec.fingerprint, split_sha256=split)
    return TrialResult(metrics, (Prediction("text", "x", None, " z"),), ({"step": 1}, {"step": 2}))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ------------------------------------------------------------------------------- finished trials


def test_a_written_trial_is_finished(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    assert folder.finished(spec, split_of()) is None
    folder.write_trial(spec, result_of(spec))
    assert folder.finished(spec, split_of()) == result_of(spec).metrics
    trial = tmp_path / "gpt2/trial-1"
    assert files(trial) == ["log.jsonl", "metrics.json", "predictions.csv"]
    assert (trial / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_trial_is_finished_only_when_all_its_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    folder.write_trial(spec, result_of(spec))

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write_trial(spec, result_of(spec))
    assert folder.finished(spec, split_of()) is None


def test_what_a_failed_attempt_left_goes_when_the_trial_is_written(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    folder.write("gpt2/trial-1/error.txt", "Traceback")
    folder.write_trial(spec, result_of(spec))
    assert files(tmp_path / "gpt2/trial-1") == ["log.jsonl", "metrics.json", "predictions.csv"]


@pytest.mark.parametrize("content", ["", '{"macro_f1": 0.', "[]", "null", "\x00\xff"])
def test_damaged_metrics_are_no_finished_trial(content: str, tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    folder.write_trial(spec, result_of(spec))
    (tmp_path / "gpt2/trial-1/metrics.json").write_bytes(content.encode("latin-1"))
    assert folder.finished(spec, split_of()) is None


def test_another_recipe_or_split_is_not_finished(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    folder.write_trial(spec, result_of(spec))
    assert folder.finished(spec, split_of("abd")) is None
    assert folder.finished(spec, split_of("abc", "e")) is None
    assert folder.finished(spec_of("training.epochs=9"), split_of()) is None
    assert folder.finished(spec_of("training.device=cpu"), split_of()) is not None


def test_a_trial_whose_model_is_wanted_is_finished_with_its_model(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of("output.save_model=all")
    folder.write_trial(spec, result_of(spec))
    assert folder.finished(spec, split_of()) is None
    with folder.model_folder(spec) as model:
        assert model is not None
        (model / "weights").write_text("w")
        folder.write_trial(spec, result_of(spec), model)
    assert folder.finished(spec, split_of()) is not None
    assert (tmp_path / "gpt2/trial-1/model/weights").read_text() == "w"


def test_a_model_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of("output.save_model=all")

    def save(content: str, *, fail: bool) -> None:
        with folder.model_folder(spec) as model:
            assert model is not None
            (model / "weights").write_text(content)
            if fail:
                raise OSError("disk full")
            folder.write_trial(spec, result_of(spec), model)

    save("old", fail=False)
    with pytest.raises(OSError, match="disk full"):
        save("new", fail=True)
    assert not list(tmp_path.rglob(".*"))
    assert (tmp_path / "gpt2/trial-1/model/weights").read_text() == "old"


def test_a_model_that_a_killed_run_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of("output.save_model=all")
    killed = folder.model_folder(spec)
    left = killed.__enter__()
    assert left is not None
    (left / "half").write_text("h")
    with folder.model_folder(spec) as model:
        assert model is not None
        (model / "weights").write_text("w")
        folder.write_trial(spec, result_of(spec), model)
    assert files(tmp_path / "gpt2/trial-1/model") == ["weights"]


def test_no_model_folder_where_none_is_wanted(tmp_path: Path) -> None:
    with RunFolder(tmp_path).model_folder(spec_of()) as model:
        assert model is None
    assert not files(tmp_path)


# ------------------------------------------------------------------------------ lock, fresh start


@contextmanager
def another_process_holds(folder: Path) -> Iterator[subprocess.Popen[str]]:
    script = (
        "import sys; from pathlib import Path; from tgsent.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def test_the_lock_of_another_run_is_respected_and_dies_with_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/mine")
    with another_process_holds(folder.path) as process:
        with (
            pytest.raises(RunFolderError, match=rf"process {process.pid} on \S+ is writing to"),
            folder.locked(),
        ):
            pass
        with RunFolder(tmp_path / "runs/other").locked():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with folder.locked():
            pass


def test_the_lock_leaves_nothing_in_the_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/mine")
    with folder.locked():
        folder.write("config.yaml", "")
    assert files(folder.path) == ["config.yaml"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunFolderError, match="file/run: cannot write here: "),
        RunFolder(tmp_path / "file/run").locked(),
    ):
        pass


def test_finished_trials_of_other_models_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("gpt2/trial-1", "gpt2/trial-2", "t5/trial-1"):
        folder.write(f"{name}/metrics.json", "{}")
    assert folder.other_trials([spec_of()]) == ["gpt2/trial-2", "t5/trial-1"]


def test_moving_aside_keeps_everything(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "mine")
    assert folder.move_aside() is None
    kept = []
    for content in ("first", "second", "third"):
        folder.write("results.json", content)
        kept.append(folder.move_aside())
        assert not folder.path.exists()
    assert [(path / "results.json").read_text() for path in kept if path] == [
        "first",
        "second",
        "third",
    ]
    assert all(path and path.name.startswith("mine.old-") for path in kept)


def test_what_a_killed_run_left_is_tidied(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    trial = folder.trial_folder(spec)
    for name in (".error.txt.tmp", ".model.tmp/model.safetensors", "checkpoint/step-1.safetensors"):
        (trial / name).parent.mkdir(parents=True, exist_ok=True)
        (trial / name).write_text("")
    folder.tidy(spec, finished=False)
    assert files(tmp_path) == [
        "default/trial-1/checkpoint/step-1.safetensors".replace("default", spec.name)
    ]
    folder.tidy(spec, finished=True)
    assert files(tmp_path) == []


def test_a_trial_whose_answers_are_gone_is_not_finished(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    folder.write_trial(spec, result_of(spec))
    assert folder.finished(spec, split_of()) is not None
    (folder.trial_folder(spec) / "predictions.csv").unlink()
    assert folder.finished(spec, split_of()) is None
