"""One trial: fine-tune one model on one split and score it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from tgsent import files
from tgsent.backends import baselines
from tgsent.backends.simplet5 import package
from tgsent.config import TrialSpec
from tgsent.errors import TrialError
from tgsent.evaluation import metrics
from tgsent.evaluation.generate import classify, label_prior
from tgsent.modeling import hub, legibility, loading, speedups
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder, choose_shots
from tgsent.records import Outcome, Progress, Split
from tgsent.runs import signature
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.terminal import without_secrets
from tgsent.training import adapters, devices, distributed, loop, memory, trackers
from tgsent.training.checkpoint import Checkpoints
from tgsent.training.recipe import resolve


def run_trial(
    spec: TrialSpec,
    split: Split,
    progress: Progress,
    *,
    save_to: Path | None = None,
    checkpoints_in: Path | None = None,
    track_in: Path | None = None,
) -> TrialResult:
    """Run one trial; the result depends on `spec` and `split` alone.

    The fine-tuned model is saved in the folder `save_to`, where one is given, and training goes on
    from the checkpoints in `checkpoints_in`; the package SimpleT5 knows none and starts anew.
    Trackers that write files write them in `track_in`.
    """
    if spec.is_baseline:
        outcome = baselines.run(spec, split, progress, memory.peak())
    elif spec.training.backend == "simplet5":
        outcome = _through_simplet5(spec, split, progress, save_to)
    else:
        accelerator = devices.make_accelerator(spec.training, track_in)
        with trackers.tracking(spec, accelerator):
            outcome = _through_our_loop(spec, split, progress, save_to, checkpoints_in, accelerator)
            scores = metrics.score(outcome.predictions[: len(split.test)], spec.labels)
            accelerator.log(
                {key: getattr(scores, key) for key in trackers.SCORES}, step=outcome.steps
            )
    return TrialResult(_metrics(spec, split, outcome), outcome.predictions, outcome.log)


def _through_our_loop(
    spec: TrialSpec,
    split: Split,
    progress: Progress,
    save_to: Path | None,
    checkpoints_in: Path | None,
    accelerator: Accelerator,
) -> Outcome:
    on_cuda = accelerator.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    loaded = _load(spec, split, progress)
    speedups.apply(loaded.model)
    shots = choose_shots(split.train, spec)
    encoder = loading.prompt_encoder(loaded, spec, shots)
    # what every prompt shows with its label is nothing to learn from
    left = [example for example in split.train if example not in shots]
    if not left:
        raise TrialError(
            f"prompt.shots: {spec.prompt.shots} leaves none of {len(split.train)} training texts"
        )
    examples = encoder.encode_examples(left)
    training = spec.training
    set_seed(spec.seed)  # loading has drawn random numbers, for some models more than for others
    recipe = resolve(training, loaded.family, loaded.model.num_parameters(), len(examples))
    with memory.allocation_errors(spec, "training"):
        merge = adapters.prepare(loaded.model, training)
        trainable_parameters = adapters.count(loaded.model)
        trained = loop.train(
            loaded.model,
            examples,
            loop.collator(loaded, recipe),
            recipe,
            seed=spec.seed,
            accelerator=accelerator,
            progress=progress,
            title=spec.title,
            checkpoints=_checkpoints(spec, split, loaded.commit, checkpoints_in),
        )
        merge()  # the model that is scored is the one that is saved
    # and it answers in fp32, as it does wherever it is loaded: in bf16 the answers would depend on
    # which texts are answered together
    answering = accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False)
    answerer = replace(loaded, model=answering)
    started = time.perf_counter()
    with memory.allocation_errors(spec, "evaluation"):
        prior = label_prior(answerer, encoder, spec)
        predictions = classify(answerer, encoder, split.tested, spec, progress, prior)
    eval_seconds = time.perf_counter() - started
    if save_to is not None:
        with files.storage_errors(save_to, answering.get_memory_footprint()):
            answering.save_pretrained(save_to)
            loaded.tokenizer.save_pretrained(save_to)

    return Outcome(
        predictions=predictions,
        log=trained.log,
        steps=trained.steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        max_grad_norm=recipe.max_grad_norm,
        padding=recipe.padding,
        train_seconds=trained.seconds,
        eval_seconds=eval_seconds,
        truncated=encoder.truncated,
        truncated_tokens=encoder.truncated_tokens,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else memory.peak(),
        parameters=loaded.model.num_parameters(),
        trainable_parameters=trainable_parameters,
        device=accelerator.device.type,
        precision=recipe.precision,
        example=(loaded.decode(examples[0].prompt), loaded.decode(examples[0].target)),
        shots=shots,
        warnings=_illegible(loaded, encoder, split),
        label_prior=prior,
        commit=loaded.commit,
    )


def _illegible(loaded: LoadedModel, encoder: PromptEncoder, split: Split) -> tuple[str, ...]:
    """Return warnings on training and test texts that the model cannot read."""
    texts = [example.text for example in (*split.train, *split.tested)]
    return legibility.measure(loaded, encoder, texts).warnings


def _checkpoints(
    spec: TrialSpec, split: Split, commit: str | None, folder: Path | None
) -> Checkpoints | None:
    if folder is None or spec.checkpoint_minutes is None:
        return None
    identity = {
        "fingerprint": spec.fingerprint,
        "split_sha256": split.sha256,
        "commit": commit or "",
    }
    return Checkpoints(folder, identity, spec.checkpoint_minutes * 60)


def _through_simplet5(
    spec: TrialSpec, split: Split, progress: Progress, save_to: Path | None
) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="tgsent-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if spec.training.init == "pretrained":
            start = hub.fetch(spec.model, weights=True).folder
        else:
            start = folder / "start"
            loaded = _load(spec, split, progress)
            loaded.model.save_pretrained(start)
            loaded.tokenizer.save_pretrained(start)
            del loaded
        outcome = package.train_and_answer(spec, split, start, folder, progress, save_to)
    described = loading.describe(spec, split.train)  # the package uses the same tokenizer
    warnings = _illegible(described, loading.prompt_encoder(described, spec), split)
    return replace(outcome, warnings=warnings, commit=described.commit)


def _load(spec: TrialSpec, split: Split, progress: Progress) -> LoadedModel:
    set_seed(spec.seed)
    with (
        progress.task(f"{spec.title}, loading", 1) as task,
        memory.allocation_errors(spec, "loading"),
    ):
        loaded = loading.load(spec, split.train)
        task.advance(1)
    return loaded


def _metrics(spec: TrialSpec, split: Split, outcome: Outcome) -> TrialMetrics:
    """Put together the content of `metrics.json`."""
    n_train, n_test = len(split.train), len(split.test)
    passes = 1 if spec.is_baseline else spec.training.epochs
    scores = metrics.score(outcome.predictions[:n_test], spec.labels)
    doubts = [] if spec.model == "majority" else metrics.doubts(scores)
    is_trained = not spec.is_baseline
    return TrialMetrics(
        **vars(scores),
        model=spec.name,
        commit=outcome.commit,
        weights_sha256=spec.weights or None,
        trial=spec.trial,
        seed=spec.seed,
        all=metrics.score(outcome.predictions, spec.labels) if split.extra else None,
        extra_sha256=split.extra_sha256,
        calibration=metrics.calibration(outcome.predictions[:n_test], spec.labels),
        label_prior=_by_label(spec, outcome.label_prior),
        warnings=(*outcome.warnings, *doubts),
        truncated=outcome.truncated,
        truncated_tokens=outcome.truncated_tokens,
        duplicates=split.duplicates,
        dropped=split.dropped,
        overlap=split.overlap,
        n_train=n_train,
        steps=outcome.steps,
        learning_rate=outcome.learning_rate,
        warmup_steps=outcome.warmup_steps if is_trained else None,
        max_grad_norm=outcome.max_grad_norm if is_trained else None,
        padding=outcome.padding if is_trained else None,
        train_seconds=outcome.train_seconds,
        train_examples_per_second=_rate(n_train * passes, outcome.train_seconds),
        eval_seconds=outcome.eval_seconds,
        eval_examples_per_second=len(split.tested) / outcome.eval_seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        parameters=outcome.parameters,
        trainable_parameters=outcome.trainable_parameters,
        device=outcome.device,
        precision=outcome.precision,
        processes=distributed.world_size() if spec.is_in_our_loop else 1,
        backend=spec.training.backend,
        backend_versions=outcome.versions,
        split_sha256=split.sha256,
        fingerprint=spec.fingerprint,
        signature=signature.of_trial(spec, split, outcome.commit, outcome.precision),
        example=_without_secrets(outcome.example),
        shots=tuple((shot.text, shot.label) for shot in outcome.shots),
        formulas_escaped=spec.escape_formulas,
    )


def _by_label(spec: TrialSpec, numbers: Sequence[float] | None) -> dict[str, float] | None:
    return dict(zip(spec.labels, numbers, strict=True)) if numbers else None


def _without_secrets(example: tuple[str, str] | None) -> tuple[str, str] | None:
    return (without_secrets(example[0]), without_secrets(example[1])) if example else None


def _rate(examples: int, seconds: float) -> float:
    return examples / seconds if examples else 0.0
