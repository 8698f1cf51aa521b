import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgsent.errors import StoppedError
from tgsent.modeling import loading
from tgsent.training import adapters, interrupts, loop
from tgsent.training.checkpoint import Checkpoints, Position, TrainState
from tgsent.training.recipe import resolve
from tiny_models import FAMILIES, Silent, encode, examples, set_dropout, tiny_spec

IDENTITY = {"fingerprint": "abc", "split_sha256": "def"}


class Trial:
    """A small training with dropout that can be stopped after any step."""

    def __init__(self, model: str, **training: Any) -> None:
        spec = tiny_spec(model, training={"epochs": 2, "batch_size": 8, **training})
        self.training = spec.training
        torch.manual_seed(7)
        self.loaded = loading.load(spec, examples(24))
        set_dropout(self.loaded.model, 0.1)
        adapters.prepare(self.loaded.model, spec.training)
        self.examples = encode(self.loaded, spec, examples(24))
        self.progress = Silent()

    def train(self, folder: Path | None, *, minutes: float = 0.0) -> Position:
        """Train, from the checkpoints in `folder` where it is given."""
        torch.manual_seed(1)
        recipe = resolve(self.training, self.loaded.family, 1, len(self.examples))
        return loop.train(
            self.loaded,
            self.examples,
            recipe,
            seed=3,
            accelerator=loop.make_accelerator(self.training),
            progress=self.progress,
            title="a trial",
            checkpoints=Checkpoints(folder, IDENTITY, minutes * 60) if folder else None,
        )

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.loaded.model.named_parameters()}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal during a step of the next training."""
    original, left = loop.take_step, [step]

    def counted(*args: Any) -> float:
        left[0] -= 1
        interrupts._state.requested = left[0] == 0
        return original(*args)

    monkeypatch.setattr(interrupts._state, "requested", False)
    monkeypatch.setattr(loop, "take_step", counted)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("step", range(1, 7))
def test_a_training_that_was_stopped_ends_like_one_that_was_not(
    model: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trial(model)
    plain = whole.train(None)
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        with pytest.raises(StoppedError, match=f"a trial after step {step} of 6; run the same"):
            Trial(model).train(tmp_path, minutes=60)
    resumed = Trial(model)
    trained = resumed.train(tmp_path)
    assert resumed.progress.lines[0] == f"a trial: resumes after step {step} of 6"
    assert (trained.log, trained.step) == (plain.log, 6)
    assert all(torch.equal(resumed.weights[name], p) for name, p in whole.weights.items())


def test_the_generator_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> float:
        return float(torch.rand(()))

    Trial("gpt2").train(None)
    expected = draw()
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(StoppedError):
            Trial("gpt2").train(tmp_path)
    Trial("gpt2").train(tmp_path)
    assert draw() == expected


@pytest.mark.parametrize(
    "training", [{"lora": {"r": 2}}, {"freeze_embeddings": True}, {"gradient_accumulation": 2}]
)
def test_what_is_not_trained_is_not_written(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trial("gpt2", **training)
    whole.train(None)
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(StoppedError):
            Trial("gpt2", **training).train(tmp_path)
    written = load_file(max(tmp_path.iterdir()))
    trained = {f"model.{n}" for n, p in whole.loaded.model.named_parameters() if p.requires_grad}
    assert {name for name in written if name.startswith("model.")} == trained
    resumed = Trial("gpt2", **training)
    resumed.train(tmp_path)
    assert all(torch.equal(resumed.weights[name], p) for name, p in whole.weights.items())


def test_a_finished_training_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Trial("gpt2")
    trained = first.train(tmp_path, minutes=60)
    steps: list[int] = []
    monkeypatch.setattr(loop, "take_step", steps.append)
    again = Trial("gpt2")
    assert again.train(tmp_path) == trained
    assert not steps
    assert all(torch.equal(again.weights[name], p) for name, p in first.weights.items())


def test_a_checkpoint_at_every_epochs_end_and_two_at_most(tmp_path: Path) -> None:
    Trial("gpt2", epochs=3).train(tmp_path, minutes=60)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000000006.safetensors", "step-000000009.safetensors"]


def test_checkpoints_come_as_often_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    original = Checkpoints.save

    def save(self: Checkpoints, state: TrainState) -> None:
        saved.append(state.position.step)
        original(self, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    Trial("gpt2").train(tmp_path, minutes=60)
    assert saved == [3, 6]
    saved.clear()
    Trial("gpt2").train(tmp_path / "often", minutes=0)
    assert saved == [1, 2, 3, 4, 5, 6]
    kept = sorted(path.name for path in (tmp_path / "often").iterdir())
    assert kept == ["step-000000005.safetensors", "step-000000006.safetensors"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "junk":
        path.write_bytes(b"junk" * 100)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no metadata":
        save_file(load_file(path), path)
    elif how == "another":
        about = {"format": "1", "identity": json.dumps({**IDENTITY, "fingerprint": "x"})}
        save_file(load_file(path), path, about)
    elif how == "future":
        save_file(load_file(path), path, {"format": "2", "identity": json.dumps(IDENTITY)})


@pytest.mark.parametrize("how", ["cut", "junk", "empty", "no metadata", "another", "future"])
def test_a_checkpoint_that_cannot_be_used_gives_way_to_the_one_before(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trial("gpt2")
    whole.train(None)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(StoppedError):
            Trial("gpt2").train(tmp_path)
    newest = max(tmp_path.iterdir())
    damage(newest, how)
    resumed = Trial("gpt2")
    resumed.train(tmp_path)
    told, going_on = resumed.progress.lines[:2]
    assert told.startswith(f"{newest}: this checkpoint cannot be used: ")
    assert going_on == "a trial: resumes after step 4 of 6"
    assert all(torch.equal(resumed.weights[name], p) for name, p in whole.weights.items())


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_put_back(
    tmp_path: Path,
) -> None:
    Trial("gpt2", freeze_embeddings=True).train(tmp_path)
    other = Trial("gpt2")
    other.train(tmp_path)
    assert "this checkpoint cannot be used: " in other.progress.lines[0]
    whole = Trial("gpt2")
    whole.train(None)
    assert all(torch.equal(other.weights[name], p) for name, p in whole.weights.items())


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-000000001.safetensors.tmp").write_text("half")
    Trial("gpt2").train(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_signal_in_the_last_checkpoint_stops_before_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Checkpoints.save

    def save(self: Checkpoints, state: TrainState) -> None:
        original(self, state)
        interrupts._state.requested = state.position.step == 6

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(interrupts._state, "requested", False)
    with pytest.raises(StoppedError, match="after step 6 of 6"):
        Trial("gpt2").train(tmp_path, minutes=60)
