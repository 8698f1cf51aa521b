"""GGUF files as models: loaded, trained, saved as plain folders; and refused in words."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf")

import tiny_models
from conftest import Cli
from tgsent.errors import ConfigError, TgsentError, UnavailableError
from tgsent.modeling import gguf_files, hub, loading
from tgsent.modeling.hub import Snapshot
from tiny_gguf import END, tiny_llama, tokens, write_gguf
from tiny_models import Silent, tiny_spec

IDS = torch.tensor([[5, 60, 7, 258, 200]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a file of 8-bit weights, with nothing beside it."""
    path = tmp_path / "models/tiny.gguf"
    path.parent.mkdir()
    write_gguf(path)
    return path


def load(path: Path, init: str = "pretrained") -> loading.LoadedModel:
    torch.manual_seed(1)
    return loading.load(tiny_spec(str(path), training={"init": init}), ())


# -------------------------------------------------------------------------------------- loading


def test_a_file_is_unpacked_once_for_its_content(file: Path) -> None:
    progress = Silent()
    snapshot = hub.fetch(str(file), weights=True, progress=progress)
    assert snapshot == Snapshot(snapshot.folder, None)
    assert (snapshot.folder / "model.safetensors").is_file()
    assert len(progress.lines) == 1
    assert re.match(r"unpacking .*/tiny\.gguf \(.* kB\) into .*, once", progress.lines[0])
    assert hub.fetch(str(file), weights=True, progress=progress) == snapshot
    assert len(progress.lines) == 1
    write_gguf(file, quantised=False)
    assert hub.fetch(str(file), weights=True, progress=progress) != snapshot
    assert len(progress.lines) == 2
    assert not list(snapshot.folder.parent.glob("*.tmp"))


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exact.gguf"
    model = write_gguf(path, quantised=False)
    with torch.no_grad():
        got = load(path).model.eval()(IDS).logits[..., : len(tokens())]
        assert torch.equal(got, model(IDS).logits)


def test_quantised_weights_become_fp32(file: Path) -> None:
    loaded = load(file).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    model, name = tiny_llama(), "model.layers.1.mlp.up_proj.weight"
    got, exact = loaded.state_dict()[name], model.state_dict()[name]
    assert 0 < (got - exact).abs().max() < exact.abs().max() / 100


def test_the_head_stays_tied_and_the_tokenizer_is_the_files(file: Path) -> None:
    loaded = load(file)
    embeddings = loaded.model.get_input_embeddings().weight
    assert embeddings.data_ptr() == loaded.model.get_output_embeddings().weight.data_ptr()
    assert loaded.tokenizer.convert_ids_to_tokens(list(range(len(tokens())))) == tokens()
    assert loaded.tokenizer.eos_token == END
    assert loaded.decode(loaded.tokenizer(" pos\n neg \u2764").input_ids) == " pos\n neg \u2764"


def test_random_weights_with_the_files_architecture_and_tokenizer(file: Path) -> None:
    loaded, pretrained = load(file, "random"), load(file)
    assert loaded.tokenizer.get_vocab() == pretrained.tokenizer.get_vocab()
    own, other = loaded.model.state_dict(), pretrained.model.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in other.items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(own[name], other[name], atol=0.01)


def test_what_lies_beside_the_file_is_not_part_of_it(file: Path) -> None:
    (file.parent / "config.json").write_text('{"model_type": "gpt2", "n_layer": 7}')
    (file.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (file.parent / "added_tokens.json").write_text('{"marmalade": 99999}')
    loaded = load(file)
    assert loaded.model.config.model_type == "llama"
    assert "marmalade" not in loaded.tokenizer.get_vocab()


def test_a_saved_model_is_a_plain_folder(file: Path, tmp_path: Path) -> None:
    loaded, folder = load(file), tmp_path / "saved"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_bytes())
    assert "quantization_config" not in settings
    assert str(tmp_path.parent) not in json.dumps(settings)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    text = " pos \u2764\n"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == loaded.tokenizer(text).input_ids
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, loaded.model.eval()(IDS).logits)


# -------------------------------------------------------------------------------------- refusals


def check(path: Path, init: str = "pretrained") -> None:
    """Do what a run does before it trains."""
    spec = tiny_spec(str(path), training={"init": init})
    if spec.needs_files:
        hub.fetch(spec.model, weights=init == "pretrained")
    tiny_models.check(spec)


@pytest.mark.parametrize("init", ["pretrained", "random", "tiny"])
def test_a_file_that_is_not_there(init: str, tmp_path: Path) -> None:
    for name in ("no.gguf", "no/such/model.GGUF"):
        with pytest.raises(UnavailableError, match=r"no such file; name a GGUF file"):
            check(tmp_path / name, init)


def test_a_file_that_is_not_there_is_no_name_on_the_hub() -> None:
    with pytest.raises(UnavailableError, match=r"^models/no.gguf: no such file"):
        hub.fetch("models/no.gguf", weights=True)


def test_a_folder_with_a_gguf_file_in_it(file: Path) -> None:
    with pytest.raises(UnavailableError, match=r"holds no config\.json.*name one, or a GGUF file"):
        check(file.parent)


def test_a_folder_called_like_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    with pytest.raises(UnavailableError, match=r"this folder holds no config\.json"):
        check(folder)


def _cut(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return cut


def _overwrite(start: int, content: bytes) -> Callable[[Path], None]:
    def overwrite(path: Path) -> None:
        old = path.read_bytes()
        path.write_bytes(old[:start] + content + old[start + len(content) :])

    return overwrite


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + b"x" * 900),
        lambda path: path.write_bytes(b"GGUF"),
        lambda path: path.write_bytes(b"GGUF" + b"\xff" * 900),
        _cut(0.01),
        _cut(0.08),
        _cut(0.5),
        _cut(0.999),
        _overwrite(4, b"\x63"),
        _overwrite(16, b"\xff" * 8),
        _overwrite(40, b"\xfe" * 200),
    ],
)
def test_a_damaged_file(damage: Callable[[Path], None], init: str, file: Path) -> None:
    damage(file)
    with pytest.raises(UnavailableError, match="cannot be loaded") as caught:
        check(file, init)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("start", range(0, 1200, 40))
def test_no_damage_ends_in_an_exception_of_the_libraries(start: int, file: Path) -> None:
    _overwrite(start, b"\x07\xff\x00\x00\x01")(file)
    try:
        check(file)
        load(file)
    except TgsentError as error:
        assert error.exit_code in {2, 3}  # noqa: PT017  some damage is none


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    write_gguf(path, architecture="gpt99")
    with pytest.raises(UnavailableError, match=r"architecture gpt99 is not supported"):
        check(path)


def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    write_gguf(path, leave_out="layers.1.mlp.up_proj")
    with pytest.raises(UnavailableError, match=r"part\.gguf.*up_proj\.weight is missing"):
        load(path)


def test_more_tokens_than_positions(file: Path) -> None:
    spec = tiny_spec(str(file), training={"init": "pretrained", "max_tokens": 129})
    with pytest.raises(ConfigError, match="more than the 128 positions"):
        tiny_models.check(spec)


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tgsent\[gguf\]'"):
        check(file)


# ------------------------------------------------------------------------------------ the command

SMALL = (
    "-n", "1", "--set", "data.path=sample", "--set", "data.sample_size=100",
    "--set", "data.test_fraction=0.2", "--set", "training.epochs=1",
    "--set", "training.max_tokens=128",
)  # fmt: skip


def test_a_run_and_its_predictions(file: Path, cli: Cli, tmp_path: Path) -> None:
    name = str(file.relative_to(tmp_path))
    done = cli("run", "-m", name, *SMALL, "--set", "output.save_model=first")
    assert done.returncode == 0, done.stderr
    assert "tiny.gguf" in done.stdout
    assert "it/s" not in done.stderr
    assert "Converting" not in done.stderr
    model = tmp_path / "runs/default/tiny.gguf/trial-1/model"
    assert "quantization_config" not in (model / "config.json").read_text()
    file.unlink()  # what was saved needs it no more
    answered = cli("predict", "runs/default", "what a lovely day")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.startswith("line,text,predicted,generated,p_")
    assert answered.stdout.count("\n") == 2


def test_a_dry_run(file: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "-m", str(file), *SMALL, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "tiny.gguf (" in done.stdout


def test_a_damaged_file_ends_the_command_before_anything_is_written(
    file: Path, cli: Cli, tmp_path: Path
) -> None:
    _cut(0.9)(file)
    done = cli("run", "-m", str(file), *SMALL)
    assert done.returncode == 3
    assert "cannot be loaded" in done.stderr
    assert len(done.stderr.splitlines()) == 3  # what it does, what is wrong, what to do
    assert not (tmp_path / "runs").exists()


def test_another_process_may_unpack_the_same_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, folders = gguf_files._read, []

    def slower(name: str, path: Path) -> object:
        monkeypatch.setattr(gguf_files, "_read", read)
        folders.append(
            gguf_files.unpacked(name, path, Silent())
        )  # the other one, which is done before
        return read(name, path)

    monkeypatch.setattr(gguf_files, "_read", slower)
    assert [gguf_files.unpacked("tiny", file, Silent())] == folders
    assert list(folders[0].parent.iterdir()) == folders
