"""Sweeps: what is chosen, by what, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Cli
from tgsent.backends import TrialFolders
from tgsent.backends.baselines import Majority
from tgsent.backends.native import Native
from tgsent.config import RunConfig, TrialSpec, load
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits, ValidationSplits
from tgsent.errors import (
    ConfigError,
    DataError,
    DivergedError,
    RunFolderError,
    TgsentError,
    UnavailableError,
)
from tgsent.evaluation import metrics
from tgsent.experiment import execute, local_engine, sweep, trial
from tgsent.experiment.execute import RunContext
from tgsent.records import Example, Outcome, Prediction, Progress, Split

LABELS = ("negative", "positive")
Answer = Callable[[TrialSpec, Example], str]


def config(place: Path, keys: str, *more: str, models: str = "gpt2") -> RunConfig:
    return load(
        "smoke",
        models=models.split(),
        output_dir=str(place),
        overrides=[f"sweep.keys={keys}", "data.sample_size=800", "data.test_fraction=0.1", *more],
    )


def carried_out(settings: RunConfig, **more: Any) -> dict[str, Any]:
    dataset = load_dataset(settings.data)
    found = sweep.run(settings, dataset, TrialSplits(dataset, settings), RunContext(**more))
    return json.loads(json.dumps(found.to_json()))


class Pretended:
    """A backend that answers as it is told, takes no time, and remembers what was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.done: list[tuple[str, int]] = []
        self.in_our_loop = True
        self.settings = Native().settings

    def run(self, spec: TrialSpec, split: Split, progress: Progress, folders: object) -> Outcome:
        self.done.append((spec.name, spec.trial))
        predictions = tuple(
            Prediction(one.text, one.label, said := self.answer(spec, one), f" {said}")
            for one in split.tested
        )
        if any(p.predicted == "diverged" for p in predictions):
            raise DivergedError("the loss is nan")
        # everything but the answers is that of a trial that takes no time
        outcome = Majority().run(spec, split, progress, TrialFolders())
        return dataclasses.replace(outcome, predictions=predictions)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], Pretended]:
    def begin(answer: Answer) -> Pretended:
        found = Pretended(answer)
        for module in (local_engine, trial):
            monkeypatch.setattr(module, "backend_of", lambda _: found)
        return found

    return begin


def right(share: float, example: Example) -> str:
    """Answer rightly for this share of the texts, always the same ones."""
    lucky = random.Random(example.text).random() < share
    return example.label if lucky else LABELS[example.label == LABELS[0]]


# ----------------------------------------------------------------------------------- what is chosen


def test_the_best_on_validation_texts_is_tested_and_all_is_told(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    by_rate = {1e-5: 0.6, 1e-4: 0.9, 1e-3: 0.7}
    done = pretend(lambda spec, one: right(by_rate[float(spec.training.learning_rate)], one)).done
    found = carried_out(config(tmp_path, "{training.learning_rate: [1.0e-5, 1.0e-4, 1.0e-3]}"))
    (told,) = found["manifest"]["sweep"]
    assert told["settings"] == {"training.learning_rate": 1e-4}
    assert (told["tried"], told["finalists"], told["winner"]) == (3, 3, "gpt2-002")
    assert [one["macro_f1"] for one in told["variants"]][1] == [told["macro_f1"]]
    assert done == [("gpt2-001", 1), ("gpt2-002", 1), ("gpt2-003", 1), ("gpt2", 1), ("gpt2", 2)]
    (row,) = found["models"]
    assert row["macro_f1"]["mean"] == pytest.approx(0.9, abs=0.1)
    report = (tmp_path / "smoke/report.md").read_text()
    assert "gpt2 is the best of 3 variants on" in report.replace("\\", "")
    assert "| `training.learning_rate`" not in report  # each value once: nothing to average
    assert "How the settings of gpt2 were chosen" in (tmp_path / "smoke/report.html").read_text()
    kept = load(str(tmp_path / "smoke/config.yaml"))
    assert kept.trial_specs(LABELS)[0].training.learning_rate == 1e-4
    assert kept.sweep is None


def test_a_variant_that_has_seen_the_test_texts_gains_nothing_by_it(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    """One variant knows every test text by heart and guesses at all others; it would win there."""
    settings = config(tmp_path, "{training.loss: [full, label]}")
    splits = TrialSplits(load_dataset(settings.data), settings)
    tested = {one.text for k in range(settings.trials) for one in splits[k].test}

    def answer(spec: TrialSpec, example: Example) -> str:
        if spec.training.loss == "full":
            return right(1.0 if example.text in tested else 0.5, example)
        return right(0.8, example)

    pretend(answer)
    found = carried_out(settings)
    (told,) = found["manifest"]["sweep"]
    assert told["settings"] == {"training.loss": "label"}
    assert found["models"][0]["macro_f1"]["mean"] == pytest.approx(0.8, abs=0.1)


def test_no_trial_tests_a_validation_text_and_rounds_share_them() -> None:
    settings = load(
        "smoke", overrides=["sweep.keys={training.epochs: [1, 2]}", "data.sample_size=400"]
    )
    assert settings.sweep is not None
    splits = TrialSplits(load_dataset(settings.data), settings)
    rounds = ValidationSplits(splits, LABELS, settings.sweep, [0.25, 0.5, 1])
    tested = {one.text for k in range(settings.trials) for one in splits[k].test}
    sizes = []
    for k in range(3):
        train, validation = (
            {one.text for one in part} for part in (rounds[k].train, rounds[k].test)
        )
        assert not validation & (train | tested)
        assert not train & tested
        assert rounds[k].test == rounds[0].test
        sizes.append(len(train))
    left = {one.text for one in splits[0].train} - tested
    assert sizes[2] + len(rounds[0].test) == len(left)
    assert sizes == pytest.approx([sizes[2] / 4, sizes[2] / 2, sizes[2]], abs=1)
    assert {one.text for one in rounds[0].train} < {one.text for one in rounds[2].train}


def test_too_many_trials_leave_no_text_to_choose_by() -> None:
    settings = load(
        "smoke",
        trials=60,
        overrides=["sweep.keys={training.epochs: [1]}", "data.sample_size=60"],
    )
    assert settings.sweep is not None
    splits = TrialSplits(load_dataset(settings.data), settings)
    with pytest.raises(DataError, match="texts that no trial tests"):
        ValidationSplits(splits, LABELS, settings.sweep, [1])


def test_hopeless_variants_are_stopped_early(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    by_epochs = dict(zip(range(1, 9), (0.2, 0.9, 0.4, 0.8, 0.3, 0.7, 0.1, 0.6), strict=True))
    pretended = pretend(lambda spec, one: right(by_epochs[spec.training.epochs], one))
    settings = config(tmp_path, "{training.epochs: {low: 1, high: 8}}", "sweep.halving=2")
    (told,) = carried_out(settings)["manifest"]["sweep"]
    assert told["winner"] == "gpt2-002"
    assert [len(one["macro_f1"]) for one in told["variants"]] == [1, 3, 1, 3, 1, 2, 1, 2]
    assert told["finalists"] == 2
    assert sum(name != "gpt2" for name, _ in pretended.done) == 8 + 4 + 2
    assert "`stopped`" in (tmp_path / "smoke/report.md").read_text()


def test_a_variant_that_fails_is_not_chosen_and_it_is_told_where_all_fail(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    pretend(lambda spec, one: "diverged" if spec.training.epochs == 1 else right(0.6, one))
    (told,) = carried_out(config(tmp_path / "a", "{training.epochs: [1, 2]}"))["manifest"]["sweep"]
    assert told["winner"] == "gpt2-002"
    assert told["variants"][0]["macro_f1"] == [None]
    pretend(lambda spec, one: "diverged")
    with pytest.raises(TgsentError, match="no variant could be trained"):
        carried_out(config(tmp_path / "b", "{training.epochs: [1, 2]}"))


def test_reference_rows_do_not_vary_and_each_model_has_its_own_winner(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    best = {"gpt2": "bad", "t5": "poor", "tfidf": "negative"}
    pretend(
        lambda spec, one: right(
            0.9 if best[spec.name.split("-")[0]] == spec.prompt.word("negative") else 0.6, one
        )
    )
    words = "{prompt.words: [{negative: bad, positive: good}, {negative: poor, positive: rich}]}"
    found = carried_out(config(tmp_path, words, models="gpt2 tfidf t5"))
    chosen = {one["model"]: one["settings"]["prompt.words"] for one in found["manifest"]["sweep"]}
    assert {name: word["negative"] for name, word in chosen.items()} == {
        "gpt2": "bad",
        "t5": "poor",
    }
    assert [row["model"] for row in found["models"]] == ["gpt2", "tfidf", "t5"]


# --------------------------------------------------------------------------------- stopped, resumed


@pytest.mark.parametrize(
    "method", ["grid", "random, variants: 5", "tpe, variants: 5", "grid, halving: 2"]
)
def test_a_sweep_that_was_stopped_goes_on(
    method: str, tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    def stop_at_the_fourth(spec: TrialSpec, example: Example) -> str:
        if spec.name not in names:
            names.append(spec.name)
        if len(names) == 4:
            raise KeyboardInterrupt
        return right(0.5 + spec.training.epochs / 20, example)

    names: list[str] = []
    settings = load(
        "smoke", models=["gpt2"], output_dir=str(tmp_path),
        overrides=[
            f"sweep={{keys: {{training.epochs: {{low: 1, high: 5}}}}, method: {method}}}",
            "data.sample_size=400",
        ],
    )  # fmt: skip
    stopped = pretend(stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        carried_out(settings)
    again = pretend(lambda spec, one: right(0.5 + spec.training.epochs / 20, one))
    found = carried_out(settings)
    assert not {*stopped.done[:3]} & {*again.done}
    third = pretend(lambda spec, one: "diverged")
    assert carried_out(settings)["manifest"]["sweep"] == found["manifest"]["sweep"]
    assert third.done == []
    fresh = pretend(lambda spec, one: right(0.5 + spec.training.epochs / 20, one))
    assert carried_out(settings, fresh=True)["manifest"]["sweep"] == found["manifest"]["sweep"]
    assert len(fresh.done) > 5


def test_a_folder_that_would_refuse_the_winner_is_told_of_before_anything_is_trained(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    rates = "{training.learning_rate: [1.0e-4, 1.0e-3]}"
    pretend(lambda spec, one: right(0.8, one))
    first = carried_out(config(tmp_path, rates))
    later = pretend(lambda spec, one: right(0.8, one))
    for other, message in (
        (config(tmp_path, rates, "training.batch_size=3"), "holds results of other settings"),
        (config(tmp_path, rates, "trials=3"), "were chosen by other validation texts"),
        (config(tmp_path, rates, "sweep.seed=5"), "were chosen by other validation texts"),
    ):
        with pytest.raises(RunFolderError, match=message):
            carried_out(other)
    assert later.done == []
    # the winner may be run again as it is, and it is still said how it was chosen
    kept = load(str(tmp_path / "smoke/config.yaml"))
    dataset = load_dataset(kept.data)
    again = execute.run(kept, dataset, TrialSplits(dataset, kept))
    assert json.loads(json.dumps(again.manifest.to_json()["sweep"])) == first["manifest"]["sweep"]
    more = kept.model_copy(update={"trials": 3})
    with pytest.raises(RunFolderError, match="that trials 1 to 2 do not test"):
        execute.run(more, dataset, TrialSplits(dataset, more))


def test_optuna_may_ask_for_what_does_not_go_together(
    tmp_path: Path, pretend: Callable[[Answer], Pretended]
) -> None:
    pretend(lambda spec, one: right(0.9 if spec.training.loss_on_padding else 0.7, one))
    keys = "{training.loss: [label, full], training.loss_on_padding: [true, false]}"
    found = carried_out(config(tmp_path, keys, "sweep.method=tpe", "sweep.variants=12"))
    (told,) = found["manifest"]["sweep"]
    assert told["settings"] == {"training.loss": "full", "training.loss_on_padding": True}
    assert told["tried"] < 12


def test_without_optuna_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    settings = config(tmp_path, "{training.epochs: [1, 2]}", "sweep.method=tpe", "sweep.variants=2")
    with pytest.raises(UnavailableError, match=r"pip install 'tgsent\[tpe\]'"):
        carried_out(settings)


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("sweep_block", "message"),
    [
        ("{keys: {data.sample_size: [1, 2]}}", "`data.sample_size` cannot vary"),
        ("{keys: {training.epoch: [1, 2]}}", "did you mean `epochs`?"),
        ("{keys: {training.epochs: [1, two]}}", "must be a valid integer"),
        ("{keys: {prompt.input: ['no place']}}", "must contain {text} exactly once"),
        ("{keys: {training.weight_decay: {low: 0.1, high: 0.2}}}", "a grid takes a list"),
        ("{keys: {training.epochs: {low: 3, high: 1}}}", "must have low below high"),
        ("{keys: {training.epochs: []}}", "must name at least one"),
        ("{keys: {training.epochs: [1]}, method: random}", "`variants` goes with"),
        ("{keys: {training.epochs: [1]}, variants: 3}", "`variants` goes with"),
        ("{keys: {training.epochs: [1]}, method: tpe, variants: 3, halving: 2}", "`halving` goes"),
        ("{key: {}}", "unknown key; did you mean `keys`?"),
        ("{keys: {evaluation.batch_size: [1, 2]}}", "cannot vary"),
        ("{keys: {training.epochs: {low: 1, high: 20000}}}", "is too large; `method: random`"),
        ("{keys: {training.epochs: {low: 1, high: 2, step: 1}}}", "known keys: low, high, log"),
    ],
)
def test_a_mistake_in_a_sweep_is_found_before_anything_is_run(
    sweep_block: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load("smoke", overrides=[f"sweep={sweep_block}"])
    assert message in str(caught.value)
    assert "sweep" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ((), {"only": ["gpt2:1"]}, "--only: the trials of a sweep are known when it has ended"),
        (("models=[{model: gpt2, as: sweep}]",), {}, 'the name "sweep" is taken'),
        (
            ("models=[{model: t5, training: {backend: simplet5}}]",
             "sweep.keys={prompt.shots: [0, 2]}"),
            {},
            "must be 0 with `training.backend: simplet5`",
        ),
        (("prompt.words={a: b, c: d}",), {}, "prompt.words of gpt2-001: must name the labels"),
        (
            ("sweep.keys={training.loss_on_padding: [true], training.loss: [full, label]}",
             "training.loss=full"),
            {},
            "the variant training.loss_on_padding=true, training.loss='label'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(
    more: tuple[str, ...], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        carried_out(config(tmp_path, "{training.epochs: [1, 2]}", *more), **arguments)
    assert message in str(caught.value)


# ----------------------------------------------------------------------------------------- optimism


def test_the_optimism_is_that_of_the_best_of_equals() -> None:
    """Twelve variants that are right on 70 % of all texts: how far is the best above that?"""
    rng = np.random.default_rng(5)
    truth = ["negative", "positive"] * 200
    gaps, told = [], []
    for _ in range(40):
        answers, scores = {}, {}
        for name in map(str, range(12)):
            hits = rng.random(len(truth)) < 0.7
            said = [
                t if hit else LABELS[t == LABELS[0]] for t, hit in zip(truth, hits, strict=True)
            ]
            answers[name] = [
                (str(i), t, s) for i, (t, s) in enumerate(zip(truth, said, strict=True))
            ]
            predictions = [Prediction(*row, "") for row in answers[name]]
            scores[name] = metrics.score(predictions, LABELS).macro_f1
        gaps.append(max(scores.values()) - 0.7)
        told.append(sweep.optimism(answers, scores, LABELS))
    assert np.mean(told) == pytest.approx(np.mean(gaps), rel=0.35)
    assert sweep.optimism({"0": answers["0"]}, scores, LABELS) == 0.0


# ----------------------------------------------------------------------------------------- for real

REAL = """
name: NAME
models: [gpt2]
trials: 1
data: {path: sample, sample_size: 900}
training: {init: tiny, epochs: 4, device: cpu, precision: fp32}
sweep:
  keys:
    training.learning_rate: [1.0e-5, 1.0e-4, 2.0e-3]
    training.loss: [label, full]
"""


@pytest.mark.slow
def test_stopping_early_does_not_change_the_winner_on_the_sample(tmp_path: Path, cli: Cli) -> None:
    found = {}
    for name, more in (("whole", ""), ("halved", "  halving: 2\n")):
        (tmp_path / f"{name}.yaml").write_text(REAL.replace("NAME", name) + more)
        done = cli("run", "-c", f"{name}.yaml", "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        (found[name],) = json.loads(done.stdout)["manifest"]["sweep"]
    assert found["halved"]["settings"] == found["whole"]["settings"]
    assert found["whole"]["tried"] == found["halved"]["tried"] == 6
