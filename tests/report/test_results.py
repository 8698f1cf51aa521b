from __future__ import annotations

import json
from typing import Any

import pytest

from tgsent.records import Prediction
from tgsent.report.results import collect

LABELS = ["x", "y"]


def answers(right: int, n: int = 40, trial: int = 1) -> list[Prediction]:
    """n texts of both labels by turns, the first ones answered rightly."""
    truth = [LABELS[i % 2] for i in range(n)]
    said = [t if i < right else LABELS[LABELS.index(t) - 1] for i, t in enumerate(truth)]
    pairs = enumerate(zip(truth, said, strict=True))
    return [Prediction(f"text {trial} {i}", t, s, s) for i, (t, s) in pairs]


def result(scores: dict[str, dict[int, int]], **more: Any) -> dict[str, Any]:
    """Collect models that have so many of 40 texts right in each trial."""
    predictions = {(m, k): answers(n, trial=k) for m, own in scores.items() for k, n in own.items()}
    trials = {
        m: {
            k: {"macro_f1": n / 40, "n_test": 40, "signature": f"model:{m}", "trial": k}
            for k, n in own.items()
        }
        for m, own in scores.items()
    }
    manifest = {"data": {"labels": LABELS}, **more}
    failed = {"gpt2": {3: "no luck"}}
    return collect("mine", trials, failed, predictions, manifest)


def test_every_model_has_a_row_with_mean_deviation_and_intervals() -> None:
    found = result({"gpt2": {1: 30, 2: 34}, "t5": {}})
    gpt2, t5 = found["models"]
    assert gpt2["macro_f1"]["mean"] == pytest.approx(0.8)
    assert gpt2["macro_f1"]["ci95"][0] < 0.75 < 0.85 < gpt2["macro_f1"]["ci95"][1]
    low, high = gpt2["macro_f1"]["bootstrap95"]
    assert 0.65 < low < 0.75 < 0.85 < high < 0.95
    (first, second) = gpt2["macro_f1"]["trials_bootstrap95"]
    assert first[0] < 0.75 < first[1] < second[1]
    assert t5["macro_f1"] == {
        "mean": None,
        "std": None,
        "ci95": None,
        "bootstrap95": None,
        "trials_bootstrap95": [],
    }
    assert gpt2["failed"] == [{"trial": 3, "reason": "no luck"}]
    assert (found["schema_version"], found["name"]) == (1, "mine")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_with_more_test_texts_both_scores_are_shown_and_all_compared() -> None:
    predictions = {("gpt2", 1): answers(30), ("t5", 1): answers(20)}
    trials = {
        m: {1: {"macro_f1": 1.0, "n_test": 20, "signature": "", "trial": 1,
                "all": {"macro_f1": n / 40, "n_test": 40}}}
        for m, n in (("gpt2", 30), ("t5", 20))
    }  # fmt: skip
    found = collect("mine", trials, {}, predictions, {"data": {"labels": LABELS}})
    gpt2 = found["models"][0]
    assert (gpt2["macro_f1"]["mean"], gpt2["macro_f1"]["bootstrap95"]) == (
        1.0,
        pytest.approx([1.0, 1.0]),
    )
    assert gpt2["macro_f1_all"]["mean"] == 0.75
    assert gpt2["macro_f1_all"]["bootstrap95"][0] < 0.7
    (comparison,) = found["comparisons"]
    assert (comparison["n"], comparison["difference"]) == (40, 0.25)
    assert "gpt2 has the highest mean macro-F1, 0.750" in found["verdict"][0]


def test_published_numbers_are_passed_on() -> None:
    assert "article" not in result({"gpt2": {1: 30}}, article=None)
    assert result({"gpt2": {1: 30}}, article={"trials": 3})["article"] == {"trials": 3}


@pytest.mark.parametrize(
    ("scores", "second"),
    [
        ({"gpt2": {1: 30}}, "There is no other model to compare it with."),
        ({"gpt2": {1: 30}, "t5": {1: 29}},
         "It cannot be told apart from t5 on these test texts."),
        ({"t5": {1: 10}, "gpt2": {1: 39}}, "It is better than t5 by more than luck."),
        ({"a": {1: 10}, "gpt2": {1: 39}, "b": {1: 38}, "c": {1: 37}},
         "It is better than a by more than luck, but cannot be told apart from b and c on these"
         " test texts."),
    ],
)  # fmt: skip
def test_the_verdict(scores: dict[str, dict[int, int]], second: str) -> None:
    first, *rest = result(scores)["verdict"]
    assert first.startswith("gpt2 has the highest mean macro-F1, 0.")
    assert "over 1 trial (95 % 0." in first
    assert rest == [second]


def test_the_verdict_of_nothing() -> None:
    assert result({"gpt2": {}})["verdict"] == ["No trial is finished."]


def test_every_pair_is_compared() -> None:
    found = result({"a": {1: 10}, "b": {1: 39}, "c": {1: 38}})
    assert [(c["first"], c["second"], c["real"]) for c in found["comparisons"]] == [
        ("a", "b", True), ("a", "c", True), ("b", "c", False)
    ]  # fmt: skip
    assert all(c["sentence"] for c in found["comparisons"])


def test_models_without_all_trials_are_judged_by_those_that_all_have() -> None:
    found = result({"a": {1: 32}, "b": {1: 39, 2: 20}})
    assert found["verdict"] == [
        "b has the highest mean macro-F1, 0.975 over 1 trial, those that all models have.",
        "It is better than a by more than luck.",
    ]
    assert result({"a": {1: 32}, "b": {2: 20}})["verdict"] == [
        "The models have no trial in common, so that their means cannot be compared."
    ]
    # the best of what all have may lose elsewhere
    found = result({"a": {1: 40, 2: 3}, "b": {1: 39, 2: 40}, "c": {1: 10}})
    assert found["verdict"][0].startswith("a has the highest mean macro-F1, 1.000 over 1 trial,")
    assert found["verdict"][1] == (
        "It is better than c by more than luck, but is worse than b by more than luck on the"
        " trials that both have."
    )


def test_nothing_is_said_of_luck_while_a_run_goes_on() -> None:
    trials = {"a": {1: {"macro_f1": 0.5, "n_test": 40, "signature": "", "trial": 1}}, "b": {}}
    found = collect("mine", trials, {}, {}, {"data": {"labels": LABELS}})
    assert found["verdict"] == ["The run goes on: 1 trials are finished."]
    assert found["comparisons"] == []
    assert found["models"][0]["macro_f1"]["mean"] == 0.5
    assert found["models"][0]["macro_f1"]["bootstrap95"] is None
