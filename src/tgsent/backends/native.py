"""tgsent's own backend: fine-tune with our loop, then let the model generate the labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from tgsent import files
from tgsent.backends import TrialFolders, models
from tgsent.config import TrainingConfig, TrialSpec
from tgsent.errors import TrialError
from tgsent.evaluation import metrics
from tgsent.evaluation.generate import classify, label_prior
from tgsent.modeling import loading, speedups
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder, choose_shots
from tgsent.records import Encoded, Example, Outcome, Prediction, Progress, Split
from tgsent.training import adapters, loop, memory, trackers
from tgsent.training.checkpoint import Checkpoints
from tgsent.training.recipe import Recipe, check_installed, resolve


class Native:
    """Trains in this process, or in several that share every batch and the test texts."""

    in_our_loop = True

    def settings(self, spec: TrialSpec) -> TrainingConfig:
        """Return the settings as they are."""
        return spec.training

    def check_installed(self, spec: TrialSpec) -> None:
        """Raise UnavailableError where peft or a tracker is missing."""
        check_installed(spec.training)

    def check(
        self, spec: TrialSpec, *, here: bool = True, loaded: LoadedModel | None = None
    ) -> tuple[str, ...]:
        """Check the model as `Backend.check` says."""
        return models.check(spec, here=here, loaded=loaded)

    def run(
        self, spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders
    ) -> Outcome:
        """Train and evaluate as `Backend.run` says."""
        accelerator = loop.make_accelerator(spec.training, folders.trackers)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with trackers.tracking(spec, accelerator):
            task = _prepare(spec, split, progress)
            loaded, recipe, model = task.loaded, task.recipe, task.loaded.model
            set_seed(spec.seed)  # loading draws random numbers; how many depends on the model
            with memory.allocation_errors("training"):
                merge = adapters.prepare(model, spec.training)
                trainable_parameters = model.num_parameters(only_trainable=True)
                trained = loop.train(
                    loaded,
                    task.examples,
                    recipe,
                    seed=spec.seed,
                    accelerator=accelerator,
                    progress=progress,
                    title=spec.title,
                    checkpoints=checkpoints(spec, split, loaded.commit, folders.checkpoints),
                )
                merge()  # the model that is scored is the one that is saved
            # evaluated in fp32, as it is saved: in bf16 the answers would depend on which texts
            # share a batch
            model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            started = time.perf_counter()
            prior, predictions = _evaluate(spec, split, task, model, progress)
            eval_seconds = time.perf_counter() - started
            if folders.model is not None:
                _save(model, loaded, folders.model)
            scores = metrics.score(predictions[: len(split.test)], spec.labels)
            logged = {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}
            accelerator.log(logged, step=trained.step)
        return Outcome(
            predictions=predictions,
            log=tuple(trained.log),
            steps=trained.step,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_steps,
            max_grad_norm=recipe.max_grad_norm,
            padding=recipe.padding,
            train_seconds=trained.seconds,
            eval_seconds=eval_seconds,
            truncated=task.encoder.truncated,
            truncated_tokens=task.encoder.truncated_tokens,
            peak_memory_bytes=_peak_memory(accelerator),
            parameters=task.parameters,
            trainable_parameters=trainable_parameters,
            device=accelerator.device.type,
            precision=recipe.precision,
            example=task.example,
            shots=task.shots,
            warnings=models.illegible(loaded, task.encoder, split),
            label_prior=prior,
            commit=loaded.commit,
        )


@dataclass(frozen=True)
class _Task:
    """A model, and the training texts as it reads them."""

    loaded: LoadedModel
    encoder: PromptEncoder
    shots: tuple[Example, ...]
    examples: Sequence[Encoded]
    parameters: int
    """Number of the model's parameters, adapters excluded."""
    recipe: Recipe

    @property
    def example(self) -> tuple[str, str]:
        """Prompt and completion of a training text, as the model sees them."""
        first = self.examples[0]
        return self.loaded.decode(first.prompt), self.loaded.decode(first.target)


def _prepare(spec: TrialSpec, split: Split, progress: Progress) -> _Task:
    """Load the model and encode the training texts, worked examples excepted.

    Every prompt shows those with their labels, so there is nothing to learn from them.
    """
    loaded = models.load(spec, split, progress)
    speedups.apply(loaded.model)
    shots = choose_shots(split.train, spec)
    encoder = loading.prompt_encoder(loaded, spec, shots)
    left = [example for example in split.train if example not in shots]
    if not left:
        raise TrialError(
            f"prompt.shots: {spec.prompt.shots} leaves none of {len(split.train)} training texts"
        )
    examples, parameters = encoder.encode_examples(left), loaded.model.num_parameters()
    recipe = resolve(spec.training, loaded.family, parameters, len(examples))
    return _Task(loaded, encoder, shots, examples, parameters, recipe)


def _evaluate(
    spec: TrialSpec, split: Split, task: _Task, model: PreTrainedModel, progress: Progress
) -> tuple[tuple[float, ...] | None, tuple[Prediction, ...]]:
    """Return the prior of the labels, if any, and a prediction for every test text."""
    loaded = replace(task.loaded, model=model)
    with memory.allocation_errors("evaluation"):
        prior = label_prior(loaded, task.encoder, spec)
        return prior, classify(loaded, task.encoder, split.tested, spec, progress, prior)


def _save(model: PreTrainedModel, loaded: LoadedModel, folder: Path) -> None:
    with files.storage_errors(folder, model.get_memory_footprint()):
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)


def _peak_memory(accelerator: Accelerator) -> int:
    on_cuda = accelerator.device.type == "cuda"
    return torch.cuda.max_memory_allocated() if on_cuda else memory.peak()


def checkpoints(
    spec: TrialSpec, split: Split, commit: str | None, folder: Path | None
) -> Checkpoints | None:
    """Return the checkpoints of a trial; those of other settings, texts or weights do not count."""
    if folder is None or spec.checkpoint_minutes is None:
        return None
    identity = {
        "fingerprint": spec.fingerprint,
        "split_sha256": split.sha256,
        "commit": commit or "",
    }
    return Checkpoints(folder, identity, spec.checkpoint_minutes * 60)
