"""What a run would do: splits, prompts, steps and work, without doing it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tgsent.backends import checks
from tgsent.config import RunConfig, TrialSpec
from tgsent.data.dataset import Dataset
from tgsent.data.splits import TrialSplits, ValidationSplits
from tgsent.errors import UnavailableError
from tgsent.experiment import cost, variants
from tgsent.experiment.cost import Cost
from tgsent.files import show_size
from tgsent.modeling import legibility, loading
from tgsent.modeling.prompts import choose_shots
from tgsent.records import Split
from tgsent.training import loop, memory, rates


@dataclass(frozen=True)
class ModelPlan:
    """The work for one trial of one model."""

    model: str
    training_prompt: str
    """As the tokenizer reads it back, special and unknown tokens included."""
    test_prompt: str
    unknown_share: float
    """Share of the training texts' tokens that are unknown."""
    unknown_token: str
    warnings: tuple[str, ...]
    """What the model cannot read in the training and test texts."""
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
    """The least that training takes: weights, gradients and optimizer state."""
    training_tokens: int
    """Tokens read and written in training, all epochs; with the padding where all texts are padded
    to one length."""
    truncated: int
    """Training texts longer than `max_tokens`."""
    training_flop: float
    evaluation_flop: float
    cost: Cost | None
    """Time and memory; None where the package SimpleT5 does the work, which is not measured."""


def make_plan(
    config: RunConfig, dataset: Dataset, splits: TrialSplits
) -> tuple[dict[str, Any], list[UnavailableError]]:
    """Describe the run; a model that cannot be reached is left out and its error returned."""
    plans, missing = [], []
    for spec in config.trial_specs(dataset.labels):
        if spec.trial == 1 and not spec.is_baseline:
            try:
                plans.append(plan_model(spec, splits[0]))
            except UnavailableError as error:
                missing.append(error)
    plan = {
        "config": config.dump(),
        "data": {
            "source": dataset.source,
            "rows": dataset.rows,
            "duplicates": dataset.duplicates,
            "dropped": dataset.dropped,
            "sampled": len(dataset.texts),
        },
        "splits": [
            {
                "trial": split.trial,
                "seed": split.seed,
                "train": _counts(split.train, dataset.labels),
                "test": _counts(split.test, dataset.labels),
                "overlap": split.overlap,
                "sha256": split.sha256,
            }
            for split in map(splits.__getitem__, range(config.trials))
        ],
        "sweep": _plan_sweep(config, dataset, splits),
        "models": [asdict(plan) for plan in plans],
        "trials": [f"{s.name}:{s.trial}" for s in config.trial_specs(dataset.labels)],
    }
    return plan, missing


def _plan_sweep(config: RunConfig, dataset: Dataset, splits: TrialSplits) -> dict[str, Any] | None:
    """Count what a sweep trains before the trials, for each model."""
    sweep = config.sweep
    if sweep is None:
        return None
    counts = variants.counts(sweep)
    shares = variants.shares(counts, sweep.halving)
    rounds = ValidationSplits(splits, dataset.labels, sweep, shares).summaries
    return {
        "variants": counts,
        "n_train": [one.n_train for one in rounds],
        "n_validation": rounds[0].n_test,
    }


def plan_model(spec: TrialSpec, split: Split) -> ModelPlan:
    """Count the work of one trial.

    A token costs 6 floating-point operations per parameter of a matrix in training and 2 in
    evaluation (Kaplan et al. 2020, without the attention term, which is small for short texts).
    The encoder of a seq2seq model reads the prompt, its decoder the completion.
    """
    device = loop.resolve_device(spec.training.device)
    notes = checks.check(spec)
    loaded = loading.describe(spec, split.train)
    encoder = loading.prompt_encoder(loaded, spec, choose_shots(split.train, spec))
    train = encoder.encode_examples(split.train)
    truncated = encoder.truncated
    test = encoder.encode_prompts([example.text for example in split.test])
    prompt_tokens = sum(len(e.prompt) for e in train)
    target_tokens = sum(len(e.target) for e in train)
    if loop.padding(spec.training) == "max_tokens":
        prompt_tokens = len(train) * spec.training.max_tokens
        if spec.training.backend == "simplet5":
            target_tokens = len(train) * spec.training.simplet5.target_max_tokens
        elif not loaded.model.config.is_encoder_decoder:
            prompt_tokens -= target_tokens
    test_tokens = sum(map(len, test))
    answer_tokens = len(test) * max(map(len, encoder.targets.values()))
    reading, writing = matrix_parameters(loaded.model)
    least = memory.estimate(loaded.model, spec.training)
    epochs, parameters = spec.training.epochs, loaded.model.num_parameters()
    steps = math.ceil(len(train) / spec.training.batch_size) * epochs
    prompt, target = loaded.decode(train[0].prompt), loaded.decode(train[0].target)
    if loaded.model.config.is_encoder_decoder:
        prompt += " ->"
        target = f" {target}"
    texts = [example.text for example in split.train]
    seen = legibility.measure(loaded, encoder, texts)
    texts += [example.text for example in split.tested]
    return ModelPlan(
        model=spec.name,
        training_prompt=prompt + target,
        test_prompt=prompt,
        unknown_share=seen.unknown_share,
        unknown_token=seen.unknown_token,
        warnings=legibility.measure(loaded, encoder, texts).warnings,
        notes=notes,
        optimizer_steps=steps,
        learning_rate=rates.learning_rate(spec.training, loaded.family, parameters),
        warmup_steps=loop.warmup_steps(spec.training, steps),
        max_grad_norm=loop.max_grad_norm(spec.training),
        padding=loop.padding(spec.training),
        precision=loop.resolve_precision(spec.training, device),
        parameters=parameters,
        trainable_parameters=least.trainable_parameters,
        memory_bytes=least.bytes,
        training_tokens=epochs * (prompt_tokens + target_tokens),
        truncated=truncated,
        training_flop=6.0 * epochs * (reading * prompt_tokens + writing * target_tokens),
        evaluation_flop=2.0 * (reading * test_tokens + writing * answer_tokens),
        cost=cost.measure(spec, split) if spec.training.backend == "native" else None,
    )


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


def to_text(plan: dict[str, Any], config_yaml: str) -> str:
    """Write the plan for people."""
    data = plan["data"]
    lines = [
        config_yaml.rstrip(),
        "",
        f"data      {data['source']}: {data['rows']} rows, {data['duplicates']} repeated texts"
        f" ({data['dropped']} dropped), {data['sampled']} sampled",
    ]
    lines += [
        f"trial {split['trial']:<3} train {_show(split['train'])}; test {_show(split['test'])};"
        f" {split['overlap']} test texts also in train; sha256 {split['sha256'][:12]}"
        for split in plan["splits"]
    ]
    if sweep := plan["sweep"]:
        rounds = ", ".join(
            f"{n} on {texts:,} texts"
            for n, texts in zip(sweep["variants"], sweep["n_train"], strict=True)
        )
        lines.append(
            f"sweep     variants of each model first: {rounds}; {sweep['n_validation']:,} texts"
            " to compare them on"
        )
    for model in plan["models"]:
        lines += [
            "",
            f"{model['model']} ({model['parameters']:,} parameters,"
            f" {model['trainable_parameters']:,} trained)",
            f"  training prompt  {model['training_prompt']!r}",
            f"  test prompt      {model['test_prompt']!r}",
            *_illegible(model),
            f"  per trial        {model['optimizer_steps']} optimizer steps at"
            f" {model['learning_rate']:g}, {model['training_tokens']:,} tokens,"
            f" {model['truncated']} texts cut",
            f"  recipe           {_recipe(model)}",
            f"  memory           at least {show_size(model['memory_bytes'])} for weights,"
            " gradients and optimizer state",
            f"  work             about {_si(model['training_flop'])}FLOP for training,"
            f" {_si(model['evaluation_flop'])}FLOP for evaluation",
            *_cost(model["cost"]),
        ]
    costs = [model["cost"] for model in plan["models"] if model["cost"]]
    if costs:
        trials = len(plan["splits"])
        seconds = trials * sum(map(_seconds, costs))
        line = f"in all about {_time(seconds)} for {trials * len(costs)} trials"
        if plan["sweep"]:
            before = sum(_sweep_seconds(plan, cost) for cost in costs)
            line += f", and {_time(before)} for the sweep, with the settings as they are"
        lines += ["", line]
    return "\n".join(lines) + "\n"


def _illegible(model: dict[str, Any]) -> list[str]:
    """Report notes, unknown tokens and warnings on a model's texts."""
    lines = [f"  note             {note}" for note in model["notes"]]
    lines += [f"  warning          {warning}" for warning in model["warnings"]]
    if share := model["unknown_share"]:
        shown = "less than 0.1" if share < 0.001 else f"{100 * share:.1f}"
        what = f"{shown} % of the training texts' tokens are {model['unknown_token']}"
        lines.insert(0, f"  unknown          {what}")
    return lines


def _recipe(model: dict[str, Any]) -> str:
    """Report what `auto` became, beside the learning rate."""
    norm = model["max_grad_norm"]
    return (
        f"{model['warmup_steps']} warm-up steps,"
        f" {'no clipping' if norm is None else f'gradients clipped to {norm:g}'},"
        f" padded to {model['padding']}, {model['precision']}"
    )


def _cost(found: dict[str, Any] | None) -> list[str]:
    """Say what a trial takes, as it was measured."""
    if found is None:
        return ["  time             is not measured for the package SimpleT5"]
    parts = ", ".join(
        f"{_time(found[f'{part}_seconds'])} for {part}"
        for part in ("loading", "training", "evaluation")
    )
    return [
        f"  a trial takes    about {_time(_seconds(found))}: {parts}; and"
        f" {show_size(found['peak_memory_bytes'])} of memory, both measured in a few steps"
    ]


def _seconds(found: dict[str, Any]) -> float:
    return float(sum(found[f"{part}_seconds"] for part in ("loading", "training", "evaluation")))


def _sweep_seconds(plan: dict[str, Any], found: dict[str, Any]) -> float:
    """Say how long the variants of a model take, if each takes as long as the model itself."""
    split, sweep = plan["splits"][0], plan["sweep"]
    training = found["training_seconds"] / sum(split["train"].values())
    answering = found["evaluation_seconds"] / sum(split["test"].values())
    each = found["loading_seconds"] + answering * sweep["n_validation"]
    return float(
        sum(
            n * (each + training * texts)
            for n, texts in zip(sweep["variants"], sweep["n_train"], strict=True)
        )
    )


def _time(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _counts(examples: Sequence[Any], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(example.label for example in examples)
    return {label: counts[label] for label in labels}


def _show(counts: dict[str, int]) -> str:
    return f"{sum(counts.values())} ({', '.join(f'{n} {label}' for label, n in counts.items())})"


def _si(number: float) -> str:
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.1f} {prefix}"
    return f"{number:.0f} "
