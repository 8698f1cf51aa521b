"""Measure a training step with and without each thing that was tried to make it faster.

    python scripts/bench_tries.py                # GPT-2; torch.compile needs a C++ compiler
    python scripts/bench_tries.py --model t5

Every try is a process of its own and they take turns: 32 texts of 30 tokens, the first four the
same in all, the label's two tokens counted, full size with random weights, on a CPU. The table
shows the median of all steps but each process's first, and how much faster that is than the try
that it builds on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

TEXTS, TOKENS, PREFIX, LABEL = 32, 30, 4, 2
LIBRARY = "the library's model"
KEPT = "last MLP only where it is read"


@dataclass(frozen=True)
class Try:
    """Something tried, on top of another try."""

    name: str
    after: str
    families: tuple[str, ...] = ("causal", "seq2seq")


TRIES = (
    Try(LIBRARY, ""),
    Try("logits at the label only", LIBRARY, ("causal",)),
    Try("freed memory kept", "logits at the label only"),
    Try("GELU as one kernel", "freed memory kept", ("causal",)),
    Try("dropout from 16 bits", "GELU as one kernel"),
    Try("shared prefix read once", "dropout from 16 bits", ("causal",)),
    Try(KEPT, "shared prefix read once", ("causal",)),
    Try("eager attention", KEPT),
    Try("no attention mask", KEPT, ("causal",)),
    Try("no gradient clipping", KEPT),
    Try("bf16 (autocast)", KEPT),
    Try("torch.compile", "freed memory kept"),
)


def ancestry(name: str, family: str) -> list[Try]:
    """Return a try and all that it builds on, those left out that its family has no use for."""
    by_name = {one.name: one for one in TRIES}
    found = []
    while name:
        found.append(by_name[name])
        name = by_name[name].after
    return [one for one in reversed(found) if family in one.families]


def prepare(model: Any, wanted: list[str]) -> Any:
    """Change the model, and this process, as the tries want it."""
    from tgsent.modeling import speedups
    from tgsent.training import memory

    if "eager attention" in wanted:
        model.set_attn_implementation("eager")
    if "freed memory kept" in wanted:
        memory.keep_freed_memory()
    if "GELU as one kernel" in wanted:
        speedups.fuse_gelu(model)
    if "dropout from 16 bits" in wanted:
        speedups.draw_less_for_dropout(model)
    if "shared prefix read once" in wanted:
        speedups.read_prefix_once(model)
    if KEPT in wanted:
        speedups.skip_unread_positions(model)
    return model


def measure(model_name: str, wanted: list[str], steps: int) -> list[float]:
    """Take some steps in this process; give the seconds of each."""
    import torch

    from tgsent.modeling import loading
    from tgsent.modeling.family import Batch, token_losses
    from tgsent.training import loop

    torch.manual_seed(1)
    model = prepare(loading.load(_spec(model_name), ()).model.train(), wanted)
    ids = torch.randint(2, 30_000, (TEXTS, TOKENS))
    ids[:, :PREFIX] = ids[0, :PREFIX]  # `Tweet:` and what stands before it
    batch: Batch = {"input_ids": ids, "labels": ids[:, -LABEL:]}
    if "no attention mask" not in wanted:
        batch["attention_mask"] = torch.ones_like(ids)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :LABEL]
    elif "logits at the label only" in wanted:
        batch["logits_to_keep"] = torch.arange(TOKENS - LABEL - 1, TOKENS - 1)
    else:
        batch["labels"] = torch.nn.functional.pad(ids[:, -LABEL:], (TOKENS - LABEL, 0), value=-100)
    optimizer = loop.make_optimizer(model, 1e-5, 0.01)
    run = torch.compile(model) if "torch.compile" in wanted else model
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16 (autocast)" in wanted):
            loss = token_losses(run, batch).sum() / (TEXTS * LABEL)
        loss.backward()  # type: ignore[no-untyped-call]
        if "no gradient clipping" not in wanted:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def _spec(model_name: str) -> Any:
    from tgsent.config import load

    config = load("default", models=[model_name], overrides=["training.init=random"])
    (spec, *_) = config.trial_specs(("negative", "positive"))
    return spec


def main() -> None:
    """Read the command line, measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.model, args.one, args.steps)))
        return
    from tgsent.modeling import loading

    is_seq2seq = loading.describe(_spec(args.model), ()).family.is_seq2seq
    family = "seq2seq" if is_seq2seq else "causal"
    tries = [one for one in TRIES if family in one.families]
    found: dict[str, list[list[float]]] = {one.name: [] for one in tries}
    for number in range(args.repeats):
        for one in tries:
            names = [step.name for step in ancestry(one.name, family)]
            command = [sys.executable, __file__, "--model", args.model, "--steps", str(args.steps)]
            done = subprocess.run(
                [*command, "--one", *names], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{one.name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
                continue
            found[one.name].append(json.loads(done.stdout))
            print(f"{number + 1}/{args.repeats} {one.name}", file=sys.stderr, flush=True)
    print("| tried | on top of | step, s | texts/s | gain | first step, s |")
    print("|---|---|--:|--:|--:|--:|")
    step = {
        name: statistics.median(s for run in runs for s in run[1:])
        for name, runs in found.items() if runs
    }  # fmt: skip
    for one in tries:
        if one.name not in step:
            print(f"| {one.name} | | failed | | | |")
            continue
        before = [s.name for s in ancestry(one.name, family)][:-1]
        now, first = step[one.name], statistics.median(run[0] for run in found[one.name])
        gain = f"{step[before[-1]] / now - 1:+.1%}" if before and before[-1] in step else ""
        print(
            f"| {one.name} | {before[-1] if before else ''} | {now:.3f} | {TEXTS / now:.2f}"
            f" | {gain} | {first:.1f} |"
        )


if __name__ == "__main__":
    main()
