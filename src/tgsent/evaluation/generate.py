"""Classify texts with a fine-tuned model: generate a label or score all labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tgsent.config import TrialSpec
from tgsent.modeling.family import Batch, log_likelihood
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder, parse, render_target
from tgsent.records import Example, Prediction, Progress
from tgsent.training import distributed

Prompt = tuple[int, ...]

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Content-free texts, for which an unbiased model prefers no label (Zhao et al. 2021)."""


@torch.inference_mode()
def classify(
    loaded: LoadedModel,
    encoder: PromptEncoder,
    examples: Sequence[Example],
    spec: TrialSpec,
    progress: Progress,
    prior: Sequence[float] | None = None,
) -> tuple[Prediction, ...]:
    """Classify each example's text; return the predictions in the same order.

    Texts of about one length share a batch, the longest first. The answers do not depend on that,
    nor on how many processes share the work. With `decoding: score`, `prior` corrects the
    probabilities, as in `corrected`.
    """
    prompts = encoder.encode_prompts([example.text for example in examples])
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    size = spec.evaluation.batch_size
    answer = partial(_score, prior=prior) if spec.evaluation.decoding == "score" else _generate
    predictions: dict[int, Prediction] = {}
    loaded.model.eval()
    with progress.task(f"{spec.title}, evaluation", len(examples)) as task:
        for start in range(0, len(order), size)[distributed.rank() :: distributed.world_size()]:
            indices = order[start : start + size]
            answers = answer(loaded, encoder, [prompts[i] for i in indices], spec)
            for index, (text, probabilities) in zip(indices, answers, strict=True):
                predictions[index] = Prediction(
                    text=examples[index].text,
                    label=examples[index].label,
                    predicted=parse(spec.prompt, spec.labels, text),
                    generated=text,
                    probabilities=probabilities,
                )
            task.advance(len(indices) * distributed.world_size())
    gathered = {i: p for part in distributed.gather(predictions) for i, p in part.items()}
    return tuple(gathered[i] for i in range(len(examples)))


def _generate(
    loaded: LoadedModel, encoder: PromptEncoder, prompts: Sequence[Prompt], spec: TrialSpec
) -> Iterator[tuple[str, None]]:
    """Generate until the EOS token, but no more tokens than the longest target has.

    Decoding is greedy, except for models of the package SimpleT5, which use its beam search.
    """
    batch = _batch(loaded, prompts)
    targets = list(encoder.targets.values())
    search: dict[str, object] = {"num_beams": 1, "max_new_tokens": max(map(len, targets))}
    if package := spec.training.package:
        search = {
            "num_beams": package.num_beams,
            "max_new_tokens": package.target_max_tokens - 1,  # the package counts the start token
            "repetition_penalty": package.repetition_penalty,
            "early_stopping": True,
        }
    if spec.evaluation.decoding == "constrained":
        search["prefix_allowed_tokens_fn"] = partial(_continuations, loaded, targets, batch)
    generated: Tensor = loaded.model.generate(  # type: ignore[operator]  # transformers 5 leaves it untyped
        **batch, do_sample=False, **search
    )
    for row in loaded.family.new_tokens(generated, batch).tolist():
        end = row.index(loaded.ids.end) if loaded.ids.end in row else len(row)
        yield loaded.decode(row[:end]), None


def _continuations(
    loaded: LoadedModel, targets: Sequence[Prompt], batch: Batch, _row: int, ids: Tensor
) -> list[int]:
    """Return the tokens that continue one of the targets after a row's tokens (T)."""
    so_far = tuple(loaded.family.new_tokens(ids[None], batch)[0].tolist())
    following = {t[len(so_far)] for t in targets if t[: len(so_far)] == so_far < t}
    return sorted(following) or [loaded.ids.end]


@torch.inference_mode()
def label_prior(
    loaded: LoadedModel, encoder: PromptEncoder, spec: TrialSpec
) -> tuple[float, ...] | None:
    """Return each label's mean probability over content-free texts; None without calibration."""
    if spec.calibration == "none":
        return None
    counts = encoder.truncated, encoder.truncated_tokens
    # the prompt of the empty text is empty where the template is the bare text
    prompts = [prompt for prompt in encoder.encode_prompts(CONTENT_FREE) if prompt]
    encoder.truncated, encoder.truncated_tokens = counts  # the user did not write these texts
    loaded.model.eval()
    probabilities = _log_likelihoods(loaded, encoder, prompts, spec).softmax(dim=1)
    return tuple(probabilities.mean(dim=0).tolist())


def corrected(log_likelihoods: Tensor, prior: Sequence[float] | None) -> Tensor:
    """Turn the labels' log-likelihoods (B, labels) into probabilities.

    With a `prior`, divide each probability by its label's prior and normalize. Logarithms are
    subtracted instead, so that a vanishing prior does not overflow.
    """
    if prior is not None:
        shares = torch.tensor(prior, dtype=torch.float64, device=log_likelihoods.device)
        smallest = torch.finfo(torch.float64).tiny
        log_likelihoods = log_likelihoods - shares.clamp(min=smallest).log()
    return log_likelihoods.softmax(dim=1)


def _score(
    loaded: LoadedModel,
    encoder: PromptEncoder,
    prompts: Sequence[Prompt],
    spec: TrialSpec,
    prior: Sequence[float] | None,
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Choose the likeliest target; its likelihood is that of its tokens and the EOS token."""
    for row in corrected(_log_likelihoods(loaded, encoder, prompts, spec), prior).tolist():
        likeliest = spec.labels[row.index(max(row))]
        yield render_target(spec.prompt, likeliest), tuple(row)


def _log_likelihoods(
    loaded: LoadedModel, encoder: PromptEncoder, prompts: Sequence[Prompt], spec: TrialSpec
) -> Tensor:
    """Compute the log-likelihood of each label's target after each prompt: (B, labels)."""
    batch, targets = _batch(loaded, prompts), [encoder.targets[label] for label in spec.labels]
    found = loaded.family.target_logits(loaded.model, batch, targets)
    columns = [
        log_likelihood(logits, torch.tensor(target, device=logits.device))
        for logits, target in zip(found, targets, strict=True)
    ]
    return torch.stack(columns, dim=1).double()


def _batch(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Batch:
    """Make a batch of prompts on the model's device."""
    batch = loaded.family.prompt_batch(prompts, loaded.ids)
    return {name: tensor.to(loaded.model.device) for name, tensor in batch.items()}
