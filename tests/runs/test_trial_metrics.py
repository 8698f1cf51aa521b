"""The record of a trial's metrics, and its JSON."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from conftest import ROOT
from run_folders import metrics_of
from tgsent.records import Bin, Calibration, Scores
from tgsent.runs import metrics
from tgsent.runs.metrics import TrialMetrics


def test_every_field_has_its_key() -> None:
    assert sorted(metrics._KEYS) == sorted(field.name for field in fields(TrialMetrics))


def test_json_is_read_back_as_it_was() -> None:
    whole = metrics_of(
        all=Scores(20, 0.6, 0.6, {}, {"x": {"x": 20}}, 0),
        calibration=Calibration(0.1, None, (Bin(0.9, 0.8, 10),)),
        warmup_steps=3, max_grad_norm=None, padding="longest", label_prior={"x": 1.0},
        example=("a", "b"), shots=(("text", "x"),), warnings=("no answer is a label",),
    )  # fmt: skip
    values = json.loads(json.dumps(whole.to_json()))
    assert list(values) == list(metrics._KEYS)
    assert TrialMetrics.from_json(values) == whole
    assert (whole.compared.n_test, metrics_of().compared.n_test) == (20, 10)


def test_what_a_trial_does_not_have_has_no_key() -> None:
    absent = {"all", "calibration", "warmup_steps", "max_grad_norm", "padding"}
    assert set(metrics._KEYS) - set(metrics_of().to_json()) == absent


@pytest.mark.parametrize("values", [None, [], {}, {"model": "gpt2"}])
def test_what_is_no_record_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="TrialMetrics"):
        TrialMetrics.from_json(values)


@pytest.mark.parametrize("model", ["majority", "gpt2"])
def test_metrics_of_earlier_versions_are_read(model: str) -> None:
    path = ROOT / "docs/example" / model / "trial-1/metrics.json"
    values = json.loads(path.read_bytes())
    assert (
        values.items() <= json.loads(json.dumps(TrialMetrics.from_json(values).to_json())).items()
    )
