from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import run_folders
from tgsent.config import LoraConfig
from tgsent.errors import RunFolderError
from tgsent.report import pages, results
from tgsent.runs import stored


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.make(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "runs/default")


def test_what_is_read_gives_the_result_of_the_run(run: Path) -> None:
    found = stored.read(run)
    rebuilt = json.loads(json.dumps(results.of_runs(found).to_json()))
    assert rebuilt == json.loads((run / "results.json").read_bytes())
    assert list(found.trials) == ["majority", "tfidf"]
    assert found.predictions["tfidf", 2][0].text.startswith("a ")
    assert found.logs["tfidf", 1] == []


def test_a_run_that_is_going_on_can_be_read(copy: Path) -> None:
    (copy / "results.json").unlink()
    (copy / "tfidf/trial-2/metrics.json").unlink()
    (copy / "tfidf/trial-2/predictions.csv").unlink()
    found = stored.read(copy)
    assert {name: list(own) for name, own in found.trials.items()} == {
        "majority": [1, 2], "tfidf": [1]
    }  # fmt: skip
    assert len(results.of_runs(found).comparisons) == 1


def test_models_that_the_last_run_did_not_name_are_shown_after_its_own(
    run: Path, copy: Path
) -> None:
    texts = run.parents[1] / "texts.csv"
    run_folders.make(copy.parents[1], models=("gpt2",), trials=1, texts=texts)
    found = stored.read(copy)
    assert {name: list(own) for name, own in found.trials.items()} == {
        "gpt2": [1], "majority": [1, 2], "tfidf": [1, 2]
    }  # fmt: skip
    assert [split.trial for split in found.manifest.splits] == [1, 2]
    assert list(found.specs) == ["gpt2"]
    assert found.logs["gpt2", 1][0]["step"] == 1


def test_trials_of_other_texts_are_left_out(copy: Path) -> None:
    path = copy / "tfidf/trial-2/metrics.json"
    path.write_text(path.read_text().replace('"split_sha256": "', '"split_sha256": "x'))
    found = stored.read(copy)
    assert list(found.trials["tfidf"]) == [1]
    assert found.left_out == ("tfidf trial 2 (tested on other texts)",)


def test_reasons_of_failures_are_kept_until_the_trial_is_finished(copy: Path) -> None:
    result = json.loads((copy / "results.json").read_bytes())
    result["models"][1]["failed"] = [{"trial": k, "reason": "no luck"} for k in (2, 3)]
    (copy / "results.json").write_text(json.dumps(result))
    assert stored.read(copy).failed == {"tfidf": {3: "no luck"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "is not a run folder: it has no manifest.json"),
        ("manifest.json", "{", "manifest.json: is damaged, or was not written"),
        ("manifest.json", "[]", "manifest.json: is damaged, or was not written"),
        ("config.yaml", None, "is not a run folder: it has no config.yaml"),
        ("manifest.json", "{}", "manifest.json: is damaged, or was not written"),
        (
            "manifest.json",
            '{"data": {}}',
            "manifest.json: is damaged, or was not written",
        ),
    ],
)
def test_what_is_no_run_folder_is_refused(
    name: str, content: str | None, message: str, copy: Path
) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    with pytest.raises(RunFolderError, match=message) as caught:
        stored.read(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_runs_on_the_same_texts_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    other = run_folders.make(tmp_path, models=("tfidf", "gpt2"), overrides=["name=other"], trials=1)
    found = stored.combine([stored.read(run), stored.read(other)])
    assert list(found.trials) == ["majority", "tfidf (default)", "tfidf (other)", "gpt2"]
    assert {m.model for own in found.trials.values() for m in own.values()} == set(found.trials)
    result = results.of_runs(found)
    assert result.name == "default + other"
    assert [one.path for one in result.manifest.combined] == [str(run), str(other)]
    assert pages.html(result, found).count("command of ") == 2
    assert len(result.comparisons) == 6
    assert found.specs["gpt2"].model == "gpt2"
    with pytest.raises(RunFolderError, match="the same run folder is given twice"):
        stored.combine([stored.read(run), stored.read(run)])
    again = run_folders.make(tmp_path / "again", models=("tfidf",), trials=1)
    assert f"tfidf ({run})" in stored.combine([stored.read(run), stored.read(again)]).trials


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.sample_seed=2", ""),
        ("data.test_fraction=0.3", "data.test_fraction is 0.25 and 0.3"),
        ("seed=5", "seed is 1 and 5"),
        ("data.extra_test_size=8", "data.extra_test_size is 0 and 8"),
        ("data.labels={'good <b>': x, 'bad | `x`': y}", "their labels are bad | `x`, good <b> and"),
    ],
)
def test_runs_on_other_texts_do_not(override: str, reason: str, run: Path, tmp_path: Path) -> None:
    more = [override, "data.sample_size=100"] if "extra" in override else [override]
    other = run_folders.make(tmp_path, models=("majority",), overrides=more)
    if not reason:  # without a sample its seed changes nothing
        stored.combine([stored.read(run), stored.read(other)])
        return
    with pytest.raises(RunFolderError, match="cannot be compared in one table") as caught:
        stored.combine([stored.read(run), stored.read(other)])
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a file."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def test_what_is_not_sound_is_left_out_and_the_rest_is_shown(copy: Path) -> None:
    shutil.copytree(copy / "tfidf", copy / "old")
    trial = copy / "tfidf/trial-1"
    (trial / "metrics.json").write_text("[]")
    (copy / "tfidf/trial-2/predictions.csv").write_text("")
    found = stored.read(copy)
    assert list(found.trials["majority"]) == [1, 2]
    assert found.trials["tfidf"] == {}
    assert [one.split(" (")[0] for one in found.left_out] == [
        "old trial 1", "old trial 2", "tfidf trial 1", "tfidf trial 2"
    ]  # fmt: skip
    assert "old trial 1 (metrics.json is that of tfidf trial 1)" in found.left_out
    assert results.of_runs(found).models[1].macro_f1.mean is None


def test_other_extra_texts_are_other_texts(copy: Path) -> None:
    changed(copy / "tfidf/trial-1/metrics.json", lambda m: m.update(extra_sha256="x"))
    assert stored.read(copy).left_out == ("tfidf trial 1 (tested on other texts)",)


def test_folders_of_an_earlier_version_can_be_read(copy: Path) -> None:
    newer = ("weights_sha256", "label_prior", "warmup_steps", "max_grad_norm", "padding")
    for path in copy.rglob("metrics.json"):
        changed(path, lambda m: [m.pop(key, None) for key in newer])
    changed(copy / "manifest.json", lambda m: [one.pop("weights_sha256") for one in m["models"]])
    found = stored.read(copy)
    assert found.left_out == ()
    result = results.of_runs(found)
    assert "tfidf has the highest mean" in result.verdict[0]
    assert pages.html(result, found)
    assert pages.markdown_page(result, found)


def test_configs_of_an_earlier_version_mean_what_they_meant(copy: Path) -> None:
    values = yaml.safe_load((copy / "config.yaml").read_bytes())
    del values["prompt"]["words"], values["evaluation"]["calibration"]
    values["evaluation"]["decoding"] = "score"
    values["training"] |= {"epochs": 0, "lora": {"r": 4, "alpha": 32, "dropout": 0.1}}
    values["models"] = ["gpt2"]
    (copy / "config.yaml").write_text(yaml.safe_dump(values))
    spec = stored.read(copy).specs["gpt2"]
    assert spec.calibration == "none"
    assert spec.training.lora == LoraConfig(r=4, alpha=32, dropout=0.1, target="attention")


def test_a_broken_neighbour_costs_no_result(copy: Path, run: Path) -> None:
    (copy / "tfidf/trial-1/metrics.json").write_text("{")
    texts = run.parents[1] / "texts.csv"
    again = run_folders.make(copy.parents[1], models=("majority",), texts=texts)
    result = json.loads((again / "results.json").read_bytes())
    assert [len(model["trials"]) for model in result["models"]] == [2]
    assert "majority" in (again / "report.html").read_text()


def test_a_model_that_only_failed_is_shown_beside_other_runs(copy: Path, tmp_path: Path) -> None:
    row = {"model": "gone", "failed": [{"trial": 1, "reason": "no luck"}]}
    changed(copy / "results.json", lambda m: m["models"].append(row))
    other = run_folders.make(tmp_path / "x", models=("gpt2",), trials=1, overrides=["name=x"])
    found = stored.combine([stored.read(copy), stored.read(other)])
    assert found.failed["gone"] == {1: "no luck"}
    assert results.of_runs(found).models[2].failed == (results.FailedTrial(1, "no luck"),)


def test_answers_that_are_not_those_of_the_scores_are_left_out(copy: Path) -> None:
    path = copy / "tfidf/trial-1/predictions.csv"
    (copy / "majority/trial-1/predictions.csv").replace(path)
    found = stored.read(copy)
    assert "tfidf trial 1 (predictions.csv and metrics.json disagree)" in found.left_out
