"""tgsent's own backend: fine-tune with our loop, then let the model generate the labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import set_seed

from tgsent import files
from tgsent.backends import Backend, TrialFolders
from tgsent.config import TrialSpec
from tgsent.errors import ConfigError, TrialError
from tgsent.evaluation import metrics
from tgsent.evaluation.generate import classify, label_prior
from tgsent.modeling import loading, speedups, tiny
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder, choose_shots, without_shots
from tgsent.modeling.tokens import legibility
from tgsent.records import Encoded, Example, Outcome, Progress, Split
from tgsent.training import adapters, loop, memory, trackers
from tgsent.training.checkpoint import Checkpoints
from tgsent.training.recipe import check_installed, resolve


class Native(Backend):
    """Trains in this process, or in several that share every batch and the test texts."""

    in_our_loop = True

    def check_installed(self, spec: TrialSpec) -> None:
        """Raise UnavailableError where peft or a tracker is missing."""
        check_installed(spec.training)

    def check(
        self, spec: TrialSpec, *, here: bool = True, loaded: LoadedModel | None = None
    ) -> tuple[str, ...]:
        """Check the model as `Backend.check` says."""
        if spec.training.init == "tiny":
            tiny.architecture(spec.model, loading.model_type(spec.model), spec.training.max_tokens)
            if spec.prompt.template == "chat":
                raise ConfigError("prompt.template: a tiny model has no chat template; use `plain`")
            return ()
        loaded = loaded or loading.describe(spec, ())
        loading.prompt_encoder(loaded, spec)
        if here:
            memory.check(loaded.model, spec)
        if loaded.tokenizer.chat_template and spec.prompt.template == "plain":
            return (
                f"{spec.name}: its tokenizer has a chat template, and its prompts are plain;"
                " prompt.template=chat uses the template",
            )
        return ()

    def run(
        self, spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders
    ) -> Outcome:
        """Train and evaluate as `Backend.run` says."""
        accelerator = loop.make_accelerator(spec.training, folders.trackers)
        if on_cuda := accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with trackers.tracking(spec, accelerator):
            loaded, shots, encoder, examples = _prepare(spec, split, progress)
            model, parameters = loaded.model, loaded.model.num_parameters()
            recipe = resolve(spec.training, loaded.family, parameters, len(examples))
            with memory.allocation_errors("training"):
                merge = adapters.prepare(model, spec.training)
                trainable_parameters = model.num_parameters(only_trainable=True)
                trained = loop.train(
                    loaded,
                    examples,
                    recipe,
                    seed=spec.seed,
                    accelerator=accelerator,
                    progress=progress,
                    title=spec.title,
                    checkpoints=checkpoints(spec, split, loaded.commit, folders.checkpoints),
                )
                merge()  # the model that is scored is the one that is saved
            # evaluated in fp32, as it is saved: in bf16 the answers would depend on the batches
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            started = time.perf_counter()
            with memory.allocation_errors("evaluation"):
                prior = label_prior(loaded, encoder, spec)
                predictions = classify(loaded, encoder, split.tested, spec, progress, prior)
            eval_seconds = time.perf_counter() - started
            if folders.model is not None:
                save(loaded, folders.model)
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
            truncated=encoder.truncated,
            truncated_tokens=encoder.truncated_tokens,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else memory.peak(),
            parameters=parameters,
            trainable_parameters=trainable_parameters,
            device=accelerator.device.type,
            precision=recipe.precision,
            example=(loaded.decode(examples[0].prompt), loaded.decode(examples[0].target)),
            shots=shots,
            warnings=illegible(loaded, encoder, split),
            label_prior=prior,
            commit=loaded.commit,
        )


def load(spec: TrialSpec, split: Split, progress: Progress) -> LoadedModel:
    """Load or build the model that training starts from."""
    set_seed(spec.seed)
    with (
        progress.task(f"{spec.title}, loading", 1) as task,
        memory.allocation_errors("loading"),
    ):
        loaded = loading.load(spec, split.train)
        task.advance(1)
    return loaded


def save(loaded: LoadedModel, folder: Path) -> None:
    """Save model and tokenizer; raise StorageError where they cannot be written."""
    with files.storage_errors(folder, loaded.model.get_memory_footprint()):
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)


def illegible(loaded: LoadedModel, encoder: PromptEncoder, split: Split) -> tuple[str, ...]:
    """Return warnings about training and test texts that the model cannot read."""
    texts = [example.text for example in (*split.train, *split.tested)]
    return legibility(loaded.tokenizer, encoder, texts).warnings


def _prepare(
    spec: TrialSpec, split: Split, progress: Progress
) -> tuple[LoadedModel, tuple[Example, ...], PromptEncoder, Sequence[Encoded]]:
    """Load the model; return it, the worked examples, the encoder, and the encoded texts."""
    loaded = load(spec, split, progress)
    speedups.apply(loaded.model)
    shots = choose_shots(split.train, spec)
    encoder = loading.prompt_encoder(loaded, spec, shots)
    remaining = without_shots(split.train, shots)
    if not remaining:
        raise TrialError(
            f"prompt.shots: {spec.prompt.shots} leaves none of {len(split.train)} training texts"
        )
    examples = encoder.encode_examples(remaining)
    set_seed(spec.seed)  # loading draws random numbers; how many depends on the model
    return loaded, shots, encoder, examples


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
