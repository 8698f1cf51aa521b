"""How many trials can be driven, written, listed and reported: with trials that take no time.

    python scripts/bench_scale.py

A cluster that answers at once, at random, stands for Ray. All else is the real thing: splits,
locks, files that the disk must hold before it goes on, the growing table, the reports. Then it is
asked for again, which finds all trials finished, and `tgsent report` shows the folder. Exits with 1
where fewer than 200 trials are finished in a second, a report (but JSON) takes 5 s or more, or a
trial costs more than 20 kB of memory, which is what the table itself takes.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import TrialSpec, load
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.experiment import execute, ray_engine, trial
from tgsent.experiment.execute import PendingRun
from tgsent.progress import Quiet
from tgsent.records import Prediction, Splits
from tgsent.runs.metrics import TrialResult

MODELS = ("gpt2", "gpt-neo", "t5", "majority")
LEAST_PER_SECOND, LONGEST_REPORT, MOST_BYTES = 200, 5.0, 20_000


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=10_000, help="of all models together")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; else a temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        sys.exit(0 if measure(args.trials, Path(folder)) else 1)


def measure(trials: int, folder: Path) -> bool:
    """Drive, list and report so many trials; tell whether all bounds are kept."""
    config = load(
        "smoke",
        models=MODELS,
        trials=trials // len(MODELS),
        output_dir=str(folder),
        engine="ray",
        overrides=["data.sample_size=400", "data.test_fraction=0.05"],
    )
    dataset = load_dataset(config.data)
    started = time.perf_counter()
    splits = TrialSplits(dataset, config)
    show("splits made", time.perf_counter() - started, f"{config.trials:,} of 400 texts")

    cluster = IdleCluster(config.trial_specs(dataset.labels)[-1], splits)
    with mock.patch.object(ray_engine, "attempts", cluster.attempts):
        execute.run(config, dataset, splits)
    speed = len(cluster.memory) / cluster.seconds
    show("trials finished", cluster.seconds, f"{speed:.0f} a second")
    started = time.perf_counter()
    execute.run(config, dataset, splits)
    show("nothing left to do", time.perf_counter() - started, "found finished, and reported")
    tenth = len(cluster.memory) // 10
    growth = (cluster.memory[-1] - cluster.memory[tenth]) / (len(cluster.memory) - tenth)
    megabytes = cluster.memory[-1] / 1e6
    print(f"memory {megabytes:.0f} MB at the end, {growth / 1e3:.1f} kB for each trial")

    longest = 0.0
    for form in ("table", "csv", "json", "markdown", "html"):
        command = [sys.executable, "-m", "tgsent", "report", str(config.folder), "--format", form]
        started = time.perf_counter()
        written = subprocess.run(command, check=True, capture_output=True).stdout
        took = time.perf_counter() - started
        if form != "json":  # 25 MB, of which the writing alone takes a second
            longest = max(longest, took)
        show(f"report as {form}", took, f"{len(written) / 1e6:.1f} MB")
    return speed >= LEAST_PER_SECOND and longest < LONGEST_REPORT and growth < MOST_BYTES


class IdleCluster:
    """Gives results of trials that nobody runs."""

    def __init__(self, spec: TrialSpec, splits: Splits) -> None:
        outcome = backend_of(spec).run(spec, splits[0], Quiet(), TrialFolders())
        self._metrics = trial.result(spec, splits[0], outcome).metrics
        self._tests = [(splits[k].test, about) for k, about in enumerate(splits.summaries)]
        self._rng = random.Random(1)
        self.memory: list[int] = []
        self.seconds = 0.0

    def attempts(self, run: PendingRun) -> Iterator[tuple[TrialSpec, ray_engine.Returned]]:
        """Answer at random."""
        started = time.perf_counter()
        for spec in run.unfinished:
            yield spec, (self._result(spec), {})
            self.memory.append(resident())
        self.seconds = time.perf_counter() - started

    def _result(self, spec: TrialSpec) -> TrialResult:
        test, about = self._tests[spec.trial - 1]
        answers = [self._rng.choice(spec.labels) for _ in test]
        predictions = tuple(
            Prediction(one.text, one.label, answer, f" {answer}")
            for one, answer in zip(test, answers, strict=True)
        )
        right = sum(p.label == p.predicted for p in predictions) / len(predictions)
        metrics = replace(
            self._metrics,
            macro_f1=right,  # or nearly so
            accuracy=right,
            model=spec.name,
            trial=spec.trial,
            seed=spec.seed,
            fingerprint=spec.fingerprint,
            split_sha256=about.sha256,
        )
        return TrialResult(metrics, predictions, ({"step": 1, "loss": 0.5},))


def resident() -> int:
    """Return the memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def show(what: str, seconds: float, note: str) -> None:
    """Print a row."""
    print(f"{what:<22}{seconds:8.2f} s   {note}", flush=True)


if __name__ == "__main__":
    main()
