"""Which run folders hold results of the same experiment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from run_folders import manifest_of
from tgsent.config import RunConfig, load
from tgsent.errors import RunFolderError
from tgsent.files import to_json
from tgsent.runs.checks import check_same_data, check_same_settings
from tgsent.runs.folder import RunFolder


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
        (["models=[./gpt2]"], "the settings of model gpt2 differ"),
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
    with pytest.raises(RunFolderError, match="not the config of a run"):
        check_same_settings(folder.path, config_of())


def test_results_of_other_data_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    check_same_data(folder.path, "a" * 64)
    plain = manifest_of()
    written = replace(plain, data=replace(plain.data, sha256="b" * 64))
    folder.write("manifest.json", to_json(written.to_json()))
    check_same_data(folder.path, "a" * 64)  # nothing is finished, nothing is lost
    folder.write("gpt2/trial-1/metrics.json", "{}")
    check_same_data(folder.path, "b" * 64)
    with pytest.raises(RunFolderError, match=r"was bbbbbbbbbbbb\.\.\. and is now aaaaaaaaaaaa"):
        check_same_data(folder.path, "a" * 64)
    folder.write("manifest.json", "{")
    with pytest.raises(
        RunFolderError, match=r"manifest\.json: is damaged, or was not written by tgsent; delete it"
    ):
        check_same_data(folder.path, "b" * 64)
