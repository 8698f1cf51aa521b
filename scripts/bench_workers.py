"""What a second worker brings: for many trials, through Ray, and for one trial, with torchrun.

    python scripts/bench_workers.py
    python scripts/bench_workers.py --model FOLDER     # and a model of full size, fresh weights

Every worker has one core. Trials are tiny GPT-2s on the shipped texts; each way is run with 2 and
with 6 of them, so that what each trial takes can be told from what starting takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FEW, MANY = 2, 6
ENGINES = {
    "here, one by one": ("--engine", "local"),
    "Ray, 1 worker": ("--engine", "ray", "--set", "engine.max_concurrent=1"),
    "Ray, 2 workers": ("--engine", "ray", "--set", "engine.max_concurrent=2"),
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="folder with a model's config and tokenizer")
    args = parser.parse_args()
    print(f"{'trials':<24}{'a trial':>10}{'start':>10}")
    for name, engine in ENGINES.items():
        few, many = (seconds_of(n, engine) for n in (FEW, MANY))
        each = (many - few) / (MANY - FEW)
        print(f"{name:<24}{each:8.1f} s{few - FEW * each:8.1f} s", flush=True)
    print(f"\n{'one trial':<24}{'training':>14}{'evaluation':>14}")
    models = {"tiny GPT-2": ("-m", "gpt2", "--set", "training.epochs=3")}
    if args.model:
        one_epoch = ("--set", "training.epochs=1", "--set", "data.sample_size=400")
        random = ("--set", "training.init=random")
        models[args.model.name] = ("-m", str(args.model.resolve()), *random, *one_epoch)
    for name, settings in models.items():
        for count, launcher in ((1, ()), (2, TORCHRUN)):
            shared = ("--set", "data.test_fraction=0.2", "--set", "evaluation.batch_size=8")
            found = run(launcher, "-n", "1", *settings, *shared)
            (trial,) = found["models"][0]["trials"]
            speeds = (trial[f"{part}_examples_per_second"] for part in ("train", "eval"))
            shown = "".join(f"{speed:8.1f} texts/s" for speed in speeds)
            print(
                f"{name}, {count} process{'es' if count > 1 else ''}".ljust(24) + shown, flush=True
            )


def seconds_of(trials: int, engine: tuple[str, ...]) -> float:
    """Run so many trials, from start to table."""
    started = time.perf_counter()
    run((), "-m", "gpt2", "-n", str(trials), *engine)
    return time.perf_counter() - started


def run(launcher: tuple[str, ...], *settings: str) -> Any:
    """Run tgsent in a new folder, each worker with one core; give `results.json`."""
    alone = ("--set", "engine.cpus_per_trial=1", "--quiet", "--json")
    command = [*launcher, "-m", "tgsent", "run", "-c", "smoke", *settings, *alone]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, check=True, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
