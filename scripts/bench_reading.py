"""Compare reading and sampling a file of Sentiment140's size with plain pandas, side by side.

    python scripts/bench_reading.py

Every measurement is a process of its own: seconds from the imports on (the same for all) to the
sample and its first split, and the most memory that the process had. Exits with 1 where reading
for the first time needs more than half of pandas' time or memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = 1_600_000
REPEATED = 0.012
LIMIT = 0.5

MEASURED = """
import json, resource, sys, time
import pandas as pd
from sklearn.model_selection import train_test_split
{imports}
path, start = sys.argv[1], time.perf_counter()
{work}
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
seconds = time.perf_counter() - start
print(json.dumps([seconds, memory, texts[:100] + texts[-100:]]))
"""
PANDAS = MEASURED.format(
    imports="",
    work="""
sample = pd.read_csv(path, encoding="ISO-8859-1", header=None).sample(10000, random_state=1)
train_test_split(sample, test_size=0.05, stratify=sample[0], random_state=1)
texts = list(sample[5])
""",
)
OURS = MEASURED.format(
    imports="""
from tgsent.config import DataConfig, RunConfig
from tgsent.data import load_dataset, make_splits
""",
    work="""
data = DataConfig(path=path, deduplicate=DEDUPLICATE)
dataset = load_dataset(data)
make_splits(dataset, RunConfig(data=data, trials=1))
texts = list(dataset.frame["text"])
""",
)
WAYS = {
    "pandas": PANDAS,
    "tgsent, first time": OURS.replace("DEDUPLICATE", "False"),
    "tgsent, again": OURS.replace("DEDUPLICATE", "False"),
    "tgsent, without repeats, first time": OURS.replace("DEDUPLICATE", "True"),
    "tgsent, without repeats, again": OURS.replace("DEDUPLICATE", "True"),
}


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
            repeats = rng.random() < REPEATED
            text = "so tired " if repeats else " ".join(rng.choices(words, k=rng.randint(4, 22)))
            if number % 100_000 == 0:
                text += ' with ""quotes""'
            label = 0 if number < rows // 2 else 4
            date, name = dates[number % 720], names[number % 5000]
            file.write(f'"{label}","{1467810369 + number}","{date}","NO_QUERY","{name}","{text}"\n')


def measure(code: str, path: Path, cache: Path) -> tuple[float, float, list[str]]:
    """Run one process; give its seconds, its MB and some of its sample."""
    environment = {**os.environ, "TGSENT_CACHE": str(cache)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds, memory, texts = json.loads(done.stdout)
    return seconds, memory, texts


def measure_all(path: Path, repeats: int) -> dict[str, tuple[float, float]]:
    """Measure all ways in turn, several times; give the medians."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    samples: dict[str, list[str]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for way, code in WAYS.items():
                *numbers, samples[way] = measure(code, path, Path(cache))
                found[way].append((numbers[0], numbers[1]))
    if len({tuple(samples[way]) for way in list(WAYS)[:3]}) != 1:
        sys.exit("the samples differ")
    return {
        way: (statistics.median(s for s, _ in pairs), statistics.median(m for _, m in pairs))
        for way, pairs in found.items()
    }


def main() -> None:
    """Read the command line, measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, help="measure on this file instead of a made-up one")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or Path(folder) / "tweets.csv"
        if not args.file:
            write_file(path, args.rows)
        print(f"{path.stat().st_size / 1e6:.0f} MB; medians of {args.repeats} runs each\n")
        results = measure_all(path, args.repeats)
    seconds, memory = results["pandas"]
    print(f"{'':36} {'seconds':>8} {'ratio':>6} {'MB':>6} {'ratio':>6}")
    for way, (s, m) in results.items():
        print(f"{way:36} {s:8.2f} {s / seconds:6.2f} {m:6.0f} {m / memory:6.2f}")
    first = [numbers for way, numbers in results.items() if way.endswith("first time")]
    if any(s > LIMIT * seconds or m > LIMIT * memory for s, m in first):
        sys.exit(f"\nabove {LIMIT} of pandas' time or memory")


if __name__ == "__main__":
    main()
