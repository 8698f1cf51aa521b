from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from run_folders import manifest_of, metrics_of
from tgsent.evaluation.metrics import Summary
from tgsent.records import Prediction, Scores
from tgsent.report.results import FailedTrial, Results, collect
from tgsent.runs.manifest import Article

LABELS = ["x", "y"]


def answers(right: int, n: int = 40, trial: int = 1) -> list[Prediction]:
    """n texts of both labels by turns, the first ones answered rightly."""
    truth = [LABELS[i % 2] for i in range(n)]
    said = [t if i < right else LABELS[LABELS.index(t) - 1] for i, t in enumerate(truth)]
    pairs = enumerate(zip(truth, said, strict=True))
    return [Prediction(f"text {trial} {i}", t, s, s) for i, (t, s) in pairs]


def result(scores: dict[str, dict[int, int]], **more: Any) -> Results:
    """Collect models that have so many of 40 texts right in each trial."""
    predictions = {(m, k): answers(n, trial=k) for m, own in scores.items() for k, n in own.items()}
    trials = {
        m: {
            k: metrics_of(macro_f1=n / 40, n_test=40, signature=f"model:{m}", trial=k)
            for k, n in own.items()
        }
        for m, own in scores.items()
    }
    failed = {"gpt2": {3: "no luck"}}
    return collect("mine", trials, failed, predictions, manifest_of(**more))


def test_every_model_has_a_row_with_mean_deviation_and_intervals() -> None:
    found = result({"gpt2": {1: 30, 2: 34}, "t5": {}})
    gpt2, t5 = found.models
    assert gpt2.macro_f1.mean == pytest.approx(0.8)
    assert gpt2.macro_f1.ci95[0] < 0.75 < 0.85 < gpt2.macro_f1.ci95[1]
    low, high = gpt2.macro_f1.bootstrap95
    assert 0.65 < low < 0.75 < 0.85 < high < 0.95
    (first, second) = gpt2.trials_bootstrap95
    assert first[0] < 0.75 < first[1] < second[1]
    assert (t5.macro_f1, t5.trials_bootstrap95) == (Summary(), ())
    assert gpt2.failed == (FailedTrial(3, "no luck"),)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (written["schema_version"], written["name"]) == (1, "mine")
    assert written["models"][1]["macro_f1"] == {
        "mean": None, "std": None, "ci95": None, "bootstrap95": None, "trials_bootstrap95": []
    }  # fmt: skip
    assert written["models"][0]["failed"] == [{"trial": 3, "reason": "no luck"}]


def test_with_more_test_texts_both_scores_are_shown_and_all_compared() -> None:
    predictions = {("gpt2", 1): answers(30), ("t5", 1): answers(20)}
    trials = {
        m: {1: metrics_of(macro_f1=1.0, n_test=20, all=Scores(40, n / 40, 0.5, {}, {}, 0))}
        for m, n in (("gpt2", 30), ("t5", 20))
    }  # fmt: skip
    found = collect("mine", trials, {}, predictions, manifest_of())
    gpt2 = found.models[0]
    assert (gpt2.macro_f1.mean, gpt2.macro_f1.bootstrap95) == (
        1.0,
        pytest.approx([1.0, 1.0]),
    )
    assert gpt2.macro_f1_all.mean == 0.75
    assert gpt2.macro_f1_all.bootstrap95[0] < 0.7
    (comparison,) = found.comparisons
    assert (comparison.n, comparison.difference) == (40, 0.25)
    assert "gpt2 has the highest mean macro-F1, 0.750" in found.verdict[0]


def test_published_numbers_are_passed_on() -> None:
    assert "article" not in result({"gpt2": {1: 30}}).to_json()
    article = Article({"gpt2": 0.8}, sample_size=100, trials=3)
    assert result({"gpt2": {1: 30}}, article=article).to_json()["article"] == asdict(article)


@pytest.mark.parametrize(
    ("scores", "second"),
    [
        ({"gpt2": {1: 30}}, "There is no other model to compare it with."),
        ({"gpt2": {1: 30}, "t5": {1: 29}},
         "It cannot be told apart from t5 on these test texts."),
        ({"t5": {1: 10}, "gpt2": {1: 39}}, "It is better than t5 by more than chance."),
        ({"a": {1: 10}, "gpt2": {1: 39}, "b": {1: 38}, "c": {1: 37}},
         "It is better than a by more than chance, but cannot be told apart from b and c on these"
         " test texts."),
    ],
)  # fmt: skip
def test_the_verdict(scores: dict[str, dict[int, int]], second: str) -> None:
    first, *rest = result(scores).verdict
    assert first.startswith("gpt2 has the highest mean macro-F1, 0.")
    assert "over 1 trial (95 % 0." in first
    assert rest == [second]


def test_the_verdict_of_nothing() -> None:
    assert result({"gpt2": {}}).verdict == ("No trial is finished.",)


def test_every_pair_is_compared() -> None:
    found = result({"a": {1: 10}, "b": {1: 39}, "c": {1: 38}})
    assert [(c.first, c.second, c.is_real) for c in found.comparisons] == [
        ("a", "b", True), ("a", "c", True), ("b", "c", False)
    ]  # fmt: skip
    assert all(c.sentence for c in found.comparisons)


def test_models_without_all_trials_are_judged_by_those_that_all_have() -> None:
    found = result({"a": {1: 32}, "b": {1: 39, 2: 20}})
    assert found.verdict == (
        "b has the highest mean macro-F1, 0.975 over 1 trial, those that all models have.",
        "It is better than a by more than chance.",
    )
    assert result({"a": {1: 32}, "b": {2: 20}}).verdict == (
        "The models have no trial in common, so that their means cannot be compared.",
    )
    # the best of what all have may lose elsewhere
    found = result({"a": {1: 40, 2: 3}, "b": {1: 39, 2: 40}, "c": {1: 10}})
    assert found.verdict[0].startswith("a has the highest mean macro-F1, 1.000 over 1 trial,")
    assert found.verdict[1] == (
        "It is better than c by more than chance, but is worse than b by more than chance on the"
        " trials that both have."
    )


def test_nothing_is_said_of_chance_while_a_run_goes_on() -> None:
    trials = {"a": {1: metrics_of(n_test=40)}, "b": {}}
    found = collect("mine", trials, {}, {}, manifest_of())
    assert found.verdict == ("The run goes on: 1 trials are finished.",)
    assert found.comparisons == ()
    assert found.models[0].macro_f1.mean == 0.5
    assert found.models[0].macro_f1.bootstrap95 is None
