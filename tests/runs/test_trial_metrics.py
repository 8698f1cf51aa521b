"""The record of a trial's metrics, and its JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from conftest import ROOT
from run_folders import metrics_of
from tgsent.records import Bin, Calibration, Scores
from tgsent.runs.formats import UnusableError, read_record
from tgsent.runs.metrics import TrialMetrics


def read(values: object, folder: Path) -> TrialMetrics | None:
    (folder / "metrics.json").write_text(json.dumps(values))
    return read_record(TrialMetrics, folder / "metrics.json")


def test_json_is_read_back_as_it_was(tmp_path: Path) -> None:
    whole = metrics_of(
        all=Scores(20, 0.6, 0.6, {}, {"x": {"x": 20}}, 0),
        calibration=Calibration(0.1, None, (Bin(0.9, 0.8, 10),)),
        warmup_steps=3, max_grad_norm=None, padding="longest", label_prior={"x": 1.0},
        example=("a", "b"), shots=(("text", "x"),), warnings=("no answer is a label",),
    )  # fmt: skip
    assert whole.to_json().keys() == {field.name for field in fields(TrialMetrics)}
    assert read(whole.to_json(), tmp_path) == whole
    assert (whole.compared.n_test, metrics_of().compared.n_test) == (20, 10)


def test_what_a_trial_does_not_have_has_no_key() -> None:
    absent = {"all", "calibration", "warmup_steps", "max_grad_norm", "padding"}
    assert {field.name for field in fields(TrialMetrics)} - metrics_of().to_json().keys() == absent


@pytest.mark.parametrize("values", [None, [], {}, {"model": "gpt2"}])
def test_what_is_no_record_is_refused(values: object, tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"metrics\.json: is damaged, or was not written"):
        read(values, tmp_path)


def test_a_missing_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(TrialMetrics, tmp_path / "metrics.json") is None


@pytest.mark.parametrize("model", ["majority", "gpt2"])
def test_metrics_of_earlier_versions_are_read(model: str) -> None:
    path = ROOT / "docs/example" / model / "trial-1/metrics.json"
    found = read_record(TrialMetrics, path)
    assert found
    values = json.loads(path.read_bytes())
    assert values.items() <= json.loads(json.dumps(found.to_json())).items()
