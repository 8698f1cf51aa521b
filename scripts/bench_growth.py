"""Measure how time and memory grow with the number of texts.

    pip install -e '.[bench]'
    python scripts/bench_growth.py --figure docs/growth.svg

Reads, splits and encodes files of 1,000 to 1,600,000 made-up rows in Sentiment140's layout, all
rows sampled, and trains a tiny GPT-2 on 1,000 to 16,000 of them for one epoch. Every size is a
process of its own; a table shows seconds of each stage, and the most memory that the process had up
to its end. The exponent b of "seconds = a * texts ** b" is fitted to the sizes from 10,000 on
(training: to all). Exits with 1 where b is above 1.1: there something grows faster than the work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

STAGES = ("reading", "splitting", "encoding", "training")
LIMIT = 1.1

MEASURED = """
import json, resource, sys, time
from tgsent.config import load
from tgsent.data.dataset import load_dataset
from tgsent.data.splits import TrialSplits
from tgsent.modeling import loading
from tgsent.training import loop
from tgsent.training.recipe import resolve
from tgsent.progress import Quiet
path, stages = sys.argv[1], sys.argv[2:]
config = load("smoke", models=["gpt2"], trials=1, overrides=[f"data.path={path}"])
found, started = {}, time.perf_counter()

def done(stage):
    global started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found[stage] = [time.perf_counter() - started, memory]
    started = time.perf_counter()

dataset = load_dataset(config.data, Quiet())
done("reading")
(split,) = TrialSplits(dataset, config)
done("splitting")
(spec,) = config.trial_specs(dataset.labels)
loaded = loading.load(spec, split.train[:1000])
encoder = loading.prompt_encoder(loaded, spec)
started = time.perf_counter()
examples = encoder.encode_examples(split.train)
done("encoding")
if "training" in stages:
    training = spec.training.model_copy(update={"epochs": 1})
    recipe = resolve(training, loaded.family, loaded.model.num_parameters(), len(examples))
    loop.train(
        loaded, examples, recipe, seed=1,
        accelerator=loop.make_accelerator(training), progress=Quiet(), title="",
    )
    done("training")
print(json.dumps({stage: found[stage] for stage in stages}))
"""


def write_file(path: Path, rows: int) -> None:
    """Write made-up rows in the original's layout and of its size, 150 bytes each."""
    rng = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(5000)]
    words += ["caf\xe9", "&quot;so&quot;", "&amp;", "lol,", "!!!", "http://made.up/x"] * 10
    names = ["".join(rng.choices(letters, k=rng.randint(6, 13))) for _ in range(5000)]
    dates = [
        f"Mon Apr {day:02} {hour:02}:19:45 PDT 2009" for day in range(1, 31) for hour in range(24)
    ]
    with path.open("w", encoding="iso-8859-1", newline="") as file:
        for number in range(rows):
            text = "so tired "  # which is repeated
            if rng.random() >= 0.012:
                text = " ".join(rng.choices(words, k=rng.randint(4, 22)))
            if number % 100_000 == 0:
                text += ' with ""quotes""'
            label = 0 if number < rows // 2 else 4
            date, name = dates[number % 720], names[number % 5000]
            file.write(f'"{label}","{1467810369 + number}","{date}","NO_QUERY","{name}","{text}"\n')


def measure(path: Path, stages: tuple[str, ...]) -> dict[str, list[float]]:
    """Run one process; give seconds and peak memory in bytes of each stage."""
    with tempfile.TemporaryDirectory() as cache:  # nothing that was read before
        environment = {**os.environ, "TGSENT_CACHE": cache}
        command = [sys.executable, "-c", MEASURED, str(path), *stages]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def measure_all(
    sizes: list[int], trained: list[int], folder: Path
) -> dict[str, dict[int, list[float]]]:
    """Measure every stage at every size; the fastest of three where it takes little."""
    found: dict[str, dict[int, list[float]]] = {stage: {} for stage in STAGES}
    for size in sorted({*sizes, *trained}):
        path = folder / f"{size}.csv"
        write_file(path, size)
        stages = (STAGES[:3] if size in sizes else ()) + (STAGES[3:] if size in trained else ())
        for _ in range(3 if size <= 100_000 else 1):
            for stage, numbers in measure(path, stages).items():
                found[stage][size] = min(numbers, found[stage].get(size, numbers))
        path.unlink()
        print(f"{size:,} texts", file=sys.stderr, flush=True)
    return found


def exponent(by_size: dict[int, list[float]], column: int, least: int) -> float:
    """Fit b of `a * size ** b` by least squares of the logarithms (column 0 seconds, 1 memory)."""
    sizes = [size for size in by_size if size >= least]
    values = [by_size[size][column] for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def draw(found: dict[str, dict[int, list[float]]], exponents: dict[str, float], file: Path) -> None:
    """Draw seconds and memory against the number of texts, both logarithmic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "growth"  # the same picture for the same numbers
    figure = Figure(figsize=(9, 4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for (stage, by_size), marker in zip(found.items(), "osD^", strict=False):
        sizes = sorted(by_size)
        for axis, column, unit in ((seconds, 0, 1), (memory, 1, 1e6)):
            values = [by_size[size][column] / unit for size in sizes]
            label = f"{stage}: exponent {exponents[stage]:.2f}" if column == 0 else stage
            axis.loglog(sizes, values, marker=marker, label=label)
    seconds.set(xlabel="texts", ylabel="seconds", title="time")
    memory.set(xlabel="texts", ylabel="MB, of the whole process", title="peak memory")
    for axis in (seconds, memory):
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Read the command line, measure, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_600_000])
    parser.add_argument("--trained", type=int, nargs="*", default=[1_000, 4_000, 16_000])
    parser.add_argument("--figure", type=Path, help="write it here, as SVG")
    args = parser.parse_args()
    if len({size for size in args.sizes if size >= 10_000}) < 2:
        parser.error("--sizes: needs two from 10,000 on, to fit an exponent to")
    with tempfile.TemporaryDirectory() as folder:
        found = measure_all(args.sizes, args.trained, Path(folder))
    found = {stage: by_size for stage, by_size in found.items() if by_size}
    least = {stage: 0 if stage == "training" else 10_000 for stage in found}
    exponents = {s: exponent(by_size, 0, least[s]) for s, by_size in found.items()}
    print("| texts |" + "".join(f" {stage}, s | MB |" for stage in found))
    print("|--:|" + "--:|--:|" * len(found))
    for size in sorted({size for by_size in found.values() for size in by_size}):
        cells = [
            f" {by_size[size][0]:.3g} | {by_size[size][1] / 1e6:,.0f} |" if size in by_size
            else " | |" for by_size in found.values()
        ]  # fmt: skip
        print(f"| {size:,} |{''.join(cells)}")
    print("| exponent |" + "".join(f" {exponents[stage]:.2f} | |" for stage in found))
    largest, smallest = max(args.sizes), min(args.sizes)
    more = found["encoding"][largest][1] - found["encoding"][smallest][1]
    print(f"\nEvery text more takes {more / (largest - smallest):,.0f} bytes, examples and tokens.")
    if args.figure:
        draw(found, exponents, args.figure)
    if too_fast := [stage for stage, b in exponents.items() if b > LIMIT]:
        sys.exit(f"grows faster than the work: {', '.join(too_fast)}")


if __name__ == "__main__":
    main()
