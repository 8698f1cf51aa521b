"""Weights are part of the experiment: hashed, remembered, and not exchanged within a run folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tgsent.backends.native import checkpoints
from tgsent.config import RunConfig, TrialSpec, load
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.errors import RunFolderError, UnavailableError
from tgsent.experiment import execute, predict
from tgsent.experiment.execute import RunContext
from tgsent.modeling import hub, loading
from tgsent.progress import Quiet
from tgsent.runs import stored
from tgsent.training.checkpoint import Checkpoints
from tiny_models import Silent, examples, tiny_spec


def save_model(folder: Path, seed: int = 1) -> None:
    """Save a tiny GPT-2 whose weights are those of the seed."""
    import torch

    torch.manual_seed(seed)
    loaded = loading.load(tiny_spec("gpt2"), examples(40))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    save_model(folder)
    return folder


def config_of(model: str, tmp_path: Path, *overrides: str, trials: int = 1) -> RunConfig:
    return load(
        "smoke",
        models=[model],
        trials=trials,
        output_dir=str(tmp_path / "runs"),
        overrides=[
            "data.sample_size=60", "data.test_fraction=0.2", "training.init=pretrained",
            "training.epochs=1", "training.max_tokens=64", "training.device=cpu",
            "training.precision=fp32", *overrides,
        ],
    )  # fmt: skip


def run(config: RunConfig, *, fresh: bool = False, only: Sequence[str] = ()) -> list[str]:
    """Run it; give what was told."""
    dataset = load_dataset(config.data)
    progress = Silent()
    context = RunContext(progress=progress, fresh=fresh, only=only)
    execute.run(config, dataset, TrialSplits(dataset, config), context)
    return progress.lines


def metrics_of(config: RunConfig, name: str = "mine", trial: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (config.folder / name / f"trial-{trial}/metrics.json").read_bytes()
    )
    return found


def signed(spec: TrialSpec) -> str:
    return hub.with_hashes([spec], Quiet())[0].weights


def pretrained(model: Path | str) -> TrialSpec:
    return tiny_spec(str(model), training={"init": "pretrained"})


# -------------------------------------------------------------------------------------- the hash


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_every_file_that_a_score_depends_on_counts(name: str, model: Path) -> None:
    before = signed(pretrained(model))
    with (model / name).open("ab") as opened:
        opened.write(b" ")
    assert signed(pretrained(model)) not in {before, ""}


def test_a_readme_does_not_count(model: Path) -> None:
    before = signed(pretrained(model))
    (model / "README.md").write_text("# Mine\n")
    assert signed(pretrained(model)) == before


def test_every_shard_counts(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    (model / "model.safetensors").unlink()
    shards = {f"model-0000{k}-of-00002.safetensors": names[k - 1 :: 2] for k in (1, 2)}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, model / shard, {"format": "pt"})
    where = {name: shard for shard, own in shards.items() for name in own}
    index = {"metadata": {}, "weight_map": where}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    before = signed(pretrained(model))
    assert len(before) == 64
    tensors[names[1]] += 1
    save_file({n: tensors[n] for n in names[1::2]}, model / [*shards][1], {"format": "pt"})
    assert signed(pretrained(model)) not in {before, ""}


def test_a_gguf_file_counts(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tiny_gguf import write_gguf

    write_gguf(tmp_path / "a.gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    assert signed(pretrained(tmp_path / "a.gguf")) == hashlib.sha256(content).hexdigest()


def test_what_starts_from_no_local_weights_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    specs = [
        pretrained("gpt2"),
        pretrained("someone/model@main"),
        pretrained("majority"),
        pretrained(tmp_path / "nowhere"),
        tiny_spec(str(model), training={"init": "random"}),
        tiny_spec(str(model)),
    ]
    found = hub.with_hashes(specs, Quiet())
    assert found == specs
    assert [spec.fingerprint for spec in found] == [spec.fingerprint for spec in specs]


def test_fingerprints_without_weights_are_those_of_earlier_versions() -> None:
    spec = load("smoke", models=["gpt2"]).trial_specs(("a", "b"))[0]
    assert spec.fingerprint == FINGERPRINT
    signed = spec.with_weights("a" * 64)
    assert signed.fingerprint != FINGERPRINT
    assert signed.with_weights("").fingerprint == FINGERPRINT


FINGERPRINT = "a88cb35c4ac645b1a386195a1440dd3b76a75fe90d36d1537b6166336ab3974f"


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return hashed


def weights_of(hashed: list[str]) -> list[str]:
    return [name for name in hashed if name.endswith(".safetensors")]


def test_a_file_is_hashed_once_and_again_when_it_changed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, file = count_hashing(monkeypatch), model / "model.safetensors"
    first = signed(pretrained(model))
    assert signed(pretrained(model)) == first
    assert len(weights_of(hashed)) == 1
    about = file.stat()
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert signed(pretrained(model)) == first
    assert len(weights_of(hashed)) == 2
    about = file.stat()
    with file.open("ab") as opened:
        opened.write(b" ")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert signed(pretrained(model)) != first
    assert len(weights_of(hashed)) == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 7}', "\x00"])
def test_a_damaged_entry_of_the_cache_is_not_believed(
    content: str, model: Path, tmp_path: Path
) -> None:
    first = signed(pretrained(model))
    entry, *_ = (tmp_path / "cache/weights").iterdir()
    entry.write_text(content)
    assert signed(pretrained(model)) == first


def test_a_cache_that_cannot_be_written_only_costs_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TGSENT_CACHE", str(tmp_path / "file/cache"))
    assert len(signed(pretrained(model))) == 64


# ---------------------------------------------------------------------------------- run folders


def test_a_run_remembers_its_weights_and_goes_on_with_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = count_hashing(monkeypatch)
    config = config_of(str(model), tmp_path, "output.save_model=first")
    run(config)
    sha256 = signed(pretrained(model))
    metrics = metrics_of(config)
    assert metrics["weights_sha256"] == sha256
    assert f"|weights:{sha256[:12]}|" in metrics["signature"]
    manifest = json.loads((config.folder / "manifest.json").read_bytes())
    assert manifest["models"][0]["weights_sha256"] == sha256
    assert run(config_of(str(model), tmp_path, "output.save_model=first"))[0] == (
        "already finished: 1 of 1 trials"
    )
    assert len(weights_of(hashed)) == 1
    predict.load(stored.read(config.folder), None, None)
    assert len(weights_of(hashed)) == 1


def test_other_weights_are_refused_and_a_fresh_start_signs_them(
    model: Path, tmp_path: Path
) -> None:
    config = config_of(str(model), tmp_path)
    run(config)
    before = metrics_of(config)
    save_model(model, seed=2)
    with pytest.raises(RunFolderError) as caught:
        run(config)
    sha256 = signed(pretrained(model))
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"{config.folder}: holds results of mine trained from other weights: their SHA-256 was"
        f" {before['weights_sha256'][:12]}... and is now {sha256[:12]}..."
    )
    assert lines[1].startswith("--fresh moves them aside; --set name=NAME or --output DIR")
    assert metrics_of(config) == before
    run(config, fresh=True)
    after = metrics_of(config)
    assert f"|weights:{sha256[:12]}|" in after["signature"]
    assert after["signature"] != before["signature"]
    assert after["fingerprint"] != before["fingerprint"]


def test_other_weights_are_refused_for_single_trials_too(model: Path, tmp_path: Path) -> None:
    run(config_of(str(model), tmp_path, trials=2), only=["mine:1"])
    save_model(model, seed=2)
    with pytest.raises(RunFolderError, match="other weights"):
        run(config_of(str(model), tmp_path, trials=2), only=["mine:2"])


def make_old(config: RunConfig) -> str:
    """Make a run folder as earlier versions wrote it; give its metrics as they are then."""
    spec = config.trial_specs(load_dataset(config.data).labels)[0]
    path = config.folder / "mine/trial-1/metrics.json"
    metrics = json.loads(path.read_bytes())
    del metrics["weights_sha256"]
    metrics["fingerprint"] = spec.fingerprint
    path.write_text(json.dumps(metrics))
    manifest = json.loads((config.folder / "manifest.json").read_bytes())
    for entry in manifest["models"]:
        del entry["weights_sha256"]
    (config.folder / "manifest.json").write_text(json.dumps(manifest))
    return path.read_text()


def test_trials_of_earlier_versions_are_kept(model: Path, tmp_path: Path) -> None:
    config = config_of(str(model), tmp_path, "output.save_model=first", trials=2)
    run(config_of(str(model), tmp_path, "output.save_model=first"))
    old = make_old(config)
    assert stored.read(config.folder).trials["mine"][1].weights_sha256 is None
    predict.load(stored.read(config.folder), None, None)
    assert run(config)[0] == "already finished: 1 of 2 trials"
    assert (config.folder / "mine/trial-1/metrics.json").read_text() == old
    assert metrics_of(config, trial=2)["weights_sha256"]


def test_what_an_old_folder_went_on_with_is_remembered(model: Path, tmp_path: Path) -> None:
    config = config_of(str(model), tmp_path)
    run(config)
    make_old(config)
    run(config)
    save_model(model, seed=2)
    with pytest.raises(RunFolderError, match="other weights"):
        run(config)


def test_a_finished_run_needs_its_model_no_more(model: Path, tmp_path: Path) -> None:
    config = config_of(str(model), tmp_path)
    run(config)
    before = metrics_of(config)
    model.rename(tmp_path / "elsewhere")
    assert run(config)[0] == "already finished: 1 of 1 trials"
    assert metrics_of(config) == before
    manifest = json.loads((config.folder / "manifest.json").read_bytes())
    assert manifest["models"][0]["weights_sha256"] == before["weights_sha256"]
    with pytest.raises(UnavailableError, match="no such folder"):
        run(config, fresh=True)


def test_a_checkpoint_of_other_weights_is_another(model: Path, tmp_path: Path) -> None:
    config = config_of(str(model), tmp_path)
    dataset = load_dataset(config.data)
    (split,) = TrialSplits(dataset, config)

    def identity() -> dict[str, str]:
        (spec,) = hub.with_hashes(config.trial_specs(dataset.labels), Quiet())
        found = checkpoints(spec, split, None, tmp_path)
        assert isinstance(found, Checkpoints)
        return found.identity

    before = identity()
    assert identity() == before
    save_model(model, seed=2)
    assert identity() != before
