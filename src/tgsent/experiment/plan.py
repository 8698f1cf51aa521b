"""What a run would do: splits, prompts, steps and work, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tgsent.backends.registry import backend_of
from tgsent.config import RunConfig, TrainingConfig, TrialSpec
from tgsent.data.dataset import Dataset
from tgsent.data.splits import TrialSplits, ValidationSplits
from tgsent.errors import UnavailableError
from tgsent.experiment import cost, variants
from tgsent.experiment.cost import Cost
from tgsent.modeling import loading
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import choose_shots
from tgsent.modeling.tokens import legibility
from tgsent.records import Encoded, Split
from tgsent.training import memory
from tgsent.training.recipe import Recipe, resolve


@dataclass(frozen=True)
class ModelPlan:
    """The work for one trial of one model."""

    model: str
    training_prompt: str
    """As the tokenizer reads it back, special and unknown tokens included."""
    test_prompt: str
    unknown_share: float
    """Share of the texts' tokens that are unknown."""
    unknown_token: str
    warnings: tuple[str, ...]
    """About training and test texts that the model cannot read."""
    notes: tuple[str, ...]
    """Hints about settings."""
    optimizer_steps: int
    learning_rate: float
    warmup_steps: int
    max_grad_norm: float | None
    padding: str
    precision: str
    parameters: int
    trainable_parameters: int
    memory_bytes: int
    """A lower bound for training: weights, gradients and optimizer state."""
    training_tokens: int
    """Tokens read and written in all epochs; padding counts where all texts have one length."""
    truncated: int
    """Training texts longer than `max_tokens`."""
    training_flop: float
    evaluation_flop: float
    cost: Cost | None
    """Time and memory; None where the package SimpleT5 trains, which is not measured."""


@dataclass(frozen=True)
class DataPlan:
    """The texts."""

    source: str
    rows: int
    duplicates: int
    dropped: int
    sampled: int


@dataclass(frozen=True)
class SplitPlan:
    """The split of one trial, with the number of texts of each label."""

    trial: int
    seed: int
    train: dict[str, int]
    test: dict[str, int]
    overlap: int
    sha256: str


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep trains before the trials, for each model: one number for each round."""

    variants: Sequence[int]
    n_train: Sequence[int]
    n_validation: int


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    config: RunConfig
    data: DataPlan
    splits: Sequence[SplitPlan]
    sweep: SweepPlan | None
    models: Sequence[ModelPlan]
    trials: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {**asdict(self), "config": self.config.dump()}


def make_plan(
    config: RunConfig, dataset: Dataset, splits: TrialSplits
) -> tuple[Plan, list[UnavailableError]]:
    """Plan a run; return also the errors of models that are not available and left out."""
    models, missing = [], []
    specs = config.trial_specs(dataset.labels)
    for spec in specs[:: config.trials]:
        if backend_of(spec).settings(spec):
            try:
                models.append(plan_model(spec, splits[0]))
            except UnavailableError as error:
                missing.append(error)
    plan = Plan(
        config,
        DataPlan(
            dataset.source, dataset.rows, dataset.duplicates, dataset.dropped, len(dataset.texts)
        ),
        [_plan_split(splits[k], dataset.labels) for k in range(config.trials)],
        _plan_sweep(config, dataset, splits),
        models,
        [f"{spec.name}:{spec.trial}" for spec in specs],
    )
    return plan, missing


def _plan_split(split: Split, labels: Sequence[str]) -> SplitPlan:
    train, test = (
        {label: sum(example.label == label for example in part) for label in labels}
        for part in (split.train, split.test)
    )
    return SplitPlan(split.trial, split.seed, train, test, split.overlap, split.sha256)


def _plan_sweep(config: RunConfig, dataset: Dataset, splits: TrialSplits) -> SweepPlan | None:
    sweep = config.sweep
    if sweep is None:
        return None
    counts = variants.counts(sweep)
    shares = variants.shares(counts, sweep.halving)
    rounds = ValidationSplits(splits, dataset.labels, sweep, shares).summaries
    return SweepPlan(counts, [one.n_train for one in rounds], rounds[0].n_test)


def plan_model(spec: TrialSpec, split: Split) -> ModelPlan:
    """Count the work of one trial.

    A token costs 6 floating-point operations per parameter of a matrix in training and 2 in
    evaluation (Kaplan et al. 2020, without the attention term, which is small for short texts).
    The encoder of a seq2seq model reads the prompt, its decoder the completion.
    """
    backend = backend_of(spec)
    backend.check_installed(spec)
    training = backend.settings(spec) or spec.training
    loaded = loading.describe(spec, split.train)
    notes = backend.check(spec, loaded=loaded)
    encoder = loading.prompt_encoder(loaded, spec, choose_shots(split.train, spec))
    train = encoder.encode_examples(split.train)
    parameters = loaded.model.num_parameters()
    recipe = resolve(training, loaded.family, parameters, len(train))
    truncated = encoder.truncated
    test = encoder.encode_prompts([example.text for example in split.test])
    read, written = _tokens(train, training, recipe, loaded)
    test_tokens = sum(map(len, test))
    answer_tokens = len(test) * max(map(len, encoder.targets.values()))
    reading, writing = matrix_parameters(loaded.model)
    least = memory.estimate(loaded.model, training)
    prompt, target = loaded.decode(train[0].prompt), loaded.decode(train[0].target)
    if loaded.family.is_seq2seq:
        prompt += " ->"
        target = f" {target}"
    texts = [example.text for example in (*split.train, *split.tested)]
    legible = legibility(loaded.tokenizer, encoder, texts)
    return ModelPlan(
        model=spec.name,
        training_prompt=prompt + target,
        test_prompt=prompt,
        unknown_share=legible.unknown_share,
        unknown_token=legible.unknown_token,
        warnings=legible.warnings,
        notes=notes,
        optimizer_steps=recipe.total_steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        max_grad_norm=recipe.max_grad_norm,
        padding=recipe.padding,
        precision=recipe.precision,
        parameters=parameters,
        trainable_parameters=least.trainable_parameters,
        memory_bytes=least.bytes,
        training_tokens=recipe.epochs * (read + written),
        truncated=truncated,
        training_flop=6.0 * recipe.epochs * (reading * read + writing * written),
        evaluation_flop=2.0 * (reading * test_tokens + writing * answer_tokens),
        cost=cost.measure(spec, split) if backend.in_our_loop else None,
    )


def _tokens(
    train: Sequence[Encoded], training: TrainingConfig, recipe: Recipe, loaded: LoadedModel
) -> tuple[int, int]:
    """Count the tokens that one epoch reads and writes, with padding to `max_tokens`."""
    read, written = sum(len(e.prompt) for e in train), sum(len(e.target) for e in train)
    if recipe.pad_to is None:
        return read, written
    padded = len(train) * recipe.pad_to
    if training.package is not None:
        return padded, len(train) * training.package.target_max_tokens
    return (padded if loaded.family.is_seq2seq else padded - written), written


def matrix_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Count the parameters that multiply each token read, and each token written.

    Embeddings are looked up, not multiplied, save for the output head.
    """

    def matrices(module: nn.Module) -> int:
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        return sum(
            p.numel() for p in module.parameters() if p.dim() >= 2 and id(p) not in embeddings
        )

    head = model.get_output_embeddings().weight.numel()
    if model.config.is_encoder_decoder:
        return matrices(model.get_encoder()), matrices(model.get_decoder()) + head
    return matrices(model.base_model) + head, matrices(model.base_model) + head
