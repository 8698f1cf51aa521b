from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    PromptConfig,
    RunConfig,
    SimpleT5Config,
    TrainingConfig,
    load,
)
from tgsent.errors import ConfigError

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config file and gives its path."""

    def write_file(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_file


def refusal(config: str | None, **command: Any) -> list[str]:
    """The lines of the message with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        load(config, **command)
    return str(caught.value).split("\n")


# ------------------------------------------------------------------------------ shipped configs


@pytest.mark.parametrize("name", ["smoke", "default", "article"])
def test_shipped_configs_load_under_their_own_name(name: str) -> None:
    assert load(name).name == name


def test_no_config_means_default() -> None:
    assert load() == load("default")


def test_the_default_config_is_the_documented_defaults() -> None:
    assert load("default") == RunConfig()


def test_smoke_needs_no_download() -> None:
    config = load("smoke")
    assert (config.training.init, config.data.path) == ("tiny", "sample")


def test_article_is_the_reference_experiment() -> None:
    config = load("article")
    assert (config.trials, config.seed) == (3, 1)
    assert config.data == DataConfig(
        path="sentiment140",
        deduplicate=False,
        sample_size=10_000,
        sample_seed=1,
        test_fraction=0.05,
    )
    gpt2, gpt_neo, t5 = [spec for spec in config.trial_specs(("a", "b")) if spec.trial == 1]
    assert [gpt2.model, gpt_neo.model, t5.model] == ["gpt2", "gpt-neo", "t5"]
    assert gpt2.prompt == PromptConfig(
        input="Tweet: {text}\nSentiment:", target=" {label}", start_token="<|startoftext|>"
    )
    assert gpt2.training == TrainingConfig(
        init="pretrained",
        epochs=2,
        batch_size=2,
        learning_rate=5e-5,
        warmup_steps=100,
        weight_decay=0.01,
        loss="full",
        loss_on_padding=True,
        max_tokens=512,
        padding="max_tokens",
    )
    assert (gpt_neo.prompt, gpt_neo.training) == (gpt2.prompt, gpt2.training)
    assert t5.prompt == PromptConfig(input="{text}", target="{label}", start_token=None)
    assert (t5.training.backend, t5.name) == ("simplet5", "t5 (simplet5)")
    assert (t5.training.epochs, t5.training.batch_size, t5.training.max_tokens) == (2, 8, 300)
    assert t5.training.simplet5 == SimpleT5Config(
        target_max_tokens=200, num_beams=2, repetition_penalty=2.5
    )
    assert config.evaluation.decoding == "free"


# ----------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", ["smoke", "default", "article"])
def test_the_resolved_config_round_trips(name: str, write: Write) -> None:
    config = load(name)
    assert load(write(config.to_yaml())) == config


_words = st.text(alphabet="0123456789e.+-_~xnoabc:#'\"é😀", min_size=1).filter(
    lambda word: word == word.strip()
)

# Hypothesis also draws strings that stand in the code, and a template has one placeholder
_texts = st.text().filter(lambda text: "{text}" not in text and "{label}" not in text)


@given(st.lists(_words, min_size=2, max_size=2, unique_by=lambda word: word[0]), _texts)
def test_any_words_and_templates_round_trip(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], text: str
) -> None:
    config = RunConfig(
        models=(
            ModelConfig.model_validate(
                {"model": "./m", "as": "089", "prompt": {"start_token": text + "1e-4"}}
            ),
            ModelConfig.model_validate({"model": "a/b", "training": {"epochs": 1}}),
        ),
        data=DataConfig(path="1e5", labels={word: word for word in words}),
        prompt=PromptConfig(input=text + "{text}", target="{label}" + text),
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8", newline="")
    assert load(str(path)) == config


def test_a_file_without_a_name_lends_its_own(write: Write) -> None:
    assert load(write("trials: 1\n")).name == "mine"


def test_a_byte_order_mark_is_no_part_of_the_first_key(write: Write) -> None:
    assert load(write("\ufefftrials: 7\n")).trials == 7


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("yaml", "mistake"),
    [
        ("\ntraning: {}", "traning (line 2): unknown key; did you mean `training`?"),
        ("training:\n  epoch: 3", "training.epoch (line 2): unknown key; did you mean `epochs`?"),
        (
            "training:\n  lora:\n    alfa: 3",
            "training.lora.alfa (line 3): unknown key; did you mean `alpha`?",
        ),
        (
            "training:\n  lora: {target: everything}",
            "training.lora.target (line 2): must be 'all-linear' or 'attention' or a list,"
            " not 'everything'",
        ),
        (
            "training:\n  lora:\n    target:\n    - q\n    - 3",
            "training.lora.target (line 3): must be 'all-linear' or 'attention' or a valid string,"
            " not ['q', 3]",
        ),
        (
            "training:\n  lora: {target: []}",
            "training.lora.target (line 2): must be 'all-linear' or 'attention' or must name",
        ),
        (
            "evaluation: {calibration: contextual}",
            "evaluation.calibration (line 1): contextual needs `decoding: score`",
        ),
        (
            "training:\n  lora: {r: 0}",
            "training.lora.r (line 2): must be greater than or equal to 1, not 0",
        ),
        ("data:\n  zzz: 3", "data.zzz (line 2): unknown key; known keys: path, text_column"),
        (
            "models:\n- gpt2\n- model: t5\n  training:\n    lerning_rate: 1",
            "models.1.training.lerning_rate (line 5): unknown key; did you mean `learning_rate`?",
        ),
        (
            "models:\n- model: t5\n  trainin: {}",
            "models.0.trainin (line 3): unknown key; did you mean `training`?",
        ),
        (
            "models:\n- model: t5\n  training:\n    loss: both",
            "models.0.training.loss (line 4): must be 'label' or 'full', not 'both'",
        ),
        (
            "training: {loss: full, loss_on_padding: true}\n"
            "models:\n- model: t5\n  training: {loss: label}",
            "models.0.training.loss_on_padding (line 4): counts only with `loss: full`",
        ),
        ("training: {loss_on_padding: true}", "training.loss_on_padding (line 1): counts only"),
        ("trials: 0", "trials (line 1): must be greater than or equal to 1, not 0"),
        ("trials: true", "trials (line 1): must be a valid integer, not true"),
        ("trials: '3'", "trials (line 1): must be a valid integer, not '3'"),
        ("trials: 3.0", "trials (line 1): must be a valid integer, not 3.0"),
        ("trials:", "trials (line 1): must be a valid integer, not null"),
        ("seed: -1", "seed (line 1): must be greater than or equal to 0, not -1"),
        ("seed: 4294967296", "seed (line 1): must be less than"),
        ("name: a/b", "name (line 1): must be a folder name"),
        ("name: .hidden", "name (line 1): must be a folder name"),
        ("training: 5", "training (line 1): must be a mapping of keys, not 5"),
        ("training:", "training (line 1): must be a mapping of keys, not null"),
        (
            "training: {learning_rate: .nan}",
            "training.learning_rate (line 1): must be a finite number or 'auto', not nan",
        ),
        (
            "training: {learning_rate: .inf}",
            "training.learning_rate (line 1): must be a finite number or 'auto', not inf",
        ),
        (
            "training: {learning_rate: fast}",
            "training.learning_rate (line 1): must be a valid number or 'auto', not 'fast'",
        ),
        ("training: {learning_rate: 0}", "training.learning_rate (line 1): must be greater than 0"),
        (
            "training: {warmup_steps: 1.5}",
            "training.warmup_steps (line 1): must be a whole number of steps, or below 1, not 1.5",
        ),
        ("training: {loss: ful}", "training.loss (line 1): must be 'label' or 'full', not 'ful'"),
        (
            "evaluation: {decoding: x}",
            "evaluation.decoding (line 1): must be 'free', 'constrained'",
        ),
        (
            "prompt: {input: 'Tweet:'}",
            "prompt.input (line 1): must contain {text} exactly once, not 'Tweet:'",
        ),
        (
            "prompt: {input: '{text} {text}'}",
            "prompt.input (line 1): must contain {text} exactly once, not '{text} {text}'",
        ),
        (
            "prompt: {input: 'Tweet: {text} '}",
            "prompt.input (line 1): must not end in a space: write it at the beginning of",
        ),
        (
            "prompt: {target: label}",
            "prompt.target (line 1): must contain {label} exactly once, not 'label'",
        ),
        ("data: {labels: {0: a, 1: a}}", 'data.labels (line 1): the label word "a" occurs twice'),
        (
            "data: {labels: {0: badly, 1: bad}}",
            'data.labels (line 1): the label word "bad" is the beginning of "badly"',
        ),
        (
            "data: {labels: {0: ' a', 1: b}}",
            "data.labels (line 1): the label word ' a' is empty or",
        ),
        ("data: {labels: {0: '', 1: b}}", "data.labels (line 1): the label word '' is empty or"),
        ("data: {labels: [a, b]}", "data.labels (line 1): must be a mapping of keys"),
        (
            "data:\n  labels:\n    0: [a]",
            "data.labels.0 (line 3): must be a valid string, not ['a']",
        ),
        ("data: {test_fraction: 1.0}", "data.test_fraction (line 1): must be less than 1, not 1.0"),
        ("data: {test_fraction: .nan}", "data.test_fraction (line 1): must be"),
        ("data: {text_column: -1}", "data.text_column (line 1): must be"),
        (
            "data: {text_column: true}",
            "data.text_column (line 1): must be a valid string or a valid integer",
        ),
        ("models: []", "models (line 1): must name at least one, not []"),
        ("models: gpt2", "models (line 1): must be a list, not 'gpt2'"),
        ("models: [3]", "models.0 (line 1): must be a mapping of keys, not 3"),
        ("models: [{as: x}]", "models.0.model (line 1): this key is needed"),
        ("models: [{model: t5, as: a/b}]", "models.0.as (line 1): must be a folder name"),
        ("models: [gpt2, gpt2]", 'models (line 1): two models are called "gpt2"; give one of them'),
        ("models: [a/m, b/M]", 'models (line 1): two models are called "M"; give one of them'),
        ("1: x", "unknown key"),
        ("models: &m [*m]", "models.0 (line 1): must be a mapping of keys"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_line(yaml: str, mistake: str, write: Write) -> None:
    path = write(yaml)
    head, *mistakes = refusal(path)
    assert head == f"{path}: 1 mistake in the config"
    assert len(mistakes) == 1
    assert mistake in mistakes[0]


def test_all_mistakes_are_named_at_once(write: Write) -> None:
    path = write(
        "trails: 3\n"
        "models:\n"
        "- model: t5\n"
        "  training:\n"
        "    epoch: 1\n"
        "    batch_size: 0\n"
        "- {as: x}\n"
        "data:\n"
        "  encoding: 99\n"
        "  sample_size: ten\n"
        "prompt:\n"
        "  input: Tweet\n"
        "training:\n"
        "  loss: ful\n"
        "  learning_rate: .nan\n"
    )
    head, *mistakes = refusal(path)
    assert head == f"{path}: 9 mistakes in the config"
    assert sorted(line.split(")")[0] + ")" for line in mistakes) == [
        "  data.encoding (line 9)",
        "  data.sample_size (line 10)",
        "  models.0.training.batch_size (line 6)",
        "  models.0.training.epoch (line 5)",
        "  models.1.model (line 7)",
        "  prompt.input (line 12)",
        "  trails (line 1)",
        "  training.learning_rate (line 15)",
        "  training.loss (line 14)",
    ]


def test_a_section_that_holds_itself_is_refused(write: Write) -> None:
    path = write("training: &t {simplet5: *t}\nmodels: [{model: t5, training: *t}]\n")
    assert "training.simplet5.simplet5 (line 1): unknown key" in refusal(path)[1]


@pytest.mark.parametrize(
    ("models", "places"),
    [
        ("[gpt2, {model: t5, prompt: {}}]", ["training.epochs (line 2)"]),
        ("[gpt2, {model: t5, training: {batch_size: 2}}]", ["training.epochs (line 2)"]),
        (
            "[gpt2, {model: t5, training: {epochs: -1}}]",
            ["training.epochs (line 2)", "models.1.training.epochs (line 1)"],
        ),
    ],
)
def test_a_mistake_that_models_inherit_is_named_once(
    models: str, places: list[str], write: Write
) -> None:
    _, *mistakes = refusal(write(f"models: {models}\ntraining: {{epochs: -1}}\n"))
    assert [line.strip().split(":")[0] for line in mistakes] == places


@pytest.mark.parametrize("yaml", ["", "- gpt2\n", "gpt2\n", "3\n"])
def test_a_config_is_a_mapping(yaml: str, write: Write) -> None:
    path = write(yaml)
    assert refusal(path) == [f"{path}: a config is a mapping of keys, such as `trials: 3`"]


def test_a_missing_config_names_the_shipped_ones() -> None:
    assert refusal("articel") == [
        "articel: cannot read this config: No such file or directory; shipped are smoke, default,"
        " article"
    ]


def test_a_folder_and_a_file_that_is_no_text_are_no_configs(tmp_path: Path) -> None:
    assert "cannot read this config: Is a directory" in refusal(str(tmp_path))[0]
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("iso-8859-1"))
    assert f"{path}: cannot read this config: 'utf-8' codec can't decode" in refusal(str(path))[0]


# ------------------------------------------------------------------------------- engine, words


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        (("engine.kind=ray", "training.device=cuda"), "of cuda needs `gpus_per_trial`"),
        (("engine.kind=rya",), "must be 'local' or 'ray', not 'rya'"),
        (("engine.cpus_per_trial=0",), "must be greater than or equal to 1"),
        (("prompt.words={a: b, c: bc}",), "is the beginning of"),
        (("function-x[y]=1",), "unknown key"),
    ],
)
def test_mistakes_in_engine_and_words(settings: tuple[str, ...], mistake: str) -> None:
    assert any(mistake in line for line in refusal("smoke", overrides=settings))


# ------------------------------------------------------------------------ the package SimpleT5

THROUGH_SIMPLET5 = "models=[{model: t5, training: {backend: simplet5}}]"


@pytest.mark.parametrize(
    ("setting", "mistake"),
    [
        ("training.learning_rate=3e-4", "must be auto or 0.0001 with"),
        ("training.warmup_steps=0.1", "must be auto or 0 with"),
        ("training.weight_decay=0.0", "must be 0.01 with"),
        ("training.max_grad_norm=1.0", "must be auto or null with"),
        ("training.padding=longest", "must be auto or max_tokens with"),
        ("training.gradient_accumulation=2", "must be 1 with"),
        ("training={loss_on_padding: true, loss: full}", "must be false with"),
        ("training.precision=bf16", "must be auto or fp32 with"),
        ("training.precision=fp16", "must be auto or fp32 with"),
        ("training.device=mps", "must be auto or cpu or cuda with"),
        ("prompt.start_token=<s>", "must be null with `training.backend: simplet5`, not '<s>'"),
        ("evaluation.decoding=score", "must be free with `training.backend: simplet5`, not 'sc"),
        ("evaluation.decoding=constrained", "must be free with"),
    ],
)
def test_what_simplet5_cannot_do_is_refused(setting: str, mistake: str) -> None:
    key = "training.loss_on_padding" if "loss_on" in setting else setting.split("=")[0]
    for_all = refusal("default", models=["t5"], overrides=[setting, "training.backend=simplet5"])
    assert len(for_all) == 2
    assert f"  {key} (--set " in for_all[1]
    assert mistake in for_all[1]
    assert load("default", models=["t5"], overrides=[setting])
    for_one = refusal("default", overrides=[setting, THROUGH_SIMPLET5])
    assert len(for_one) == 2
    assert mistake in for_one[1]
    assert f"{key} (" in for_one[1]


@pytest.mark.parametrize(
    "setting",
    [
        "training.learning_rate=1e-4",
        "training.warmup_steps=0",
        "training.max_grad_norm=null",
        "training.padding=max_tokens",
        "training.precision=fp32",
        "training.device=cpu",
        "training.simplet5={num_beams: 1}",
    ],
)
def test_what_simplet5_does_anyway_may_be_said(setting: str) -> None:
    assert load("default", models=["t5"], overrides=["training.backend=simplet5", setting])


def test_all_that_simplet5_cannot_do_is_named_at_once(write: Write) -> None:
    path = write(
        "models:\n"
        "- {model: t5, training: {batch_size: 0}}\n"
        "- {model: gpt2, prompt: {start_token: x}}\n"
        "training: {backend: simplet5, learning_rate: 3e-4, precision: bf16}\n"
        "evaluation: {decoding: score}\n"
    )
    head, *mistakes = refusal(path)
    assert head == f"{path}: 6 mistakes in the config"
    assert sorted(line.split(")")[0] + ")" for line in mistakes) == [
        "  evaluation.decoding (line 5)",
        "  models.0.training.batch_size (line 2)",
        "  models.1.model (line 3)",
        "  models.1.prompt.start_token (line 3)",
        "  training.learning_rate (line 4)",
        "  training.precision (line 4)",
    ]


def test_settings_of_simplet5_count_with_it_only() -> None:
    (_, mistake) = refusal("default", overrides=["training.simplet5.num_beams=1"])
    assert mistake.startswith("  training.simplet5 (")
    assert mistake.endswith("): counts only with `backend: simplet5`")
    (_, mistake) = refusal(
        "default", overrides=[THROUGH_SIMPLET5, "models.0.training.simplet5={num_beam: 1}"]
    )
    assert "models.0.training.simplet5.num_beam (" in mistake
    assert "did you mean `num_beams`?" in mistake


def test_a_model_changes_settings_of_simplet5_one_by_one(write: Write) -> None:
    path = write(
        "training: {backend: simplet5, simplet5: {num_beams: 4}}\n"
        "models: [{model: t5, training: {simplet5: {target_max_tokens: 10}}}]\n"
    )
    (spec, *_) = load(path).trial_specs(("a", "b"))
    assert spec.training.simplet5 == SimpleT5Config(num_beams=4, target_max_tokens=10)


def test_rows_through_simplet5_have_their_own_name(write: Write) -> None:
    both = "models: [t5, {model: t5, training: {backend: simplet5}}]\n"
    assert load(write(both)).names == ["t5", "t5 (simplet5)"]
    named = "models: [t5, {model: t5, as: other, training: {backend: simplet5}}]\n"
    assert load(write(named)).names == ["t5", "other"]
    of_all = load("default", models=["t5"], overrides=["training.backend=simplet5"])
    assert of_all.names == ["t5 (simplet5)"]
    assert {spec.name for spec in of_all.trial_specs(("a", "b"))} == {"t5 (simplet5)"}
    assert load(write(of_all.to_yaml())) == of_all
    assert (
        'two models are called "t5 (simplet5)"'
        in refusal(write(both + "training: {backend: simplet5}"))[1]
    )


# --------------------------------------------------------------------------------- command line


def test_models_of_the_command_line_replace_the_list_and_keep_their_settings(write: Write) -> None:
    path = write(
        "models:\n"
        "- gpt2\n"
        "- {model: t5, training: {epochs: 7}}\n"
        "- {model: ./folder, as: mine, training: {epochs: 8}}\n"
    )
    config = load(path, models=["t5", "mine", "gpt-neo"])
    assert [m.model for m in config.models] == ["t5", "./folder", "gpt-neo"]
    assert [s.training.epochs for s in config.trial_specs(("a", "b")) if s.trial == 1] == [7, 8, 3]


def test_models_of_the_command_line_are_blamed_for_their_mistakes() -> None:
    assert "models (--model): two models are called" in refusal("smoke", models=["t5", "t5"])[1]


def test_trials_and_output_of_the_command_line() -> None:
    config = load("smoke", trials=5, data="a: b.csv", output_dir="out")
    assert config.data.path == "a: b.csv"  # no YAML, unlike the value of --set
    assert config.trials == 5
    assert config.folder == Path("out/smoke")
    assert "trials (--trials): must be greater" in refusal("smoke", trials=0)[1]
    assert "output.dir (--output): must not be empty" in refusal("smoke", output_dir="")[1]


def test_set_overrides_any_key(write: Write) -> None:
    path = write("models: [gpt2, t5]\ntraining: {epochs: 2}\n")
    config = load(
        path,
        overrides=[
            "training.epochs=5",
            "training.learning_rate=1e-4",
            "models.1.training.epochs=6",
            "data.labels={0: no, 4: yes}",
            "prompt.input=Is it so? {text}",
            "data.sample_size=null",
        ],
    )
    assert [s.training.epochs for s in config.trial_specs(("a", "b")) if s.trial == 1] == [5, 6]
    assert config.training.learning_rate == 1e-4
    assert config.data.labels == {"0": "no", "4": "yes"}
    assert config.prompt.input == "Is it so? {text}"
    assert config.data.sample_size is None


def test_set_reaches_the_models_of_a_file_that_lists_none(write: Write) -> None:
    config = load(write("trials: 1\n"), overrides=["models.2.training.epochs=9"])
    assert [s.training.epochs for s in config.trial_specs(("a", "b"))] == [3, 3, 9]


def test_set_changes_one_model_where_two_share_an_alias(write: Write) -> None:
    path = write(
        "models:\n- {model: gpt2, training: &t {epochs: 1}}\n- {model: t5, training: *t}\ntrials: 1"
    )
    config = load(path, overrides=["models.0.training.epochs=5"])
    assert [s.training.epochs for s in config.trial_specs(("a", "b"))] == [5, 1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nope.x=1", "nope (--set nope.x): unknown key"),
        ("training.epoch=1", "training.epoch (--set training.epoch): unknown key; did you mean"),
        ("training.epochs=-1", "training.epochs (--set training.epochs): must be greater"),
        (
            "seed.x=0",
            "seed (--set seed.x): must be a valid integer, not {'x': 0}",
        ),
        ("training=5", "training (--set training): must be a mapping of keys, not 5"),
        ("models.0.training.loss=x", "models.0.training.loss (--set models.0.training.loss): must"),
        ("models=t5", "models (--set models): must be a list, not 't5'"),
        ("trials", "--set trials: must be KEY=VALUE, for example --set training.epochs=3"),
        ("=3", "--set =3: must be KEY=VALUE"),
        ("trials=[", "--set trials, line 1: not valid YAML"),
        ("models.9=t5", "models (--set models.9): holds no `9`"),
        ("models.x=t5", "models (--set models.x): holds no `x`"),
        ("training.epochs.x=0", "training.epochs (--set training.epochs.x): holds no `x`"),
        ("name.x=t5", "name (--set name.x): holds no `x`"),
    ],
)
def test_mistakes_in_set_name_it(override: str, message: str) -> None:
    assert message in "\n".join(refusal("smoke", overrides=[override]))


# -------------------------------------------------------------------- trial specs, fingerprints


def test_trial_k_has_seed_plus_k_minus_1() -> None:
    specs = load("smoke", trials=3, overrides=["seed=11"]).trial_specs(("a", "b"))
    assert [(s.name, s.trial, s.seed) for s in specs] == [
        (name, k, 10 + k) for name in ("gpt2", "gpt-neo", "t5") for k in (1, 2, 3)
    ]


def test_models_override_prompt_and_training_for_themselves(write: Write) -> None:
    path = write(
        "trials: 1\n"
        "models:\n"
        "- gpt2\n"
        "- {model: t5, prompt: {input: '{text}'}, training: {batch_size: 8, learning_rate: 1e-4}}\n"
    )
    gpt2, t5 = load(path).trial_specs(("a", "b"))
    assert gpt2.training == TrainingConfig()
    assert t5.training == TrainingConfig(batch_size=8, learning_rate=1e-4)
    assert t5.prompt == PromptConfig(input="{text}")


def test_models_hold_complete_sections_and_are_dumped_as_they_were_written(write: Write) -> None:
    path = write(
        "models: [gpt2, {model: t5, training: {lora: {r: 8}, epochs: 5}}]\n"
        "training: {epochs: 4, lora: {alpha: 2}}\n"
    )
    config = load(path)
    gpt2, t5 = (model.training for model in config.models)
    assert gpt2 == config.training
    assert t5 == TrainingConfig(epochs=5, lora=LoraConfig(r=8, alpha=2))
    assert config.dump()["models"] == [
        "gpt2",
        {"model": "t5", "training": {"lora": {"r": 8}, "epochs": 5}},
    ]


def test_a_variant_is_a_model_with_other_settings() -> None:
    config = load("smoke", overrides=["models.0.training={epochs: 2, batch_size: 8}"])
    settings = {"training.epochs": 1, "training.lora.r": 4, "model": "t5"}
    variant = config.variant(config.models[0], settings, "other")
    assert (variant.name, variant.model) == ("other", "t5")
    assert variant.training == config.training.model_copy(
        update={"epochs": 1, "batch_size": 8, "lora": LoraConfig(r=4)}
    )
    assert variant.written == {
        "model": "t5",
        "as": "other",
        "training": {"epochs": 1, "batch_size": 8, "lora": {"r": 4}},
    }
    with pytest.raises(ConfigError, match=r"variant prompt.input='x': prompt.input: must contain"):
        config.variant(config.models[0], {"prompt.input": "x"}, "other")


@pytest.mark.parametrize(
    ("save_model", "saved"), [("none", [False] * 3), ("first", [True, False, False])]
)
def test_which_trials_save_their_model(save_model: str, saved: list[bool]) -> None:
    config = load("smoke", trials=3, models=["t5"], overrides=[f"output.save_model={save_model}"])
    assert [spec.save_model for spec in config.trial_specs(("a", "b"))] == saved


@pytest.mark.parametrize(
    ("model", "name"),
    [("t5", "t5"), ("a/b-1.5", "b-1.5"), ("./my model/", "my-model"), ("C:\\m\\x", "x")],
)
def test_the_name_of_a_model_is_a_folder_name(model: str, name: str) -> None:
    through_simplet5 = {"model": model, "training": {"backend": "simplet5"}}
    assert ModelConfig(model=model).name == name
    assert ModelConfig.model_validate(through_simplet5).name == f"{name} (simplet5)"
    assert ModelConfig.model_validate({**through_simplet5, "as": "x"}).name == "x"


def fingerprint(*overrides: str, labels: tuple[str, ...] = ("a", "b")) -> str:
    config = load("smoke", models=["./model"], overrides=overrides)
    return config.trial_specs(labels)[0].fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "training.learning_rate=1e-3",
        "training.epochs=9",
        "training.init=random",
        "training.precision=fp32",
        "training.backend=simplet5",
        "prompt.input=Text {text}",
        "prompt.target='{label}'",
        "seed=2",
        "models.0=gpt-neo",
        "models.0.training.epochs=9",
        "evaluation.decoding=score",
    ],
)
def test_the_fingerprint_changes_with_what_can_change_the_score(override: str) -> None:
    assert fingerprint(override) != fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "training.device=cpu",
        "evaluation.batch_size=1",
        "output.dir=elsewhere",
        "output.save_model=all",
        "name=other",
        "trials=9",
        "models.0={model: ./model, as: other}",
    ],
)
def test_the_fingerprint_keeps_with_how_the_run_is_carried_out(override: str) -> None:
    assert fingerprint(override) == fingerprint()


def test_old_trials_with_adapters_keep_their_fingerprint() -> None:
    """Versions without the key put adapters on the attention layers."""
    lora = "training.lora={r: 4, alpha: 32, dropout: 0.1%s}"
    config = load("smoke", models=["./model"], overrides=[lora % ", target: attention"])
    (spec, *_) = config.trial_specs(("a", "b"))
    assert "target" not in spec.settings["training"]["lora"]
    assert spec.settings["training"]["lora"] == {"r": 4, "alpha": 32, "dropout": 0.1}
    assert fingerprint(lora % ", target: attention") != fingerprint(lora % "")
    assert fingerprint(lora % ", target: [q]") != fingerprint(lora % "")


@pytest.mark.parametrize(
    ("epochs", "decoding", "calibration", "kept"),
    [
        (1, "score", "auto", True),
        (1, "score", "contextual", False),
        (0, "score", "auto", False),
        (0, "score", "none", True),
        (0, "free", "auto", True),
    ],
)
def test_old_trials_keep_their_fingerprint_where_nothing_is_calibrated(
    epochs: int, decoding: str, calibration: str, kept: bool
) -> None:
    overrides = [
        f"training.epochs={epochs}",
        f"evaluation.decoding={decoding}",
        f"evaluation.calibration={calibration}",
    ]
    (spec, *_) = load("smoke", models=["./model"], overrides=overrides).trial_specs(("a", "b"))
    assert ("calibration" not in spec.settings["evaluation"]) == kept
    if not kept:
        assert spec.settings["evaluation"]["calibration"] == "contextual"


def test_the_fingerprint_changes_with_the_label_words() -> None:
    assert fingerprint(labels=("a", "c")) != fingerprint()
