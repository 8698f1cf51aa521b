from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_folders
from tgsent.config import TrainingConfig
from tgsent.errors import UnavailableError
from tgsent.training import trackers
from tgsent.training.recipe import check_installed
from tiny_models import tiny_spec


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard would draw."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    return found


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_tensorboard_is_told_what_the_log_holds(model: str, tmp_path: Path) -> None:
    folder = run_folders.make(
        tmp_path, models=(model,), trials=1, overrides=["training.report_to=[tensorboard]"]
    )
    trial = folder / model / "trial-1"
    log = [json.loads(line) for line in (trial / "log.jsonl").read_text().splitlines()]
    told = scalars(trial / "trackers")
    for key in ("loss", "learning_rate", "epoch"):
        expected = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in log]
        assert told[key] == expected
    metrics = json.loads((trial / "metrics.json").read_bytes())
    for key in ("macro_f1", "accuracy"):
        assert told[key] == [(metrics["steps"], pytest.approx(metrics[key], rel=1e-6))]
    (settings,) = trial.rglob("hparams.yml")
    assert "learning_rate: auto" in settings.read_text()


def test_trackers_change_no_result(tmp_path: Path) -> None:
    one, other = (
        run_folders.make(tmp_path / name, models=("gpt2",), trials=1, overrides=more)
        for name, more in (("a", []), ("b", ["training.report_to=[tensorboard]"]))
    )
    name = "gpt2/trial-1/predictions.csv"
    assert (one / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = (
        json.loads((folder / "gpt2/trial-1/metrics.json").read_bytes()) for folder in (one, other)
    )
    for key in ("fingerprint", "macro_f1"):
        assert ours[key] == theirs[key]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"pip install 'tgsent\[wandb,mlflow\]'"):
        check_installed(TrainingConfig(report_to=("wandb", "mlflow")))
    check_installed(TrainingConfig())


def test_what_trackers_print_is_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    class Talks:
        @property
        def trackers(self) -> list[Any]:
            return [self]

        def init_trackers(self, _project: str, config: dict[str, Any], init_kwargs: Any) -> None:
            assert config["model"] == "gpt2"
            assert all(isinstance(value, str | int | float) for value in config.values())
            assert init_kwargs["wandb"] == {"name": "gpt2 trial 1"}
            sys.stdout.write("* hello\n")

        def finish(self) -> None:
            sys.stdout.write("* bye\n")

    spec = tiny_spec(training={"report_to": ("wandb",)})
    with trackers.tracking(spec, Talks()):  # type: ignore[arg-type]  # as far as it is used
        pass
    assert capfd.readouterr() == ("", "* hello\n* bye\n")
