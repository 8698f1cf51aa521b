"""The config of a run: the models, the common sections, a sweep; and its trials."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import to_jsonable_python

from tgsent.config import simplet5, yaml_source
from tgsent.config.aliases import BASELINES
from tgsent.config.messages import ONE_OF, Mistake, fault, faults, mistakes, must, short
from tgsent.config.sections import (
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    Name,
    OutputConfig,
    PromptConfig,
    Section,
    Seed,
    TrainingConfig,
)
from tgsent.config.trial import TrialSpec
from tgsent.errors import ConfigError

DEFAULT_MODELS = ("gpt2", "gpt-neo", "t5")
OVERRIDABLE = ("prompt", "training", "evaluation")
"""Sections that models and variants may override."""

_MOST = 10_000  # trials, and variants

FolderName = Annotated[
    str,
    Field(max_length=100),
    must(
        'be a folder name, without any of / \\ : * ? " < > | and without a dot at the beginning',
        re.compile(r'(?!\.)[^/\\:*?"<>|\x00-\x1f]+').fullmatch,
    ),
]


def with_key(values: object, path: Sequence[str | int], value: object, *above: str | int) -> object:
    """Return a copy of nested values with one key changed; mappings on the way are made.

    Raises ValidationError where the path, which begins below `above`, goes through another value.
    """
    if not path:
        return value
    key, *below = path
    if values is None:
        values = {}
    if isinstance(values, Mapping):
        return {**values, str(key): with_key(values.get(str(key)), below, value, *above, key)}
    if isinstance(values, list) and isinstance(key, int) and key < len(values):
        item = {"model": values[key]} if isinstance(values[key], str) else values[key]
        return [*values[:key], with_key(item, below, value, *above, key), *values[key + 1 :]]
    raise fault(f"holds no `{key}`", *above)


def _merge(values: object, changes: object) -> object:
    """Return `values` updated with `changes`; nested mappings are merged key by key."""
    # a YAML alias may contain itself
    if values is changes or not (isinstance(values, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**values, **{key: _merge(values.get(key), new) for key, new in changes.items()}}


class ModelConfig(Section):
    """One model of the comparison, and the settings in which it differs from the others."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    model: Name
    """Alias (`gpt2`, `t5`, `qwen3` and others; docs/models.md lists them), Hub id, folder of a
    model, or `.gguf` file (`pip install 'tgsent[gguf]'`); the first two may have `@REVISION` at the
    end. Two names are baselines, fitted on the same training texts: `majority` always answers the
    most frequent label, `tfidf` is logistic regression on weighted words and characters."""
    as_: FolderName | None = Field(default=None, alias="as")
    """Its name in tables and folders. `null`: the last part of `model`, and ` (simplet5)` after it
    with `training.backend: simplet5`."""
    prompt: PromptConfig = PromptConfig()
    """Keys of `prompt` that differ for this model."""
    training: TrainingConfig = TrainingConfig()
    """Keys of `training` that differ for this model."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Keys of `evaluation` that differ for this model."""
    _own: dict[str, object] = PrivateAttr(default_factory=dict)
    """The keys that differ, by section; the sections themselves are complete."""

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check an item of `models`, which may come in a pair with the sections that it changes."""
        item, common = value if isinstance(value, tuple) else (value, {})
        if isinstance(item, ModelConfig):
            item = item.written
        elif isinstance(item, str):
            item = {"model": item}
        merged = _merge(common, item)
        found = list(simplet5.conflicts(merged))
        try:
            model = handler(merged)
        except ValidationError as error:
            found += mistakes(error)
        if found:
            raise faults(found)
        model._own = {key: item[key] for key in OVERRIDABLE if item.get(key)}  # noqa: SLF001
        return model

    @property
    def written(self) -> dict[str, object]:
        """The item of `models` that this is read from."""
        name = {"as": self.as_} if self.as_ else {}
        return {"model": self.model, **name, **self._own}

    @property
    def name(self) -> str:
        """Name in tables and folders."""
        last_part = self.model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        backend = self.training.backend
        way = "" if backend == "native" or self.model in BASELINES else f" ({backend})"
        return self.as_ or re.sub(r"[^\w.@-]", "-", last_part) + way


class SweepRange(Section):
    """A range of numbers. Between integers only integers are drawn, and a grid uses all of them."""

    low: Annotated[float | int, ONE_OF]
    """Smallest."""
    high: Annotated[float | int, ONE_OF]
    """Largest."""
    log: bool = False
    """Draw the logarithm evenly, as suits a learning rate."""

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise fault("must have low below high, and both above 0 with `log: true`")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)


def _swept(values: object) -> list[object] | SweepRange:
    """Check the values of one key."""
    if isinstance(values, dict | SweepRange):
        return SweepRange.model_validate(values)
    if not isinstance(values, list) or not values:
        raise fault(f"must name at least one value in a list, or a range, not {short(values)}")
    return values


class SweepConfig(Section):
    """Variants of each model, compared on texts that no trial tests; only the best is tested."""

    keys: Annotated[
        dict[str, Annotated[list[object] | SweepRange, BeforeValidator(_swept)]],
        Field(min_length=1),
    ]
    """What varies: dotted keys of `prompt`, `training` and `evaluation`, or `model`, each with a
    list of values or a range `{low: 1.0e-5, high: 1.0e-3, log: true}`."""
    method: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every combination; `random`: combinations drawn at random; `tpe`: each combination is
    proposed from the scores of the earlier ones (Optuna's tree-structured Parzen estimator; needs
    `pip install 'tgsent[tpe]'`)."""
    variants: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    """How many combinations `random` and `tpe` try, for each model; a grid tries all."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the texts that no trial tests. It is held out to compare the variants."""
    halving: Annotated[int, Field(ge=2)] | None = None
    """Successive halving. All variants are trained on part of the texts. Of `n`, the best
    `n / halving` are trained on `halving` times as many texts, and so on until all texts are used.
    `null`: every variant is trained on all texts."""
    seed: Seed = 1
    """Seed of the validation split and of the random draws."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if (self.variants is None) != (self.method == "grid"):
            raise fault("`variants` goes with the methods random and tpe, which need it")
        if self.method == "tpe" and self.halving:
            raise fault("`halving` goes with grid and random: tpe tries one after the other")
        changes_no_score = {"training.device", "training.report_to", "evaluation.batch_size"}
        for key in self.keys:
            if key in changes_no_score or key.split(".")[0] not in {"model", *OVERRIDABLE}:
                raise fault(
                    f"`{key}` cannot vary: `model` can, and keys of prompt, training and evaluation"
                    " that change a score (label words are `prompt.words`)"
                )
        return self

    @model_validator(mode="after")
    def _grid_is_finite(self) -> Self:
        n = 1
        for key, values in self.keys.items() if self.method == "grid" else ():
            if not isinstance(values, SweepRange):
                n *= len(values)
            elif values.is_whole:
                n *= int(values.high - values.low) + 1
            else:
                raise fault(f"`{key}`: a grid takes a list, or a range of whole numbers")
        if n > _MOST:
            raise fault(
                f"a grid of {n:,} variants is too large; `method: random` draws some of them"
            )
        return self


class RunConfig(Section):
    """The whole config of a run."""

    name: FolderName = "default"
    """Name of the run and of its folder. Default: the name of the config file."""
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1, strict=False)] = tuple(
        ModelConfig(model=name) for name in DEFAULT_MODELS
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

    @model_validator(mode="before")
    @classmethod
    def _models_know_the_common_sections(cls, values: object) -> object:
        models = values.get("models", DEFAULT_MODELS) if isinstance(values, dict) else None
        if not (isinstance(values, dict) and isinstance(models, list | tuple)):
            return values
        common = {
            key: section.model_dump() if isinstance(section, Section) else section
            for key, section in values.items()
            if key in OVERRIDABLE
        }
        return {**values, "models": [(item, common) for item in models]}

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        for index, name in enumerate(self.names):
            if name.casefold() in map(str.casefold, self.names[:index]):
                message = f'two models are called "{name}"; give one of them another name with `as`'
                raise fault(message, "models")
        device, engine = self.training.device, self.engine
        if engine.kind == "ray" and not engine.gpus_per_trial and device in {"cuda", "mps"}:
            message = f"with `kind: ray` a `training.device` of {device} needs `gpus_per_trial`"
            raise fault(message, "engine")
        return self

    @model_validator(mode="after")
    def _each_value_of_the_sweep_is_valid(self) -> Self:
        """Check every value for every model, whatever the other keys are."""
        found: list[Mistake] = []
        for key, values in self.sweep.keys.items() if self.sweep else ():
            listed = [values.low, values.high] if isinstance(values, SweepRange) else values
            for model, value in product(self.models, listed):
                try:
                    self._varied(model, {key: value}, "variant")
                except ValidationError as error:
                    place = ("sweep", "keys", key)
                    found += [
                        one._replace(path=place) for one in mistakes(error) if not one.is_conflict
                    ]
        if found:
            raise faults(found)
        return self

    @property
    def names(self) -> list[str]:
        """Names of the models in tables and folders."""
        return [model.name for model in self.models]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output.dir) / self.name

    def trial_specs(self, labels: Sequence[str]) -> list[TrialSpec]:
        """Return all trials, model by model, for data with these label words.

        Raises ConfigError where `prompt.words` does not name exactly these labels.
        """
        labels = tuple(labels)
        for model in self.models:
            words = model.prompt.words
            if labels and words is not None and words.keys() != set(labels):
                raise ConfigError(
                    f"prompt.words of {model.name}: must name the labels {', '.join(labels)}, and"
                    f" names {', '.join(words)}"
                )
        saved = {"none": 0, "first": 1, "all": self.trials}[self.output.save_model]
        return [
            TrialSpec(
                model=model.model,
                name=model.name,
                trial=trial,
                seed=self.seed + trial - 1,
                labels=labels,
                prompt=model.prompt,
                training=model.training,
                evaluation=model.evaluation,
                save_model=trial <= saved and model.model not in BASELINES,
                checkpoint_minutes=self.output.checkpoint_minutes,
                escape_formulas=self.output.escape_formulas,
            )
            for model in self.models
            for trial in range(1, self.trials + 1)
        ]

    def variant(self, model: ModelConfig, settings: Mapping[str, object], name: str) -> ModelConfig:
        """Return a model of this run with other settings, by dotted key, under another name.

        Raises ConfigError for settings that do not go together.
        """
        try:
            return self._varied(model, settings, name)
        except ValidationError as error:
            shown = ", ".join(f"{key}={short(value)}" for key, value in settings.items())
            path, problem, _ = mistakes(error)[0]
            key = ".".join(map(str, path))
            raise ConfigError(f"sweep: the variant {shown}: {key}: {problem}") from None

    def _varied(self, model: ModelConfig, settings: Mapping[str, object], name: str) -> ModelConfig:
        item: object = {**model.written, "as": name}
        for key, value in settings.items():
            item = with_key(item, key.split("."), value)
        common = {key: getattr(self, key).model_dump() for key in OVERRIDABLE}
        return ModelConfig.model_validate((item, common))

    def dump(self) -> dict[str, JsonValue]:
        """Return the config as plain values that `load` takes back unchanged."""
        values = self.model_dump(mode="json", by_alias=True)
        values["models"] = [
            model.model if len(model.written) == 1 else to_jsonable_python(model.written)
            for model in self.models
        ]
        return values

    def to_yaml(self) -> str:
        """Return the config as YAML that `load` takes back unchanged."""
        return yaml_source.dump(self.dump())
