"""Compare the scores of tgsent's fast training with those of the same recipe written plainly.

    python scripts/compare_recipes.py                              # the shipped sample
    python scripts/compare_recipes.py --data TWEETS.csv --sample 5000

Both ways train the same tiny models on the same splits, seed by seed, with 30 % of the texts for
the test, with dropout of 10 % and the big models' GELU. The plain way is the library's model as it
is, batches in random order, every text padded to the longest of all, logits at every position, an
optimizer that is not fused, and one text at a time when answering. The table shows the mean
macro-F1 of both and the mean paired difference with its 99 % interval (Student's t). Exits with 1
where an interval does not hold zero, or is wider than 10 points to a side and so shows nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from accelerate.utils import set_seed
from scipy import stats
from torch.nn import functional

from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import RunConfig, TrialSpec, load
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.evaluation import metrics
from tgsent.modeling import loading, tiny
from tgsent.modeling.family import IGNORE
from tgsent.modeling.prompts import parse
from tgsent.progress import Quiet
from tgsent.records import Encoded, Prediction, Split
from tgsent.training.recipe import resolve

TEST_FRACTION = 0.3
WIDEST = 0.10
architecture = tiny.architecture  # before it is replaced by what follows


def like_big(model: str, model_type: str, positions: int) -> Any:
    """Return the tiny architecture with dropout and activation as big models have them."""
    config = architecture(model, model_type, positions)
    for name in (
        "embd_pdrop", "resid_pdrop", "attn_pdrop",  # GPT-2
        "embed_dropout", "resid_dropout", "attention_dropout",  # GPT-Neo
        "dropout_rate",  # T5
    ):  # fmt: skip
        if hasattr(config, name):
            setattr(config, name, 0.1)
    if hasattr(config, "activation_function"):
        config.activation_function = "gelu_new"
    return config


def score_fast(spec: TrialSpec, split: Split) -> float:
    """Train and answer as `tgsent run` does; give the macro-F1."""
    outcome = backend_of(spec).run(spec, split, Quiet(), TrialFolders())
    return metrics.score(outcome.predictions, spec.labels).macro_f1


def score_plainly(spec: TrialSpec, split: Split) -> float:
    """Do the same in the plainest way; give the macro-F1."""
    set_seed(spec.seed)
    loaded = loading.load(spec, split.train)
    encoder = loading.prompt_encoder(loaded, spec)
    examples = encoder.encode_examples(split.train)
    train_plainly(loaded, examples, spec)
    model, predictions = loaded.model.eval(), []
    longest = max(map(len, encoder.targets.values()))
    for example, prompt in zip(
        split.test, encoder.encode_prompts([e.text for e in split.test]), strict=True
    ):
        batch = loaded.family.prompt_batch([prompt], loaded.ids)
        output = model.generate(**batch, do_sample=False, max_new_tokens=longest)  # type: ignore[operator]
        (answer,) = loaded.family.new_tokens(output, batch).tolist()
        text = loaded.decode(answer[: answer.index(loaded.ids.end)] if loaded.ids.end in answer
                             else answer)  # fmt: skip
        predictions.append(
            Prediction(example.text, example.label, parse(spec.prompt, spec.labels, text), text)
        )
    macro_f1: float = metrics.score(predictions, spec.labels).macro_f1
    return macro_f1


def train_plainly(
    loaded: loading.LoadedModel, examples: Sequence[Encoded], spec: TrialSpec
) -> None:
    """Train with the loss on labels, padded to the longest, all logits computed."""
    model, training, ids = loaded.model.train(), spec.training, loaded.ids
    seq2seq = loaded.family.is_seq2seq
    read = [e.prompt if seq2seq else e.prompt + e.target[:-1] for e in examples]
    written = [
        e.target if seq2seq else (IGNORE,) * (len(e.prompt) - 1) + e.target for e in examples
    ]
    inputs, labels = padded(read, ids.pad), padded(written, IGNORE)
    mask = padded([(1,) * len(r) for r in read], 0)
    recipe = resolve(training, loaded.family, model.num_parameters(), len(examples))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=1.0,  # times the schedule's
        foreach=False,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate_at)
    set_seed(spec.seed)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(examples)).split(training.batch_size):
            more = {}
            if seq2seq:
                start = torch.full((len(rows), 1), ids.decoder_start)
                before = labels[rows, :-1].masked_fill(labels[rows, :-1] == IGNORE, ids.pad)
                more["decoder_input_ids"] = torch.cat([start, before], dim=1)
            logits = model(input_ids=inputs[rows], attention_mask=mask[rows], **more).logits
            loss = functional.cross_entropy(
                logits.flatten(0, 1), labels[rows].flatten(), ignore_index=IGNORE
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm or 1e9)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Pad on the right to the longest: (rows, T)."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )


def compare(config: RunConfig, seeds: int) -> bool:
    """Print the table; give whether every interval holds zero."""
    dataset = load_dataset(config.data)
    splits = TrialSplits(dataset, config)
    print("| model | fast, mean | plain, mean | difference, 99 % interval | fast, s | plain, s |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    agree = True
    for name in config.names:
        scores: dict[str, list[float]] = {"fast": [], "plain": []}
        seconds = {"fast": 0.0, "plain": 0.0}
        for spec in config.trial_specs(dataset.labels):
            if spec.name != name:
                continue
            for way, score in (("fast", score_fast), ("plain", score_plainly)):
                started = time.perf_counter()
                scores[way].append(score(spec, splits[spec.trial - 1]))
                seconds[way] += time.perf_counter() - started
            print(f"{name} {spec.trial}: {scores['fast'][-1]:.4f} {scores['plain'][-1]:.4f}",
                  file=sys.stderr, flush=True)  # fmt: skip
        differences = [f - p for f, p in zip(scores["fast"], scores["plain"], strict=True)]
        mean, error = statistics.fmean(differences), stats.sem(differences)
        half = float(stats.t.ppf(0.995, seeds - 1) * error)
        agree = agree and abs(mean) <= half <= WIDEST
        print(
            f"| {name} | {statistics.fmean(scores['fast']):.4f}"
            f" | {statistics.fmean(scores['plain']):.4f}"
            f" | {mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
            f" | {seconds['fast']:.0f} | {seconds['plain']:.0f} |",
            flush=True,
        )
    return agree


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample", help="what data.path may be")
    parser.add_argument("--sample", type=int, help="take so many of its texts")
    parser.add_argument("--seeds", type=int, default=5, help="two or more (5)")
    parser.add_argument("--model", action="append", help="only this one; repeat for more")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error("--seeds: a difference needs two to be judged")
    config = load(
        "smoke", models=asked.model or (), trials=asked.seeds,
        overrides=[
            f"data.path={asked.data}", f"data.test_fraction={TEST_FRACTION}",
            "training.device=cpu", "training.precision=fp32",
            f"data.sample_size={'null' if asked.sample is None else asked.sample}",
        ],
    )  # fmt: skip
    print(f"{asked.data}, {asked.sample or 'all'} texts, {asked.seeds} seeds, tiny models\n")
    with mock.patch.object(tiny, "architecture", like_big):
        sys.exit(0 if compare(config, asked.seeds) else 1)


if __name__ == "__main__":
    main()
