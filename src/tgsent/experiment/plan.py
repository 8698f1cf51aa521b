"""What a run would do: splits, prompts, steps and work, without doing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn
from transformers import PreTrainedModel

from tgsent.backends.registry import backend_of
from tgsent.config import RunConfig, TrainingConfig, TrialSpec
from tgsent.data.dataset import Dataset
from tgsent.data.splits import TrialSplits, ValidationSplits
from tgsent.errors import UnavailableError
from tgsent.experiment.cost import Cost, measure
from tgsent.experiment.sweep import rounds_of
from tgsent.files import show_size
from tgsent.modeling import loading
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import choose_shots, without_shots
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

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        return {**asdict(self), "config": self.config.dump()}


def make_plan(
    config: RunConfig, dataset: Dataset, splits: TrialSplits
) -> tuple[Plan, list[UnavailableError]]:
    """Plan a run; return also the errors of models that are not available and left out."""
    models, missing = [], []
    specs = config.trial_specs(dataset.labels)
    for spec in specs[:: config.trials]:
        if not spec.is_baseline:
            try:
                models.append(plan_model(spec, splits[0]))
            except UnavailableError as error:
                missing.append(error)
    data = DataPlan(
        dataset.source, dataset.rows, dataset.duplicates, dataset.dropped, len(dataset.texts)
    )
    sweep = None
    if config.sweep:
        counts, shares = rounds_of(config.sweep)
        rounds = ValidationSplits(splits, dataset.labels, config.sweep, shares).summaries
        sweep = SweepPlan(counts, [one.n_train for one in rounds], rounds[0].n_test)
    planned = [_plan_split(splits[k], dataset.labels) for k in range(config.trials)]
    trials = [f"{spec.name}:{spec.trial}" for spec in specs]
    return Plan(config, data, planned, sweep, models, trials), missing


def _plan_split(split: Split, labels: Sequence[str]) -> SplitPlan:
    train, test = (
        {label: sum(example.label == label for example in part) for label in labels}
        for part in (split.train, split.test)
    )
    return SplitPlan(split.trial, split.seed, train, test, split.overlap, split.sha256)


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
    shots = choose_shots(split.train, spec)
    encoder = loading.prompt_encoder(loaded, spec, shots)
    train = encoder.encode_examples(without_shots(split.train, shots))
    truncated = encoder.truncated
    test = encoder.encode_prompts([example.text for example in split.test])
    recipe = resolve(training, loaded.family, loaded.model.num_parameters(), len(train))
    read, written = _tokens(train, training, recipe, loaded)
    answer_tokens = len(test) * max(map(len, encoder.targets.values()))
    reading, writing = matrix_parameters(loaded.model)
    trainable_parameters, memory_bytes = memory.estimate(loaded.model, training)
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
        parameters=loaded.model.num_parameters(),
        trainable_parameters=trainable_parameters,
        memory_bytes=memory_bytes,
        training_tokens=recipe.epochs * (read + written),
        truncated=truncated,
        training_flop=6.0 * recipe.epochs * (reading * read + writing * written),
        evaluation_flop=2.0 * (reading * sum(map(len, test)) + writing * answer_tokens),
        cost=measure(spec, split) if backend.in_our_loop else None,
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


def to_text(plan: Plan) -> str:
    """Write a plan for people."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    data = plan.data
    yield plan.config.to_yaml()
    yield (
        f"data      {data.source}: {data.rows} rows, {data.duplicates} repeated texts"
        f" ({data.dropped} dropped), {data.sampled} sampled"
    )
    for split in plan.splits:
        yield (
            f"trial {split.trial:<3} train {_counts(split.train)}; test {_counts(split.test)};"
            f" {split.overlap} test texts also in train; sha256 {split.sha256[:12]}"
        )
    swept = 0
    if sweep := plan.sweep:
        rounds = list(zip(sweep.variants, sweep.n_train, strict=True))
        swept = sum(count * texts for count, texts in rounds)
        listed = ", ".join(f"{count} on {texts:,} texts" for count, texts in rounds)
        yield f"sweep     variants of a model: {listed}; compared on {sweep.n_validation:,} texts"
    for model in plan.models:
        yield ""
        trained = model.trainable_parameters
        yield f"{model.model} ({model.parameters:,} parameters, {trained:,} trained)"
        yield from (f"  {name:<16} {text}" for name, text in _rows(model))
    if costs := [model.cost for model in plan.models if model.cost]:
        trials, seconds = len(plan.splits), sum(cost.seconds for cost in costs)
        line = f"in all about {_time(trials * seconds)} for {trials * len(costs)} trials"
        if swept:  # at the speed of a trial
            before = seconds * swept / sum(plan.splits[0].train.values())
            line += f", and {_time(before)} for the sweep, with the settings as they are"
        yield f"\n{line}"


def _rows(model: ModelPlan) -> Iterator[tuple[str, str]]:
    """Yield what there is to say about a model, each with its name."""
    yield "training prompt", repr(model.training_prompt)
    yield "test prompt", repr(model.test_prompt)
    if share := model.unknown_share:
        yield "unknown", f"{100 * share:.2g} % of the texts' tokens are {model.unknown_token}"
    yield from (("note", note) for note in model.notes)
    yield from (("warning", warning) for warning in model.warnings)
    steps = f"{model.optimizer_steps} optimizer steps at {model.learning_rate:g}"
    tokens = f"{model.training_tokens:,} tokens, {model.truncated} texts truncated"
    yield "per trial", f"{steps}, {tokens}"
    norm = model.max_grad_norm
    clipping = "no clipping" if norm is None else f"gradients clipped to {norm:g}"
    form = f"padded to {model.padding}, {model.precision}"
    yield "recipe", f"{model.warmup_steps} warm-up steps, {clipping}, {form}"
    least = show_size(model.memory_bytes)
    yield "memory", f"at least {least} for weights, gradients and optimizer state"
    training, evaluation = model.training_flop, model.evaluation_flop
    yield "work", f"{training:.2g} FLOP for training, {evaluation:.2g} FLOP for evaluation"
    if (cost := model.cost) is None:
        yield "time", "is not measured for the package SimpleT5"
    else:
        seconds = cost.loading_seconds, cost.training_seconds, cost.evaluation_seconds
        parts = "{} for loading, {} for training, {} for evaluation".format(*map(_time, seconds))
        yield "a trial takes", f"about {_time(cost.seconds)}: {parts}, as a few steps show"
        yield "peak memory", show_size(cost.peak_memory_bytes)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _counts(counts: Mapping[str, int]) -> str:
    return f"{sum(counts.values())} ({', '.join(f'{n} {label}' for label, n in counts.items())})"
