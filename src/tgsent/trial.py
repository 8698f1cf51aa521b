"""One trial: fine-tune one model on one split and score it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from tgsent import __version__, memory, metrics, models
from tgsent.config import TrialSpec
from tgsent.evaluate import classify
from tgsent.finetune import loop, trainable
from tgsent.finetune.family import Batch, Counted
from tgsent.records import Encoded, Progress, Split, TrialResult


def run_trial(
    spec: TrialSpec, split: Split, progress: Progress, save_to: Path | None = None
) -> TrialResult:
    """Run one trial; the result depends on `spec` and `split` alone.

    The fine-tuned model is saved in the folder `save_to`, where one is given.
    """
    accelerator = loop.make_accelerator(spec.training)
    on_cuda = accelerator.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    set_seed(spec.seed)
    with progress.task(f"{spec.title}, loading", 1) as task, memory.explained(spec, "loading"):
        loaded = models.load(spec, split.train)
        task.advance(1)
    encoder = models.prompt_encoder(loaded, spec)
    examples = encoder.encode_examples(split.train)
    training = spec.training
    pad_to = training.max_tokens if training.padding == "max_tokens" else None

    counted: Counted = "padded" if training.loss_on_padding else training.loss

    def collate(batch: Sequence[Encoded]) -> Batch:
        return loaded.family.collate(batch, loaded.ids, counted, pad_to)

    set_seed(spec.seed)  # loading has drawn random numbers, for some models more than for others
    with memory.explained(spec, "training"):
        merge = trainable.prepare(loaded.model, training)
        trainable_parameters = trainable.count(loaded.model)
        trained = loop.train(
            loaded.model,
            examples,
            collate,
            training,
            learning_rate=models.learning_rate(training, loaded.family),
            seed=spec.seed,
            accelerator=accelerator,
            progress=progress,
            title=spec.title,
        )
        merge()  # the model that is scored is the one that is saved
    started = time.perf_counter()
    with memory.explained(spec, "evaluation"):
        predictions = classify(loaded, encoder, split.test, spec, progress)
    eval_seconds = time.perf_counter() - started
    if save_to is not None:
        accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False).save_pretrained(save_to)
        loaded.tokenizer.save_pretrained(save_to)

    result: dict[str, Any] = {
        "model": spec.name,
        "trial": spec.trial,
        "seed": spec.seed,
        **metrics.score(predictions, spec.labels),
        "truncated": encoder.truncated,
        "n_train": len(split.train),
        "n_test": len(split.test),
        "steps": trained.steps,
        "learning_rate": models.learning_rate(training, loaded.family),
        "train_seconds": trained.seconds,
        "train_examples_per_second": trained.examples / trained.seconds,
        "eval_seconds": eval_seconds,
        "eval_examples_per_second": len(split.test) / eval_seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_cuda else _peak_memory(),
        "parameters": loaded.model.num_parameters(),
        "trainable_parameters": trainable_parameters,
        "device": accelerator.device.type,
        "precision": loop.resolve_precision(training.precision, accelerator.device.type),
        "split_sha256": split.sha256,
        "fingerprint": spec.fingerprint,
        "signature": signature(spec, split),
    }
    accelerator.free_memory()
    memory.release()
    return TrialResult(result, predictions, trained.log)


def signature(spec: TrialSpec, split: Split) -> str:
    """Name in one line what the score depends on."""
    return (
        f"tgsent:{__version__}|model:{spec.model}|init:{spec.training.init}"
        f"|decoding:{spec.evaluation.decoding}|seed:{spec.seed}"
        f"|config:{spec.fingerprint[:12]}|split:{split.sha256[:12]}"
    )


def _peak_memory() -> int:
    """Give the highest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
