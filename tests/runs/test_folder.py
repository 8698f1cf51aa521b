from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from run_folders import metrics_of
from tgsent.config import RunConfig, TrialSpec, load
from tgsent.errors import RunFolderError
from tgsent.files import to_json, write_atomic
from tgsent.records import Prediction, SplitSummary
from tgsent.runs.checks import check_same_data, check_same_settings
from tgsent.runs.folder import RunFolder
from tgsent.runs.formats import (
    escape_formula,
    predictions_csv,
    read_predictions,
    unescape_formula,
)
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


# -------------------------------------------------------------------------------- atomic writes


def test_writing_makes_folders_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.txt"
    write_atomic(path, "old, and longer")
    write_atomic(path, "new \u20ac\r\n")
    assert path.read_bytes() == "new \u20ac\r\n".encode()
    assert files(tmp_path) == ["a/b/c.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_content_alone(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert files(tmp_path) == ["results.json"]


def test_the_new_content_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")
    seen = []

    def look(descriptor: int) -> None:
        seen.append((path.read_text(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", look)
    write_atomic(path, "newer")
    assert seen[0] == ("old", 5)
    assert seen[1][0] == "newer", "the folder, with the new name in it"


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tgsent.files import write_atomic\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomic(Path(sys.argv[1]), 'x' * 1000)"
    )
    path = tmp_path / "results.json"
    path.write_text("old")
    subprocess.run([sys.executable, "-c", script, str(path)])
    assert path.read_text() == "old"
    assert len(files(tmp_path)) == 2
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert files(tmp_path) == ["results.json"]


def test_json_is_readable_and_refuses_what_is_no_json() -> None:
    assert to_json({"label": "schön"}) == '{\n  "label": "schön"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})


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
        pytest.raises(RunFolderError, match="file: is a file or a broken link, not a folder"),
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


# ---------------------------------------------------------------------------- the same experiment


def config_of(*overrides: str, **command: Any) -> RunConfig:
    return load("smoke", overrides=overrides, **command)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder that holds results of the smoke config."""
    folder = RunFolder(tmp_path / "smoke")
    folder.write("config.yaml", config_of().to_yaml())
    return folder


def test_an_empty_folder_takes_any_experiment(tmp_path: Path) -> None:
    check_same_settings(tmp_path / "missing", config_of())
    check_same_settings(tmp_path, config_of())


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.device=cpu"],
        ["evaluation.batch_size=1"],
        ["output.dir=elsewhere", "output.save_model=all"],
        ["trials=9"],
        ["models=[gpt2]"],
        ["models=[gpt2, gpt-neo, ./another]"],
        ["models=[{model: ./another, training: {epochs: 1}}]"],
    ],
)
def test_a_folder_takes_the_same_experiment_carried_out_otherwise(
    overrides: list[str], folder: RunFolder
) -> None:
    check_same_settings(folder.path, config_of(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epochs=9"], "training.epochs was 3 and is now 9"),
        (["data.labels={0: bad, 4: good}"], "data.labels"),
        (["seed=2", "data.sample_size=100"], "seed was 1 and is now 2; data.sample_size was None"),
        (
            ["seed=2", "data.path=sentiment140", "training.loss=full", "training.epochs=1"],
            "; data.path was 'sample' and is now 'sentiment140' (and 2 more)",
        ),
        (["models.2.training.epochs=1"], "the settings of model t5 differ"),
        (["models=[{model: ./gpt2, as: gpt2}]"], "the settings of model gpt2 differ"),
    ],
)
def test_a_folder_refuses_another_experiment_and_names_the_keys(
    overrides: list[str], message: str, folder: RunFolder
) -> None:
    with pytest.raises(RunFolderError) as caught:
        check_same_settings(folder.path, config_of(*overrides))
    assert message in str(caught.value)
    assert "--fresh moves them aside" in str(caught.value)


def test_folders_of_earlier_versions_lack_keys(tmp_path: Path) -> None:
    """They calibrated nothing, and put adapters on the attention."""
    folder = RunFolder(tmp_path / "smoke")

    def of_earlier(*overrides: str) -> None:
        values = config_of(*overrides).dump()
        del values["evaluation"]["calibration"], values["prompt"]["words"]
        values["training"]["lora"] and values["training"]["lora"].pop("target")
        folder.write("config.yaml", yaml.safe_dump(values))

    zero_shot = ("training.epochs=0", "evaluation.decoding=score")
    of_earlier()
    check_same_settings(folder.path, config_of())
    of_earlier("evaluation.decoding=score")
    check_same_settings(folder.path, config_of("evaluation.decoding=score"))
    of_earlier(*zero_shot)
    check_same_settings(folder.path, config_of(*zero_shot, "evaluation.calibration=none"))
    with pytest.raises(RunFolderError, match="calibration was 'none' and is now 'contextual'"):
        check_same_settings(folder.path, config_of(*zero_shot))
    of_earlier("training.lora={r: 4}")
    check_same_settings(folder.path, config_of("training.lora={r: 4, target: attention}"))
    with pytest.raises(RunFolderError, match="target was 'attention' and is now 'all-linear'"):
        check_same_settings(folder.path, config_of("training.lora={r: 4}"))


@pytest.mark.parametrize("content", ["", "name: x", "a: b: c", "\x00", "- x"])
def test_a_config_of_no_run_is_not_overwritten(content: str, folder: RunFolder) -> None:
    folder.write("config.yaml", content)
    with pytest.raises(RunFolderError, match="is not the config of a run"):
        check_same_settings(folder.path, config_of())


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a run folder"):
        check_same_settings(tmp_path / "file", config_of())


# ------------------------------------------------------------------------------- predictions.csv

_nasty = st.text(
    st.one_of(
        st.sampled_from("\n\r\",;' \t\x01\x0b\x1a\x85\u2028\ufeff😀"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
)


@given(st.lists(st.tuples(_nasty, st.none() | st.just("x y"), _nasty), min_size=1))
def test_predictions_round_trip(answers: list[tuple[str, str | None, str]]) -> None:
    predictions = [Prediction(text, "x y", said, raw) for text, said, raw in answers]
    content = predictions_csv(predictions, ("x y", "z"), escape_formulas=False)
    expected = [[p.text, p.label, p.predicted or "", p.generated] for p in predictions]

    header, *by_csv = csv.reader(io.StringIO(content, newline=""))
    assert header == ["text", "label", "predicted", "generated"]
    assert by_csv == expected
    frame = pd.read_csv(io.BytesIO(content.encode()), dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == expected


def test_predictions_have_probabilities_where_decoding_gives_them() -> None:
    predictions = [
        Prediction("a", "x", "x", " x", (0.75, 0.25)),
        Prediction("b", "y", "y", " y", (1 / 3, 2 / 3)),
    ]
    assert predictions_csv(predictions, ("x", "y"), escape_formulas=True) == (
        "text,label,predicted,generated,p_x,p_y\n"
        "a,x,x, x,0.750000,0.250000\n"
        "b,y,y, y,0.333333,0.666667\n"
    )


def test_json_files_are_written_as_such(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_json("results.json", {"a": [1]})
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": [1]}


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("\uff1d1", "'\uff1d1"), ("'=1", "''=1"),
        ("a=1", "a=1"), ("'tis", "'tis"), ("", ""), ("' =1", "' =1"),
    ],
)  # fmt: skip
def test_formulas_are_escaped(cell: str, written: str) -> None:
    assert escape_formula(cell) == written


@given(st.text("'=+-@\t\r\n a"))
def test_escaping_formulas_can_be_undone(cell: str) -> None:
    assert unescape_formula(escape_formula(cell)) == cell
    assert not re.match(r"[=+\-@\t\r\n]", escape_formula(cell))


def test_formulas_in_texts_and_answers_are_escaped_unless_told_otherwise() -> None:
    predictions = [Prediction("=cmd()", "-a", "-a", "+b")]
    assert predictions_csv(predictions, ("-a", "c"), escape_formulas=True).splitlines()[1] == (
        "'=cmd(),'-a,'-a,'+b"
    )
    assert predictions_csv(predictions, ("-a", "c"), escape_formulas=False).splitlines()[1] == (
        "=cmd(),-a,-a,+b"
    )


def test_json_holds_nothing_that_a_terminal_obeys() -> None:
    text = to_json({"text": "\x1b[2J\x9b31m\x7f"})
    assert text.isprintable() or not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert json.loads(text) == {"text": "\x1b[2J\x9b31m\x7f"}


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


@given(
    st.lists(
        st.builds(
            Prediction,
            text=st.text(st.characters(exclude_categories=["Cs"])),
            label=st.sampled_from(("x", "=y", "'-z")),
            predicted=st.sampled_from((None, "x", "=y", "'-z")),
            generated=st.text("=+-'x\r\n,\"", max_size=5),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_predictions_are_read_back_as_they_were(
    predictions: list[Prediction], escape: bool
) -> None:
    content = predictions_csv(predictions, ("x", "=y", "'-z"), escape_formulas=escape)
    assert read_predictions(content, escaped=escape) == predictions


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_no_delimiter_of_a_spreadsheet_makes_a_formula_of_the_middle(delimiter: str) -> None:
    predictions = [Prediction(f"x{delimiter}=cmd(){delimiter}@y", "a", "a", "b")]
    content = predictions_csv(predictions, ("a", "c"), escape_formulas=True)
    for row in csv.reader(io.StringIO(content, newline=""), delimiter=delimiter):
        assert not any(cell.startswith(("=", "@")) for cell in row)


def test_a_trial_whose_answers_are_gone_is_not_finished(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), spec_of()
    folder.write_trial(spec, result_of(spec))
    assert folder.finished(spec, split_of()) is not None
    (folder.trial_folder(spec) / "predictions.csv").unlink()
    assert folder.finished(spec, split_of()) is None


def test_results_of_other_data_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    check_same_data(folder.path, "a" * 64)
    folder.write_json("manifest.json", {"data": {"sha256": "b" * 64}})
    check_same_data(folder.path, "a" * 64)  # nothing is finished, nothing is lost
    folder.write_json("gpt2/trial-1/metrics.json", {})
    check_same_data(folder.path, "b" * 64)
    with pytest.raises(RunFolderError, match=r"was bbbbbbbbbbbb\.\.\. and is now aaaaaaaaaaaa"):
        check_same_data(folder.path, "a" * 64)
