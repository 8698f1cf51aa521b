import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tgsent.config import PromptConfig, TrainingConfig
from tgsent.config.aliases import ALIASES
from tgsent.errors import ConfigError, UnavailableError
from tgsent.modeling import causal, loading, seq2seq
from tgsent.modeling.family import token_losses
from tgsent.modeling.loading import LoadedModel
from tgsent.records import Example
from tiny_models import FAMILIES, LABELS, check, encode, examples, tiny_model, tiny_spec

MakeFolder = Callable[[str], Path]


def tokenizer_json(model: str) -> str:
    return str(loading.load(tiny_spec(model), examples(60)).tokenizer.backend_tokenizer.to_str())


def print_tokenizers() -> None:
    """What a process of its own prints for the test below."""
    sys.stdout.write(json.dumps([tokenizer_json(model) for model in FAMILIES]))


def test_a_tiny_tokenizer_is_the_same_in_every_process() -> None:
    script = "import sys; sys.path.append('modeling'); import test_loading as t;"
    other = subprocess.run(
        [sys.executable, "-c", f"{script} t.print_tokenizers()"],
        cwd=Path(__file__).parents[1],  # where tiny_models.py is
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(other.stdout) == [tokenizer_json(model) for model in FAMILIES]


@pytest.mark.parametrize("model", FAMILIES)
def test_a_tiny_tokenizer_knows_the_words_of_the_training_split_alone(model: str) -> None:
    word = " marmalade"
    texts = examples(40)
    with_it = [*texts, *[Example(f"I like{word} and{word} you", "positive")] * 10]
    lengths = [
        len(
            loading.load(tiny_spec(model), train)
            .tokenizer(word, add_special_tokens=False)
            .input_ids
        )
        for train in (texts, with_it)
    ]
    assert 1 <= lengths[1] < lengths[0]


@pytest.mark.parametrize("model", FAMILIES)
def test_a_tiny_model_has_an_embedding_per_token_and_its_familys_architecture(model: str) -> None:
    loaded = loading.load(tiny_spec(model), examples(20))
    assert loaded.model.get_input_embeddings().num_embeddings == len(loaded.tokenizer)
    assert loaded.model.config.model_type == ALIASES[model].model_type
    assert loaded.family is (seq2seq if model == "t5" else causal)
    assert loaded.model.num_parameters() < 2_000_000


@pytest.mark.parametrize("model", FAMILIES)
def test_all_special_ids_are_tokens_of_their_own(model: str) -> None:
    loaded = loading.load(tiny_spec(model), examples(20))
    ids = loaded.ids
    assert ids.pad != ids.end
    assert loaded.tokenizer.convert_ids_to_tokens([ids.pad, ids.end]) == (
        ["<pad>", "</s>"] if model == "t5" else ["<|pad|>", "<|endoftext|>"]
    )
    assert ids.decoder_start == ids.pad
    assert loaded.model.config.pad_token_id == ids.pad


@pytest.mark.parametrize("start_token", [None, "<|startoftext|>"])
@pytest.mark.parametrize("model", ["gpt2", "gpt-neo"])
def test_new_tokens_get_embeddings_and_the_head_stays_tied(
    model: str, start_token: str | None
) -> None:
    spec = tiny_spec(model, prompt=PromptConfig(start_token=start_token))
    loaded = loading.load(spec, examples(20))
    added = ["<|pad|>", start_token] if start_token else ["<|pad|>"]
    ids = loaded.tokenizer.convert_tokens_to_ids(added)
    assert len(set(ids)) == len(added)
    embeddings = loaded.model.get_input_embeddings().weight
    head = loaded.model.get_output_embeddings().weight
    assert len(embeddings) == len(head) == len(loaded.tokenizer) > max(ids)
    assert embeddings.data_ptr() == head.data_ptr()
    assert loaded.model.config.vocab_size == len(loaded.tokenizer)


@pytest.mark.parametrize("model", FAMILIES)
def test_a_saved_model_loads_with_plain_transformers(model: str, tmp_path: Path) -> None:
    spec = tiny_spec(model, prompt=PromptConfig(start_token="<|startoftext|>"))
    loaded = tiny_model(spec)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)

    auto = AutoModelForSeq2SeqLM if model == "t5" else AutoModelForCausalLM
    again, tokenizer = auto.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "<|startoftext|>Tweet: my phone is great \u2764\nSentiment: positive"
    ids = loaded.tokenizer(text).input_ids
    assert tokenizer(text).input_ids == ids
    assert len(tokenizer) == len(loaded.tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (loaded.ids.pad, loaded.ids.end)
    inputs = {"input_ids": torch.tensor([ids])}
    if model == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[loaded.ids.decoder_start, 5, 6]])
    else:
        embeddings, head = again.get_input_embeddings(), again.get_output_embeddings()
        assert embeddings.weight.data_ptr() == head.weight.data_ptr()
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, loaded.model(**inputs).logits)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder with configuration and tokenizer of a tiny model, without weights."""

    def make(model: str) -> Path:
        loaded = loading.load(tiny_spec(model), examples(20))
        loaded.model.config.save_pretrained(tmp_path)
        loaded.tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("model", FAMILIES)
def test_a_random_model_has_the_architecture_and_tokenizer_of_its_folder(
    model: str, make_folder: MakeFolder
) -> None:
    folder = make_folder(model)
    spec = tiny_spec(str(folder), training={"init": "random"})

    def load() -> LoadedModel:
        torch.manual_seed(1)
        loaded = loading.load(spec, ())
        loaded.model.eval()
        return loaded

    loaded = load()
    assert len(loaded.tokenizer) == len(AutoTokenizer.from_pretrained(folder))
    assert loaded.model.config.model_type == ALIASES[model].model_type
    assert loaded.family is (seq2seq if model == "t5" else causal)
    batch = loaded.family.collate(encode(loaded, spec, examples(4)), loaded.ids, "label", None)
    losses = token_losses(loaded.model, batch)
    assert losses.isfinite().all()
    assert torch.equal(token_losses(load().model, batch), losses)


@pytest.mark.parametrize("init", ["pretrained", "random", "tiny"])
def test_a_folder_that_is_not_there(init: str, tmp_path: Path) -> None:
    spec = tiny_spec(str(tmp_path / "nowhere"), training={"init": init})
    with pytest.raises(UnavailableError, match="nowhere: no such folder; name a folder"):
        loading.load(spec, examples(10))
    with pytest.raises(UnavailableError, match="nowhere: no such folder; name a folder"):
        check(spec)


@pytest.mark.parametrize("init", ["random", "tiny"])
def test_a_folder_without_a_model(init: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"holds no config\.json"):
        loading.load(tiny_spec(str(tmp_path), training={"init": init}), examples(10))


@pytest.mark.parametrize("init", ["random", "tiny"])
def test_a_folder_with_a_broken_configuration(init: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"')
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        loading.load(tiny_spec(str(tmp_path), training={"init": init}), examples(10))


def test_a_folder_without_weights_cannot_be_pretrained(make_folder: MakeFolder) -> None:
    spec = tiny_spec(str(make_folder("gpt2")), training={"init": "pretrained"})
    with pytest.raises(UnavailableError, match="holds no weights as safetensors"):
        loading.load(spec, ())


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    loaded = loading.load(tiny_spec("gpt2"), examples(20))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop("transformer.h.1.attn.c_attn.weight"), r"c_attn\.weight is missing"),
        (lambda w: w.update({"transformer.ln_f.bias": torch.zeros(3)}), "ln_f.bias has another sh"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(
    change: Callable[[dict[str, torch.Tensor]], None], problem: str, tmp_path: Path
) -> None:
    change_weights(tmp_path, change)
    with pytest.raises(
        UnavailableError, match=f"do not fit the model's configuration: .*{problem}"
    ):
        loading.load(tiny_spec(str(tmp_path), training={"init": "pretrained"}), ())


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    change_weights(tmp_path, lambda weights: None)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UnavailableError, match="holds no tokenizer"):
        check(tiny_spec(str(tmp_path), training={"init": "pretrained"}))


def test_there_is_no_tiny_architecture_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    spec = tiny_spec(str(tmp_path))
    for refuse in (lambda: loading.load(spec, examples(10)), lambda: check(spec)):
        with pytest.raises(ConfigError, match=r'no tiny architecture .* \("llama"\); there are'):
            refuse()


def test_a_tiny_model_of_a_folder_is_of_its_kind(make_folder: MakeFolder) -> None:
    loaded = loading.load(tiny_spec(str(make_folder("gpt-neo"))), examples(10))
    assert loaded.model.config.model_type == "gpt_neo"


@pytest.mark.parametrize("model", ["gpt2", "gpt-neo"])
def test_max_tokens_above_the_models_positions(model: str, make_folder: MakeFolder) -> None:
    folder = str(make_folder(model))  # made with 64 positions
    check(tiny_spec(folder, training={"init": "random", "max_tokens": 64}))
    with pytest.raises(ConfigError, match=r"max_tokens: 65 is more than the 64 positions of"):
        check(tiny_spec(folder, training={"init": "random", "max_tokens": 65}))


def test_t5_has_no_limit_of_positions(make_folder: MakeFolder) -> None:
    folder = str(make_folder("t5"))
    check(tiny_spec(folder, training={"init": "random", "max_tokens": 5_000}))


def test_a_tokenizer_without_an_end_token(make_folder: MakeFolder) -> None:
    folder = make_folder("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="has no EOS token"):
        loading.load(tiny_spec(str(folder), training={"init": "random"}), ())


def test_generation_settings_of_the_folder_do_not_count(tmp_path: Path) -> None:
    loaded = tiny_model(tiny_spec("gpt2"))
    loaded.model.generation_config.update(do_sample=True, temperature=0.3, repetition_penalty=5.0)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = loading.load(tiny_spec(str(tmp_path), training={"init": "pretrained"}), ())
    assert "temperature" in (tmp_path / "generation_config.json").read_text()
    settings = again.model.generation_config
    assert not settings.do_sample
    assert settings.repetition_penalty in {None, 1.0}
    assert settings.eos_token_id == loaded.ids.end


@pytest.mark.parametrize("start_token", [None, "<|startoftext|>"])
def test_the_larger_embedding_of_t5_is_never_shrunk(
    t5_folder: Path, start_token: str | None
) -> None:
    spec = tiny_spec(
        str(t5_folder), training={"init": "random"}, prompt=PromptConfig(start_token=start_token)
    )
    loaded = loading.describe(spec, ())
    assert len(loaded.tokenizer) == 32_100 + bool(start_token)
    assert loaded.model.get_input_embeddings().num_embeddings == 32_128
    assert loaded.model.config.vocab_size == 32_128


@pytest.mark.parametrize(
    ("folder", "parameters"),
    [("gpt2_folder", 124), ("gpt_neo_folder", 125), ("t5_folder", 223)],
)
def test_a_described_model_takes_no_memory(
    folder: str, parameters: int, request: pytest.FixtureRequest
) -> None:
    spec = tiny_spec(str(request.getfixturevalue(folder)), labels=LABELS)
    spec = spec.model_copy(update={"training": TrainingConfig(init="pretrained")})
    model = loading.describe(spec, ()).model
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.num_parameters() // 1_000_000 == pytest.approx(parameters, abs=1)


@pytest.mark.parametrize("model", ["smollm2", "gemma3-270m", "qwen3", "pythia-160m", "lfm2-350m"])
def test_there_are_tiny_models_of_three_families_only(model: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no tiny architecture .* there are gpt2, gpt_neo and t5"
    ):
        check(tiny_spec(model))
