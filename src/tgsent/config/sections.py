"""The sections of a config: frozen, with defaults and checks of their own.

Every field carries its documentation as the docstring below it; `docs/configuration.md` and
`configs/default.yaml` are written from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from tgsent.config.messages import ONE_OF, fault, faults, mistakes, must

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# scikit-learn and NumPy take seeds of 32 bits
Seed = Annotated[int, Field(ge=0, lt=2**32 - 10_000)]
Name = Annotated[str, Field(min_length=1)]
Column = Annotated[Name | Annotated[int, Field(ge=0)] | None, ONE_OF]
LayerNames = Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]


def label_words_problem(words: Sequence[str]) -> str | None:
    """Return why label words cannot be told apart in generated text, or None if they can."""
    for word in words:
        if not word or word != " ".join(word.split()):
            return f"the label word {word!r} is empty or has white space at an end or doubled"
    for word, other in permutations(words, 2):
        if word == other:
            return f'the label word "{word}" occurs twice'
        if other.startswith(word):
            return f'the label word "{word}" is the beginning of "{other}"'
    return None


def label_value(value: object) -> str:
    """Write a label value as a text file has it: `1`, `true`, `spam`."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _label_words(words: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Accept `0: negative` as well as `"0": negative`, and refuse words that look alike."""
    if isinstance(words, dict):
        words = {
            label_value(value): str(word) if type(word) in (int, float) else word
            for value, word in words.items()
        }
    found = handler(words)
    if problem := label_words_problem(tuple(found.values())):
        raise fault(problem)
    return found


LabelWords = Annotated[dict[str, str], WrapValidator(_label_words)]


class Section(BaseModel):
    """A part of the config: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="wrap")
    @classmethod
    def _describe_mistakes(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Put pydantic's errors in the words of the config."""
        try:
            return handler(values)
        except ValidationError as error:
            keys = [field.alias or name for name, field in cls.model_fields.items()]
            raise faults(mistakes(error, keys)) from None


class DataConfig(Section):
    """Which texts, and how they are sampled and split."""

    path: Name = "sentiment140"
    """`sentiment140`; `sample`, the made-up tweets that are shipped; or a .csv, .tsv, .jsonl or
    .parquet file, relative to the working folder."""
    text_column: Column = None
    """Name of the column with the texts, or its position from 0 in a CSV or TSV file without a
    header. `null`: `text`, or the column of the known layout."""
    label_column: Column = None
    """The same for the labels. `null`: `label`, or the column of the known layout."""
    labels: LabelWords | None = None
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


class PromptConfig(Section):
    """How a text becomes a prompt and a label its completion."""

    input: Annotated[
        str,
        must("contain {text} exactly once", lambda prompt: prompt.count("{text}") == 1),
        must(
            "not end in a space: write it at the beginning of prompt.target",
            lambda prompt: not prompt.endswith((" ", "\t")),
        ),
    ] = "Tweet: {text}\nSentiment:"
    """The prompt; `{text}` stands for the text, every other character for itself."""
    target: Annotated[
        str, must("contain {label} exactly once", lambda target: target.count("{label}") == 1)
    ] = " {label}"
    """The completion, which follows the prompt without anything between. A space between the two
    belongs here: language models have one token for a space and the word after it."""
    words: LabelWords | None = None
    """`{label: word}`: the word that `target` uses for each label, for this model or variant only.
    Generated words are mapped back to labels, and the labels are scored. `null`: the labels
    themselves, which `data.labels` names for all."""
    template: Literal["plain", "chat"] = "plain"
    """`plain`: the prompt as it is; `chat`: the prompt is a user's turn in the tokenizer's own chat
    template, and the completion, stripped of whitespace, is the assistant's answer, for models
    tuned to follow instructions. Thinking is switched off where the template supports it."""
    start_token: Name | None = None
    """Special token before the prompt, added to the vocabulary where it is new. `null`: the
    tokenizer's own beginning-of-text token where it has one (GPT-2 and GPT-Neo), else none (T5)."""
    shots: Annotated[int, Field(ge=0)] = 0
    """Worked examples before every prompt (few-shot): training texts with their labels, of every
    label about as many, drawn with the trial's seed."""

    @model_validator(mode="after")
    def _a_chat_starts_by_itself(self) -> Self:
        if self.template == "chat" and self.start_token is not None:
            raise fault("`start_token` must be null with `template: chat`", is_conflict=True)
        return self

    def word(self, label: str) -> str:
        """Return what stands for a label."""
        return label if self.words is None else self.words[label]


class SimpleT5Config(Section):
    """Settings of the package SimpleT5, beside the keys that it shares with `backend: native`."""

    target_max_tokens: Annotated[int, Field(ge=2)] = 200
    """Length in tokens that labels are padded to in training, and at which generation stops."""
    num_beams: PositiveInt = 2
    """Beams of its beam search."""
    repetition_penalty: PositiveFloat = 2.5
    """Its penalty for tokens that it has written before; 1: none."""


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
    target: Annotated[Literal["all-linear", "attention"] | LayerNames, ONE_OF] = "all-linear"
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
    `max_tokens`, truncates a long prompt at its end, and answers one text at a time, whatever
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
    them into the weights after training. Needs `pip install 'tgsent[lora]'`. Use it with
    pretrained weights: with random weights, adapters learn almost nothing. `null`: train the model
    itself."""
    freeze_embeddings: bool = False
    """Leave the token embeddings as they are, and with them an output head that is tied to them
    (GPT-2, GPT-Neo, T5). With this or `lora`, a `prompt.start_token` that the tokenizer lacks is
    refused, because it would stay untrained."""
    learning_rate: Annotated[PositiveFloat | Literal["auto"], ONE_OF] = "auto"
    """Peak of the schedule. `auto`, causal models: 6.25e-5 up to 0.5 billion parameters, 2e-5 up to
    2 billion, 1e-5 above; 2e-4 with `lora`. Seq2seq models: 3e-4 up to 1 billion, 1e-4 above; 3e-4
    with `lora`. 1e-3 with `init: tiny`, 3e-4 with `init: random`, 1e-4 with `backend: simplet5`.
    The sources are in docs/recipes.md."""
    warmup_steps: Annotated[
        NotNegativeFloat | Literal["auto"],
        ONE_OF,
        must(
            "be a whole number of steps, or below 1",
            lambda steps: steps == "auto" or steps < 1 or steps == int(steps),
        ),
    ] = "auto"
    """Optimizer steps of linear warm-up before the linear decay; below 1: a share of all steps.
    `auto`: 0.1; none with `backend: simplet5`."""
    weight_decay: NotNegativeFloat = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    max_grad_norm: Annotated[PositiveFloat | Literal["auto"] | None, ONE_OF] = "auto"
    """Gradients are scaled down to this norm. `null`: never. `auto`: 1.0; never with
    `backend: simplet5`."""
    loss: Literal["label", "full"] = "label"
    """Which tokens of a causal model's training text count: `label`: the label and the EOS token;
    `full`: the whole prompt as well. A seq2seq model is always trained on its completion."""
    loss_on_padding: bool = False
    """Count the padding as well, with `loss: full`: an error of the article, to compare with."""
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
    """Trackers that receive the loss, the learning rate and the scores during training:
    `tensorboard` (in the folder `trackers` of each trial), `wandb`, `mlflow`, `trackio`; each needs
    `pip install 'tgsent[NAME]'`, and its own settings and logins."""
    simplet5: SimpleT5Config = SimpleT5Config()
    """Settings of the package, with `backend: simplet5` only."""

    @property
    def package(self) -> SimpleT5Config | None:
        """Settings of the package that trains and predicts; None with `backend: native`."""
        return None if self.backend == "native" else self.simplet5

    def native_settings(self) -> dict[str, JsonValue]:
        """Return the settings as plain values, without the sections of packages."""
        return self.model_dump(mode="json", exclude={"simplet5"})

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        if self.backend == "native" and self.simplet5 != SimpleT5Config():
            raise fault("counts only with `backend: simplet5`", "simplet5", is_conflict=True)
        if self.loss_on_padding and self.loss != "full":
            raise fault("counts only with `loss: full`", "loss_on_padding", is_conflict=True)
        return self


class EvaluationConfig(Section):
    """How the held-out texts are classified."""

    decoding: Literal["free", "constrained", "score"] = "free"
    """`free`: greedy text, then parsed; `constrained`: greedy over the label words only; `score`:
    the most likely label word, with probabilities."""
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
            raise fault("contextual needs `decoding: score`", "calibration", is_conflict=True)
        return self


def resolve_calibration(
    calibration: Literal["auto", "none", "contextual"], decoding: str, epochs: int
) -> Literal["none", "contextual"]:
    """Resolve `evaluation.calibration: auto` from the decoding and the number of epochs."""
    if calibration == "auto":
        return "contextual" if decoding == "score" and epochs == 0 else "none"
    return calibration


class OutputConfig(Section):
    """Where results go."""

    dir: Annotated[Name, must("be a path", lambda path: "\0" not in path)] = "runs"
    """Folder of the run folders."""
    save_model: Literal["none", "first", "all"] = "none"
    """The trials whose fine-tuned model is kept."""
    checkpoint_minutes: PositiveFloat | None = 5.0
    """Minutes between checkpoints of a trial; one more is written after every epoch. A checkpoint
    takes three times the size of the weights and is removed when the trial is finished. `null`: no
    checkpoints. The package SimpleT5 has none."""
    escape_formulas: bool = True
    """Write an apostrophe before a cell of a CSV file that a spreadsheet could run: one that begins
    with `=`, `+`, `-`, `@`, a tab or a line break, also after apostrophes. Taking it away gives the
    exact text again. `false`: the exact text."""


class EngineConfig(Section):
    """What runs the trials, and the resources of each; scores differ only by rounding."""

    kind: Literal["local", "ray"] = "local"
    """`local`: one trial after the other, in this process; `ray`: many at once, on the cluster that
    `RAY_ADDRESS` names, else on this machine. Needs `pip install 'tgsent[ray]'`."""
    cpus_per_trial: PositiveInt | None = None
    """Cores, and threads, for each trial. `null`: as many as PyTorch would take on this machine."""
    gpus_per_trial: NotNegativeFloat = 0
    """GPUs for each trial, with `kind: ray`; below 1: trials share one; 0: trials run on CPUs."""
    max_concurrent: PositiveInt | None = None
    """Most trials at once, with `kind: ray`. `null`: as many as the cluster has room for."""
