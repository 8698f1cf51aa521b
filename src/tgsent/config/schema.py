"""The config: YAML, checked whole, into frozen sections; and the recipe of one trial.

Every field carries its documentation as the docstring below it; `docs/configuration.md` and
`configs/default.yaml` are written from there.
"""

from __future__ import annotations

import codecs
import copy
import difflib
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from tgsent.config import earlier, yaml_source
from tgsent.config.aliases import ALIASES, BASELINES, alias_of
from tgsent.config.yaml_source import Source
from tgsent.errors import ConfigError

SHIPPED = ("smoke", "default", "article")
_MISTAKES_SHOWN = 50
_MOST = 10_000  # trials, and variants

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# scikit-learn and NumPy take seeds of 32 bits
Seed = Annotated[int, Field(ge=0, lt=2**32 - 10_000)]
Column = Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=0)]
LayerNames = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, strict=False)
]


class Section(BaseModel):
    """A part of the config: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


_S = TypeVar("_S", bound=Section)


class DataConfig(Section):
    """Which texts, and how they are sampled and split."""

    path: Annotated[str, Field(min_length=1)] = "sentiment140"
    """`sentiment140`; `sample`, the made-up tweets that are shipped; or a .csv, .tsv, .jsonl or
    .parquet file, relative to the working folder."""
    text_column: Column | None = None
    """Name of the column with the texts, or its position from 0 in a CSV or TSV file without a
    header. `null`: `text`, or the column of the known layout."""
    label_column: Column | None = None
    """The same for the labels. `null`: `label`, or the column of the known layout."""
    labels: dict[str, str] | None = None
    """`{value in the file: label word}`. `null`: the values themselves are the words
    (Sentiment140's layout: `{0: negative, 4: positive}`)."""
    encoding: str | None = None
    """Encoding of a CSV, TSV or JSONL file. `null`: UTF-8 (Sentiment140's layout: ISO-8859-1)."""
    deduplicate: bool = True
    """Drop repeated texts before sampling; the first stays."""
    sample_size: PositiveInt | None = 10_000
    """Number of texts drawn for the experiment. `null`: all."""
    sample_seed: Seed = 1
    """Seed of that draw."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the sample held out for testing, stratified by label."""
    extra_test_size: Annotated[int, Field(ge=0)] = 0
    """Number of texts from outside the sample that every trial is tested on as well, stratified by
    label, so that small differences can be seen. Their score is shown beside that of the sample's
    own test texts; they are in no training split."""

    @field_validator("labels", mode="before")
    @classmethod
    def _label_values_are_text(cls, labels: Any) -> Any:
        """Take `0: negative` as well as `"0": negative`: files hold text."""
        if not isinstance(labels, dict):
            return labels
        return {
            json.dumps(value) if isinstance(value, bool) else str(value): (
                str(word) if _is_number(word) else word
            )
            for value, word in labels.items()
        }

    @field_validator("labels")
    @classmethod
    def _labels_can_be_told_apart(cls, labels: dict[str, str] | None) -> dict[str, str] | None:
        if labels is not None:
            if len(labels) < 2:
                raise PydanticCustomError("labels", "needs at least two labels")
            if problem := label_words_problem(tuple(labels.values())):
                raise PydanticCustomError("labels", "{problem}", {"problem": problem})
        return labels

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except (LookupError, ValueError):
                raise PydanticCustomError(
                    "encoding", "is no known encoding; try utf-8, iso-8859-1 or cp1252"
                ) from None
        return encoding

    @model_validator(mode="after")
    def _every_label_is_tested(self) -> Self:
        least = len(self.labels) if self.labels else 2
        if self.sample_size is not None:
            n_test = math.ceil(self.test_fraction * self.sample_size)
            if n_test < least or self.sample_size - n_test < least:
                raise PydanticCustomError(
                    "test_fraction",
                    "test_fraction {fraction} of {size} texts makes {n_test} for testing and"
                    " {n_train} for training: every one of {least} labels needs a text in both",
                    {
                        "fraction": self.test_fraction,
                        "size": self.sample_size,
                        "n_test": n_test,
                        "n_train": self.sample_size - n_test,
                        "least": least,
                    },
                )
        return self


class PromptConfig(Section):
    """How a text becomes a prompt and a label its completion."""

    input: str = "Tweet: {text}\nSentiment:"
    """The prompt; `{text}` stands for the text, every other character for itself."""
    target: str = " {label}"
    """The completion, which follows the prompt without anything between. A space between the two
    belongs here: language models have one token for a space and the word after it."""
    words: dict[str, str] | None = None
    """`{label: word}`: what stands for each label in `target`, for this model or variant alone; the
    label itself is what the word is read back as, and what is scored. `null`: the labels
    themselves, which `data.labels` names for all."""
    template: Literal["plain", "chat"] = "plain"
    """`plain`: the prompt as it is; `chat`: the prompt is a user's turn in the tokenizer's own chat
    template, and the completion, stripped of whitespace, is the assistant's answer, for models
    tuned to follow instructions. Thinking is switched off where the template supports it."""
    start_token: Annotated[str, Field(min_length=1)] | None = None
    """Special token before the prompt, added to the vocabulary where it is new. `null`: the
    tokenizer's own beginning-of-text token where it has one (GPT-2 and GPT-Neo), else none (T5)."""

    @field_validator("input")
    @classmethod
    def _input_has_one_text(cls, template: str) -> str:
        if template.count("{text}") != 1:
            raise PydanticCustomError("template", "must contain {text} exactly once")
        if template.endswith((" ", "\t")):
            raise PydanticCustomError(
                "template", "must not end in a space: write it at the beginning of prompt.target"
            )
        return template

    @field_validator("target")
    @classmethod
    def _target_has_one_label(cls, template: str) -> str:
        if template.count("{label}") != 1:
            raise PydanticCustomError("template", "must contain {label} exactly once")
        return template

    @field_validator("words")
    @classmethod
    def _words_can_be_told_apart(cls, words: dict[str, str] | None) -> dict[str, str] | None:
        if words and (problem := label_words_problem(tuple(words.values()), "other words")):
            raise PydanticCustomError("labels", "{problem}", {"problem": problem})
        return words

    @model_validator(mode="after")
    def _a_chat_starts_by_itself(self) -> Self:
        if self.template == "chat" and self.start_token is not None:
            raise PydanticCustomError(
                "chat", "`start_token` must be null with `template: chat`, which has its own"
            )
        return self

    def word(self, label: str) -> str:
        """Give what stands for a label."""
        return label if self.words is None else self.words[label]

    shots: Annotated[int, Field(ge=0)] = 0
    """Worked examples before every prompt (few-shot): training texts with their labels, of every
    label about as many, drawn with the trial's seed."""


class SimpleT5Config(Section):
    """What the package SimpleT5 is told beside the keys it shares with the native recipe."""

    target_max_tokens: Annotated[int, Field(ge=2)] = 200
    """Longest label in tokens: every label is padded to it in training, and generation stops
    there."""
    num_beams: PositiveInt = 2
    """Beams of its beam search."""
    repetition_penalty: PositiveFloat = 2.5
    """Its penalty for tokens that it has written before; 1: none."""


SIMPLET5_LEARNING_RATE = 1e-4
"""Written in the package, for all steps."""

# what the package SimpleT5 does, and cannot be told to do otherwise
_FIXED_IN_SIMPLET5: dict[str, tuple[Any, ...]] = {
    "gradient_accumulation": (1,),
    "gradient_checkpointing": (False,),
    "lora": (None,),
    "freeze_embeddings": (False,),
    "learning_rate": ("auto", SIMPLET5_LEARNING_RATE),
    "warmup_steps": ("auto", 0),
    "weight_decay": (0.01,),
    "max_grad_norm": ("auto", None),
    "loss_on_padding": (False,),
    "padding": ("auto", "max_tokens"),
    "precision": ("auto", "fp32"),
    "device": ("auto", "cpu", "cuda"),
    "report_to": ((),),
}


class LoraConfig(Section):
    """Adapters that are trained in place of the model's own weights (Hu et al. 2021).

    Adapters on all linear layers come close to full fine-tuning, those on the attention alone do
    not (Dettmers et al. 2023, "QLoRA"; Thinking Machines 2025, "LoRA Without Regret"); both find
    that the rank matters little on small data. Alpha 32 follows the latter and Hu et al. (GPT-2);
    0.05 is one of the dropout rates in QLoRA.
    """

    r: PositiveInt = 16
    """Rank of each adapter: its size, and what it can express."""
    alpha: PositiveInt = 32
    """An adapter's output counts `alpha / r` times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of an adapter's inputs that are dropped in training."""
    target: Literal["all-linear", "attention"] | LayerNames = "all-linear"
    """Layers that get adapters. `all-linear`: every linear layer but the output head; `attention`:
    the attention layers that peft names for the architecture; a list: the layers with these names,
    or with names that end in `.NAME`."""


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class TrainingConfig(Section):
    """How a model is fine-tuned."""

    backend: Literal["native", "simplet5"] = "native"
    """What trains and answers: `native`: tgsent's own loop; `simplet5`: for T5, the package
    SimpleT5 in an environment of its own, which `tgsent setup-simplet5` makes. The package always
    takes a constant learning rate of 1e-4 without warm-up or clipping, pads every text to
    `max_tokens`, cuts a long prompt at its end, and answers one text at a time, whatever
    `evaluation.batch_size` says."""
    init: Literal["pretrained", "random", "tiny"] = "pretrained"
    """`pretrained`; `random`: architecture and tokenizer of the model, fresh weights; `tiny`: a
    small built-in architecture of the same family, its tokenizer trained on the training split."""
    epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over the training split. 0: none, so that the model is scored as it is (zero-shot)."""
    batch_size: PositiveInt = 32
    """Texts per optimizer step."""
    gradient_accumulation: PositiveInt = 1
    """Parts in which a batch is computed, to save memory; the gradient stays that of the batch, but
    for dropout, which is drawn anew for each part."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer for the backward pass and compute the rest again: the
    same gradients in less memory and more time."""
    lora: LoraConfig | None = None
    """`{r: 16, alpha: 32, dropout: 0.05, target: all-linear}`, or some of these: train LoRA
    adapters on the linear layers, with everything else as it is, embeddings included, and merge
    them into the weights after training. Needs `pip install 'tgsent[lora]'`. For pretrained
    weights: beside random ones adapters learn next to nothing. `null`: train the model itself."""
    freeze_embeddings: bool = False
    """Leave the token embeddings as they are, and with them an output head that is tied to them
    (GPT-2, GPT-Neo, T5). A `prompt.start_token` that the tokenizer lacks would stay untrained, so
    that it is refused here and with `lora`; the padding token may, as nothing reads it."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Peak of the schedule. `auto`, causal models: 6.25e-5 up to 0.5 billion parameters, 2e-5 up to
    2 billion, 1e-5 above; 2e-4 with `lora`. Seq2seq models: 3e-4 up to 1 billion, 1e-4 above; 3e-4
    with `lora`. 1e-3 with `init: tiny`, 3e-4 with `init: random`, 1e-4 with `backend: simplet5`.
    The sources are in docs/recipes.md."""
    warmup_steps: NotNegativeFloat | Literal["auto"] = "auto"
    """Optimizer steps of linear warm-up before the linear decay; below 1: a share of all steps.
    `auto`: 0.1; none with `backend: simplet5`."""
    weight_decay: NotNegativeFloat = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    max_grad_norm: PositiveFloat | Literal["auto"] | None = "auto"
    """Gradients are scaled down to this norm. `null`: never. `auto`: 1.0; never with
    `backend: simplet5`."""
    loss: Literal["label", "full"] = "label"
    """Which tokens of a causal model's training text count: `label`: the label and the end token;
    `full`: the whole prompt as well. A seq2seq model is always trained on its completion."""
    loss_on_padding: bool = False
    """Count the padding as well, with `loss: full`: a fault of the article's recipe, here for the
    sake of comparison only."""
    max_tokens: PositiveInt = 512
    """Longest training text in tokens (seq2seq: longest prompt). A longer text loses its own end,
    never the rest of the prompt."""
    padding: Literal["auto", "longest", "max_tokens"] = "auto"
    """`longest`: batches of texts of about one length, padded to their longest; `max_tokens`:
    batches at random, every text padded to `max_tokens`, as in the article. `auto`: `longest`;
    `max_tokens` with `backend: simplet5`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the device computes it natively, else fp32; fp32 with `init: tiny`, as
    tiny matrices gain nothing from bf16."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`: the accelerator, where there is one."""
    report_to: Annotated[tuple[Tracker, ...], Field(strict=False)] = ()
    """Trackers that are told loss, learning rate and scores while training goes on: `tensorboard`
    (in the folder `trackers` of each trial), `wandb`, `mlflow`, `trackio`; each needs
    `pip install 'tgsent[NAME]'`, and its own settings and logins."""
    simplet5: SimpleT5Config = SimpleT5Config()
    """Settings of the package, with `backend: simplet5` only."""

    @property
    def package(self) -> SimpleT5Config | None:
        """Settings of the package that trains and predicts; None with `backend: native`."""
        return None if self.backend == "native" else self.simplet5

    @field_validator(*_FIXED_IN_SIMPLET5)
    @classmethod
    def _the_package_can_do_it(cls, value: Any, info: ValidationInfo) -> Any:
        allowed = _FIXED_IN_SIMPLET5[str(info.field_name)]
        if info.data.get("backend") == "simplet5" and value not in allowed:
            names = " or ".join(json.dumps(one).strip('"') for one in allowed)
            raise PydanticCustomError(
                "backend", "must be {names} with `backend: simplet5`", {"names": names}
            )
        return value

    @field_validator("epochs")
    @classmethod
    def _the_package_trains(cls, epochs: int, info: ValidationInfo) -> int:
        if info.data.get("backend") == "simplet5" and epochs == 0:
            raise PydanticCustomError("backend", "must be 1 or more with `backend: simplet5`")
        return epochs

    @field_validator("simplet5")
    @classmethod
    def _the_package_is_meant(cls, section: SimpleT5Config, info: ValidationInfo) -> SimpleT5Config:
        if info.data.get("backend") == "native" and section != SimpleT5Config():
            raise PydanticCustomError("simplet5", "counts only with `backend: simplet5`")
        return section

    @model_validator(mode="after")
    def _padding_counts_only_in_full(self) -> Self:
        if self.loss_on_padding and self.loss != "full":
            raise PydanticCustomError("loss_on_padding", "counts only with `loss: full`")
        return self

    @field_validator("warmup_steps")
    @classmethod
    def _whole_steps(cls, steps: float | Literal["auto"]) -> float | Literal["auto"]:
        if steps != "auto" and steps >= 1 and steps != int(steps):
            raise PydanticCustomError("warmup", "must be a whole number of steps, or below 1")
        return steps


class EvaluationConfig(Section):
    """How the held-out texts are classified."""

    decoding: Literal["free", "constrained", "score"] = "free"
    """`free`: greedy text, then parsed; `constrained`: greedy over the label words only; `score`:
    the likeliest label word, with probabilities."""
    calibration: Literal["auto", "none", "contextual"] = "auto"
    """`contextual`, with `decoding: score`: divide each label's probability by its mean probability
    for content-free texts (`N/A`, `[MASK]` and the empty text), then normalize (Zhao et al. 2021,
    https://arxiv.org/abs/2102.09690); `none`: no correction. `auto`: `contextual` for a model that
    is not trained (`training.epochs: 0`) with `decoding: score`, else `none`."""
    batch_size: PositiveInt = 64
    """Texts classified at once; the answers do not depend on it."""

    @model_validator(mode="after")
    def _calibration_needs_probabilities(self) -> Self:
        if self.calibration == "contextual" and self.decoding != "score":
            raise PydanticCustomError("calibration", "contextual needs `decoding: score`")
        return self


def resolve_calibration(
    calibration: str, decoding: str, epochs: int
) -> Literal["none", "contextual"]:
    """Resolve `evaluation.calibration: auto` from the decoding and the number of epochs."""
    if calibration == "auto":
        return "contextual" if decoding == "score" and epochs == 0 else "none"
    return "contextual" if calibration == "contextual" else "none"


class OutputConfig(Section):
    """Where results go."""

    dir: Annotated[str, Field(min_length=1)] = "runs"
    """Folder of the run folders."""
    save_model: Literal["none", "first", "all"] = "none"
    """Of which trials the fine-tuned model is kept."""
    checkpoint_minutes: PositiveFloat | None = 5.0
    """The most training that a kill may cost: the state of a trial's training is written this
    often, and at every epoch's end; it takes three times the size of the weights, and is removed
    when the trial is finished. `null`: never. The package SimpleT5 knows no checkpoints."""
    escape_formulas: bool = True
    """Write an apostrophe before a cell of a CSV file that a spreadsheet could run: one that begins
    with `=`, `+`, `-`, `@`, a tab or a line break, or with apostrophes and then one of these.
    Taking one apostrophe away from such cells gives the exact text again. `false`: the exact
    text."""

    @field_validator("dir")
    @classmethod
    def _dir_can_be_a_path(cls, name: str) -> str:
        if "\0" in name:
            raise PydanticCustomError("dir", "must not hold the character NUL")
        return name


class EngineConfig(Section):
    """What carries out the trials, and what each gets; of scores it changes the last digits."""

    kind: Literal["local", "ray"] = "local"
    """`local`: one trial after the other, in this process; `ray`: many at once, on the cluster that
    `RAY_ADDRESS` names, else on this machine. Needs `pip install 'tgsent[ray]'`."""
    cpus_per_trial: PositiveInt | None = None
    """Cores, and threads, for each trial. `null`: as many as PyTorch would take on this machine."""
    gpus_per_trial: NotNegativeFloat = 0
    """GPUs for each trial, with `kind: ray`; below 1: trials share one; 0: trials run on CPUs."""
    max_concurrent: PositiveInt | None = None
    """Most trials at once, with `kind: ray`. `null`: as many as the cluster has room for."""


class ModelConfig(Section):
    """One model of the comparison, and where it departs from the common recipe."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    model: Annotated[str, Field(min_length=1)]
    """Alias (`gpt2`, `t5`, `qwen3` and others; the README lists them), Hub id, folder that holds a
    model, or `.gguf` file (`pip install 'tgsent[gguf]'`); the first two may have `@REVISION` behind
    them. Two names are reference rows, fitted on the same training texts: `majority` gives the
    commonest label, `tfidf` is logistic regression on weighted words and characters."""
    as_: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, alias="as"
    )
    """Its name in tables and folders. `null`: the last part of `model`, and ` (simplet5)` after it
    with `training.backend: simplet5`."""
    prompt: dict[str, Any] = {}
    """Keys of `prompt` that differ for this model."""
    training: dict[str, Any] = {}
    """Keys of `training` that differ for this model."""
    evaluation: dict[str, Any] = {}
    """Keys of `evaluation` that differ for this model."""

    def name(self, backend: str) -> str:
        """Give its name in tables and folders, for the backend that it is trained with."""
        last_part = self.model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        way = "" if backend == "native" or self.model in BASELINES else f" ({backend})"
        return self.as_ or re.sub(r"[^\w.@-]", "-", last_part) + way

    def varied(self, settings: Mapping[str, Any], name: str) -> ModelConfig:
        """Give a variant of this model, under another name; `settings` are by dotted key."""
        values = self.model_dump()
        for key, value in settings.items():
            *sections, last = key.split(".")
            holder = values
            for section in sections:
                holder[section] = dict(holder.get(section) or {})
                holder = holder[section]
            holder[last] = value
        return ModelConfig.model_validate({**values, "as_": name})

    @field_validator("as_")
    @classmethod
    def _name_is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (re.search(r'[/\\:*?"<>|\x00-\x1f]', name) or name.startswith(".")):
            raise PydanticCustomError(
                "as", 'must be a folder name, without any of / \\ : * ? " < > |'
            )
        return name


class SweepRange(Section):
    """Numbers to draw from, whole ones where both ends are, of which a grid takes all."""

    low: float | int
    """Smallest."""
    high: float | int
    """Largest."""
    log: bool = False
    """Draw the logarithm evenly, as suits a learning rate."""

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise PydanticCustomError(
                "range", "must have low below high, and both above 0 with `log: true`"
            )
        return self

    @property
    def is_whole(self) -> bool:
        """Tell whether it is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


SweptValues = Annotated[list[Any], Field(min_length=1)] | SweepRange


class SweepConfig(Section):
    """Variants of each model, compared on texts that no trial tests; only the best is tested."""

    keys: Annotated[dict[str, SweptValues], Field(min_length=1)]
    """What varies: dotted keys of `prompt`, `training` and `evaluation`, or `model`, each with a
    list of values or a range `{low: 1.0e-5, high: 1.0e-3, log: true}`."""
    method: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every combination; `random`: combinations drawn at random; `tpe`: each drawn by what
    the ones before it scored (Optuna's tree-structured Parzen estimator; needs
    `pip install 'tgsent[tpe]'`)."""
    variants: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    """How many combinations `random` and `tpe` try, for each model; a grid tries all."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the texts that every trial trains on which is held out to compare the variants."""
    halving: Annotated[int, Field(ge=2)] | None = None
    """Successive halving: all variants are trained on part of the texts, the best one in so many of
    them goes on to so many times as many texts, until few enough are left to train on all. `null`:
    every variant is trained on all."""
    seed: Seed = 1
    """Of the validation split, and of what is drawn."""

    @model_validator(mode="after")
    def _method_has_what_it_needs(self) -> Self:
        if (self.variants is None) != (self.method == "grid"):
            raise PydanticCustomError(
                "sweep", "`variants` goes with the methods random and tpe, which need it"
            )
        if self.method == "tpe" and self.halving:
            raise PydanticCustomError(
                "sweep", "`halving` goes with grid and random: tpe tries one after the other"
            )
        for key, values in self.keys.items():
            if self.method == "grid" and isinstance(values, SweepRange) and not values.is_whole:
                raise PydanticCustomError(
                    "sweep", "`{key}`: a grid takes a list, or a range of whole numbers",
                    {"key": key},
                )  # fmt: skip
            if key in {"training.device", "training.report_to", "evaluation.batch_size"}:
                raise PydanticCustomError("sweep", "`{key}` changes no score", {"key": key})
            if key != "model" and key.split(".")[0] not in _SWEPT:
                raise PydanticCustomError(
                    "sweep",
                    "`{key}` cannot vary: variants are compared on the same texts; keys of prompt,"
                    " training and evaluation can, and `model` (label words are `prompt.words`)",
                    {"key": key},
                )
        if self.method == "grid" and (n := math.prod(map(_count, self.keys.values()))) > _MOST:
            raise PydanticCustomError(
                "sweep",
                "a grid of {n} variants is too large; `method: random` draws some of them",
                {"n": f"{n:,}"},
            )
        return self


def _count(values: list[Any] | SweepRange) -> int:
    if isinstance(values, SweepRange):
        return int(values.high) - int(values.low) + 1
    return len(values)


class RunConfig(Section):
    """The whole config of a run."""

    name: Annotated[
        str, Field(max_length=100, pattern=r'^[^./\\:*?"<>|\x00-\x1f][^/\\:*?"<>|\x00-\x1f]*$')
    ] = "default"
    """Name of the run and of its folder; a config file without one lends its own name."""
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1, strict=False)] = (
        ModelConfig(model="gpt2"),
        ModelConfig(model="gpt-neo"),
        ModelConfig(model="t5"),
    )
    """Models to compare: alias, Hub id or folder; or a mapping
    `{model: ..., as: ..., prompt: {...}, training: {...}, evaluation: {...}}` to override per
    model."""
    trials: Annotated[int, Field(ge=1, le=_MOST)] = 3
    """Number of trials, each with a split of its own that all models share; 10,000 at most."""
    seed: Seed = 1
    """Trial k splits and trains with `seed + k - 1`."""
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    output: OutputConfig = OutputConfig()
    sweep: SweepConfig | None = None
    """`{keys: {...}}`: variants of each model are compared on texts that no trial tests, and the
    trials are run with the best. `null`: the settings as they are."""

    @field_validator("models", mode="before")
    @classmethod
    def _plain_names(cls, models: Any) -> Any:
        if isinstance(models, list):
            return [{"model": m} if isinstance(m, str) else m for m in models]
        return models

    @model_validator(mode="after")
    def _each_model_once(self) -> Self:
        seen: set[str] = set()
        for name in self.names:
            if name.casefold() in seen:
                raise PydanticCustomError(
                    "models",
                    'two models are called "{name}"; give one of them another name with `as`',
                    {"name": name},
                )
            seen.add(name.casefold())
        return self

    @model_validator(mode="after")
    def _gpus_are_asked_for(self) -> Self:
        on_gpus = self.training.device in {"cuda", "mps"}
        if self.engine.kind == "ray" and on_gpus and not self.engine.gpus_per_trial:
            raise PydanticCustomError(
                "engine", "with `kind: ray` a `training.device` of {device} needs `gpus_per_trial`",
                {"device": self.training.device},
            )  # fmt: skip
        return self

    @property
    def names(self) -> list[str]:
        """Names of the models in tables and folders."""
        common = self.training.backend
        return [model.name(model.training.get("backend", common)) for model in self.models]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output.dir) / self.name

    def trial_specs(self, labels: Sequence[str]) -> list[TrialSpec]:
        """All trials, model by model, for data with these label words.

        Raises ConfigError where `prompt.words` are not those of the labels.
        """
        labels = tuple(labels)
        recipes = [
            (name, model.model, _override(self.prompt, model.prompt),
             _override(self.training, model.training),
             _override(self.evaluation, model.evaluation))
            for name, model in zip(self.names, self.models, strict=True)
        ]  # fmt: skip
        for name, _, prompt, _, _ in recipes:
            if labels and prompt.words is not None and prompt.words.keys() != set(labels):
                raise ConfigError(
                    f"prompt.words of {name}: must name the labels {', '.join(labels)}, and does"
                    f" name {', '.join(prompt.words)}"
                )
        return [
            TrialSpec(
                model=model,
                name=name,
                trial=trial,
                seed=self.seed + trial - 1,
                labels=labels,
                prompt=prompt,
                training=training,
                evaluation=evaluation,
                save_model=model not in BASELINES
                and (
                    self.output.save_model == "all"
                    or (self.output.save_model == "first" and trial == 1)
                ),
                checkpoint_minutes=self.output.checkpoint_minutes,
                escape_formulas=self.output.escape_formulas,
            )
            for name, model, prompt, training, evaluation in recipes
            for trial in range(1, self.trials + 1)
        ]

    def dump(self) -> dict[str, Any]:
        """Give the config as plain values that `load` takes back unchanged."""
        values = self.model_dump(mode="json", by_alias=True)
        for model in values["models"]:
            for key in ("as", "prompt", "training", "evaluation"):
                if not model[key]:
                    del model[key]
        values["models"] = [m["model"] if len(m) == 1 else m for m in values["models"]]
        return values

    def to_yaml(self) -> str:
        """Give the config as YAML that round-trips."""
        return yaml_source.dump(self.dump())


class TrialSpec(Section):
    """The recipe of one trial of one model: all, beside the split, that its result depends on."""

    model: str
    name: str
    trial: int
    seed: int
    labels: tuple[str, ...]
    prompt: PromptConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    save_model: bool = False
    checkpoint_minutes: float | None = None
    escape_formulas: bool = True
    weights: str = ""
    """Hash of the local model that training starts from; empty for a model of the Hub."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all settings that can change the score."""
        canonical = json.dumps(self.settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """Return all settings that can change the score, as plain values."""
        settings = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "trial": True,
                "save_model": True,
                "checkpoint_minutes": True,
                "escape_formulas": True,
                "training": {"device", "report_to"},
                "evaluation": {"batch_size"},
            },
        )
        if not self.weights:  # absent without a local model, as in earlier versions
            del settings["weights"]
        settings["evaluation"]["calibration"] = self.calibration
        earlier.leave_out(settings)
        return settings

    def with_weights(self, sha256: str) -> TrialSpec:
        """Return the same recipe, starting from weights with this hash."""
        # not `model_copy`, which would keep the fingerprint that is cached
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**values, "weights": sha256})

    @property
    def needs_files(self) -> bool:
        """Check whether the model needs files, of the Hub or of a folder."""
        return self.training.init != "tiny" and not self.is_baseline

    @property
    def starts_from_weights(self) -> bool:
        """Check whether the model starts from given weights."""
        return self.training.init == "pretrained" and not self.is_baseline

    @property
    def calibration(self) -> Literal["none", "contextual"]:
        """Return `evaluation.calibration` as resolved for this trial."""
        if self.is_baseline:
            return "none"
        evaluation = self.evaluation
        return resolve_calibration(
            evaluation.calibration, evaluation.decoding, self.training.epochs
        )

    @property
    def is_baseline(self) -> bool:
        """Tell a reference row from a language model."""
        return self.model in BASELINES

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.name} trial {self.trial}"


_SWEPT: dict[str, type[Section]] = {
    "prompt": PromptConfig, "training": TrainingConfig, "evaluation": EvaluationConfig,
}  # fmt: skip
"""Sections that models and variants may override."""


def label_words_problem(
    words: Sequence[str], advice: str = "other words with data.labels"
) -> str | None:
    """Say why these label words cannot be told apart in generated text, or None if they can."""
    for word in words:
        if not word.strip() or word != " ".join(word.split()):
            return f"the label word {word!r} is empty or has white space at an end or doubled"
    for one, other in combinations(words, 2):
        if one == other:
            return f'the label word "{one}" stands twice'
        short, long = sorted((one, other), key=len)
        if long.startswith(short):
            return f'the label word "{short}" is the beginning of "{long}": give them {advice}'
    return None


def load(
    config: str | None = None,
    *,
    models: Sequence[str] = (),
    trials: int | None = None,
    output_dir: str | None = None,
    engine: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Read a config file or a shipped config, apply what the command line says, and check it all.

    `overrides` are `KEY=VALUE` with a dotted key. Raises ConfigError that lists every mistake.
    """
    source = _read(config or "default")
    values = source.value
    if not isinstance(values, dict):
        raise ConfigError(f"{source.name}: a config is a mapping of keys, such as `trials: 3`")
    values.setdefault("name", re.sub(r'[\\:*?"<>|]', "-", Path(config or "default").stem))
    values.setdefault("models", [m.model for m in RunConfig.model_fields["models"].default])

    command: dict[yaml_source.Path, str] = {}  # what the command line says, by key
    if models:
        values["models"] = _pick_models(values["models"], models)
        command["models",] = "--model"
    if trials is not None:
        values["trials"] = trials
        command["trials",] = "--trials"
    if output_dir is not None:
        _assign(values, ("output", "dir"), output_dir, "--output")
        command["output", "dir"] = "--output"
    if engine is not None:
        _assign(values, ("engine", "kind"), engine, "--engine")
        command["engine", "kind"] = "--engine"
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"--set {override}: must be KEY=VALUE, for example --set training.epochs=3"
            )
        path = _dotted(key)
        _assign(values, path, yaml_source.parse_scalar(text), f"--set {override}")
        command[path] = f"--set {key}"
    return _validate(values, source, command)


def _read(config: str) -> Source:
    if config in SHIPPED:
        return yaml_source.parse(shipped(f"configs/{config}.yaml").decode(), f"config {config}")
    path = Path(config)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{config}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        hint = ""
        if path.suffix not in {".yaml", ".yml"}:
            near = difflib.get_close_matches(config, SHIPPED, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; shipped: {', '.join(SHIPPED)}"
        raise ConfigError(f"{config}: cannot read this config: {error.strerror}{hint}") from None
    except ValueError as error:
        raise ConfigError(f"{config!r}: cannot read this config: {error}") from None
    return yaml_source.parse(text, config)


def shipped(name: str) -> bytes:
    """Read a file that is shipped with tgsent: from the wheel, or from a source checkout."""
    inside = resources.files("tgsent") / "_shipped" / name
    if inside.is_file():
        return inside.read_bytes()
    return (Path(__file__).parents[3] / name).read_bytes()


def _pick_models(listed: Any, names: Sequence[str]) -> list[Any]:
    """Replace the config's list; a model that the list holds keeps its own settings there."""
    known: dict[str, Any] = {}
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict):
            for key in ("model", "as"):
                if isinstance(item.get(key), str):
                    known.setdefault(item[key], item)
    return [known.get(name, name) for name in names]


def _dotted(key: str) -> yaml_source.Path:
    if key.startswith("sweep.keys."):  # what follows is the name of one key
        return ("sweep", "keys", key.removeprefix("sweep.keys."))
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _assign(values: Any, path: yaml_source.Path, value: Any, origin: str) -> None:
    """Set one key, making the mappings above it; the check of the whole names unknown keys."""
    for depth, part in enumerate(path[:-1]):
        if isinstance(values, list) and isinstance(part, int) and part < len(values):
            item = values[part]
            # a copy, as a YAML alias may stand for the same mapping elsewhere
            values[part] = {"model": item} if isinstance(item, str) else copy.copy(item)
            values = values[part]
        elif isinstance(values, dict):
            values[part] = {} if values.get(part) is None else copy.copy(values[part])
            values = values[part]
        if not isinstance(values, dict | list):
            dotted = ".".join(map(str, path[: depth + 1]))
            raise ConfigError(f"{origin}: {dotted} holds no keys")
    last = path[-1]
    if isinstance(values, dict):
        values[last if not isinstance(last, int) else str(last)] = value
    elif isinstance(last, int) and last < len(values):
        values[last] = value
    else:
        raise ConfigError(f"{origin}: {'.'.join(map(str, path[:-1]))} has no item {last}")


def _override(section: _S, changes: Mapping[str, Any]) -> _S:
    return type(section).model_validate(_merge(section.model_dump(), changes))


def _merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change values, those of a section within the section key by key."""
    merged = {**values, **changes}
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            merged[key] = _merge(values[key], change)
    return merged


class _Mistake(NamedTuple):
    path: yaml_source.Path
    message: str
    value: str
    """The wrong value, where it helps to show it."""


def _validate(values: Any, source: Source, command: Mapping[yaml_source.Path, str]) -> RunConfig:
    mistakes: list[_Mistake] = []
    config = None
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        mistakes += _mistakes(error, RunConfig)
    mistakes += _model_mistakes(values, config)
    mistakes += _simplet5_mistakes(values)
    if config and not mistakes:
        mistakes += _sweep_mistakes(config)
    if mistakes or config is None:
        messages: dict[tuple[yaml_source.Path, str], list[str]] = {}
        for path, message, value in dict.fromkeys(mistakes):
            messages.setdefault((path, value), []).append(message)
        lines = []
        for (path, value), alternatives in messages.items():
            text = " or ".join(alternatives).replace(" or must be ", " or ")
            origin = _origin(path, source, command)
            lines.append(f"  {'.'.join(map(str, path))} ({origin}): {text}{value}")
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        if len(lines) > _MISTAKES_SHOWN:
            lines[_MISTAKES_SHOWN:] = [f"  and {len(lines) - _MISTAKES_SHOWN} more"]
        raise ConfigError("\n".join([f"{source.name}: {count} in the config", *lines]))
    return config


def _origin(path: yaml_source.Path, source: Source, command: Mapping[yaml_source.Path, str]) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in command:
            return command[path[:length]]
    if path not in source.lines:
        for key, flag in command.items():
            if key[: len(path)] == path:
                return flag
    return source.where(path)


def _model_mistakes(values: Any, config: RunConfig | None) -> Iterable[_Mistake]:
    """Check what models override, even where other parts of the config are wrong."""
    models = values.get("models")
    for index, item in enumerate(models if isinstance(models, list) else []):
        for key, section in _SWEPT.items():
            changes = item.get(key) if isinstance(item, dict) else None
            if not isinstance(changes, dict):
                continue
            common = values.get(key)
            base = common if isinstance(common, dict) else {}
            if config:
                base = getattr(config, key).model_dump()
            try:
                section.model_validate(_merge(base, changes))
            except ValidationError as error:
                for mistake in _mistakes(error, section):
                    if config or mistake.path[0] in changes:
                        yield mistake._replace(path=("models", index, key, *mistake.path))


def _sweep_mistakes(config: RunConfig) -> Iterable[_Mistake]:
    """Check every value that varies, for every model."""
    if config.sweep is None:
        return
    for model in config.models:
        for key, values in config.sweep.keys.items():
            listed = [values.low, values.high] if isinstance(values, SweepRange) else values
            for value in listed:
                for problem in _variant_problems(config, model, {key: value}, alone=True):
                    yield _Mistake(("sweep", "keys", key), problem, f", not {_short(value)}")


def check_variant(config: RunConfig, model: ModelConfig, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings that do not go together."""
    for problem in _variant_problems(config, model, settings):
        shown = ", ".join(f"{key}={_short(value)}" for key, value in settings.items())
        raise ConfigError(f"sweep: the variant {shown}: {problem}")


# kinds of mistakes that depend on another key, which may vary as well
_TOGETHER = {"backend", "chat", "simplet5", "loss_on_padding", "calibration"}


def _variant_problems(
    config: RunConfig, model: ModelConfig, settings: Mapping[str, Any], *, alone: bool = False
) -> Iterable[str]:
    """Say what is wrong with settings; `alone`: whatever the other keys are."""
    mistakes: list[tuple[str, _Mistake]] = []
    try:
        varied = model.varied(settings, "variant")
    except ValidationError as error:
        mistakes += [("", mistake) for mistake in _mistakes(error, ModelConfig)]
    else:
        for key, section in _SWEPT.items():
            values = _merge(getattr(config, key).model_dump(), getattr(varied, key))
            try:
                section.model_validate(values)
            except ValidationError as error:
                mistakes += [(f"{key}.", m) for m in _mistakes(error, section, alone=alone)]
        if not (mistakes or alone):
            whole = {**config.dump(), "models": [varied.model_dump(by_alias=True)]}
            mistakes += [("", mistake) for mistake in _simplet5_mistakes(whole)]
    for prefix, mistake in mistakes:
        path = prefix + ".".join(map(str, mistake.path))
        yield mistake.message if path in settings else f"{path}: {mistake.message}"


def _simplet5_mistakes(values: Any) -> Iterable[_Mistake]:
    """Name what other sections ask of the package SimpleT5 that it cannot do."""
    models = values.get("models")
    for index, item in enumerate(models if isinstance(models, list) else []):
        if _setting(values, index, "training", "backend")[1] != "simplet5":
            continue
        name = item.get("model") if isinstance(item, dict) else item
        alias = alias_of(name) if isinstance(name, str) else None
        if alias and ALIASES[alias].model_type != "t5":
            message = "must be a T5 model with `training.backend: simplet5`"
            yield _Mistake(("models", index, "model"), message, f", not {_short(name)}")
        for section, key, allowed in (
            ("prompt", "start_token", None),
            ("prompt", "template", "plain"),
            ("prompt", "shots", 0),
            ("evaluation", "decoding", "free"),
        ):
            path, value = _setting(values, index, section, key)
            if value is not None and value != allowed:
                shown = "null" if allowed is None else allowed
                message = f"must be {shown} with `training.backend: simplet5`"
                yield _Mistake(path, message, f", not {_short(value)}")


def _setting(values: Any, index: int, section: str, key: str) -> tuple[yaml_source.Path, Any]:
    """Give where a setting of a model stands, and its value: its own, or the common one."""
    for path, holder in ((("models", index), values["models"][index]), ((), values)):
        settings = holder.get(section) if isinstance(holder, dict) else None
        if isinstance(settings, dict) and key in settings:
            return (*path, section, key), settings[key]
    return (section, key), None


# pydantic's own messages, in the words of people who write YAML
_MESSAGES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "missing": "this key is needed",
    "model_type": "must be a mapping of keys",
    "string_pattern_mismatch": 'must be a folder name, without any of / \\ : * ? " < > |'
    " and without a dot at the beginning",
    "string_too_long": "must not be longer than 100 characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a text",
    "too_short": "must name at least one",
    "tuple_type": "must be a list",
}


def _mistakes(
    error: ValidationError, section: type[Section], *, alone: bool = False
) -> list[_Mistake]:
    return [
        _describe(one, section)
        for one in error.errors()
        # pydantic counts only the items that are right themselves
        if not (one["type"] == "too_short" and one["input"])
        and not (alone and one["type"] in _TOGETHER)
    ]


def _describe(error: ErrorDetails, section: type[Section]) -> _Mistake:
    """Turn one of pydantic's errors into a path in the YAML and a sentence."""
    kind, path = error["type"], error["loc"]
    if kind in {"extra_forbidden", "invalid_key"}:
        *above, last = path  # the key itself may look like anything
        path = (*(part for part in above if not _is_union_branch(part)), last)
        keys = _keys_beside(path, section)
        near = difflib.get_close_matches(str(path[-1]), keys, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(keys)}"
        return _Mistake(path, f"unknown key; {hint}", "")
    path = tuple(part for part in path if not _is_union_branch(part))
    message = _MESSAGES.get(kind, error["msg"].replace("Input should be", "must be"))
    if kind in {"test_fraction", "loss_on_padding", "calibration"}:  # found by comparing two keys
        return _Mistake((*path, kind), message, "")
    if kind in {"chat", "labels", "models", "missing", "simplet5", "sweep", "range", "engine"}:
        return _Mistake(path or (kind,), message, "")
    return _Mistake(path, message, f", not {_short(error['input'])}")


def _is_union_branch(part: str | int) -> bool:
    """Tell pydantic's names of union branches, which are no keys, from keys."""
    return isinstance(part, str) and (
        "[" in part
        or part.startswith("function-")
        or part in {"float", "int", "str"}
        or part in {"constrained-float", "constrained-int", "constrained-str"}
    )


def _keys_beside(path: yaml_source.Path, top: type[Section]) -> list[str]:
    section: type[BaseModel] = top
    for part in path[:-1]:
        if part == "models" or isinstance(part, int):
            section = ModelConfig
            continue
        if part == "keys":
            section = SweepRange
            continue
        field = section.model_fields.get(str(part))
        section = (section_of(field.annotation) if field else None) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Give the section that a field of this type holds, or may hold, or None."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """Show a wrong value briefly, however large it is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return reprlib.repr(value)
