"""Compare tgsent's speed and memory with other ways to do the same, side by side.

    pip install -e '.[bench]'        # brings the peers; SimpleT5: tgsent setup-simplet5
    python scripts/bench.py          # GPT-2 on the made-up tweets that are shipped

Every measurement is a process of its own, and the contestants take turns, so that a busy machine
slows all of them down. All have the same architecture with random weights, the same texts and two
epochs or passes, of which the second is timed. The texts are whole batches of a bigger sample that
was sorted by length, so that few of them behave like many. `bench_contestants.py` says what each
contestant does and counts the floating-point operations that the task needs, `docs/benchmarks.md`
how to read the tables. Exits with 1 where a contestant failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgsent.backends.simplet5 import environment
from tgsent.errors import UnavailableError

SCRIPT = Path(__file__).with_name("bench_contestants.py")
PACKAGES = ("tgsent", "torch", "transformers", "accelerate", "trl", "datasets")
FACTS = "facts"


@dataclass
class Contestant:
    """One row of a table."""

    kind: str
    name: str
    families: tuple[str, ...] = ("causal", "seq2seq")
    needs: tuple[str, ...] = ()
    """Packages it cannot do without."""
    slower: int = 1
    """It takes one of so many texts."""
    multiple: int = 1
    """Its number of texts is a multiple of this, and at least three times this."""
    results: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    failed: bool = False

    def texts(self, examples: int) -> int:
        """Return the number of texts it takes of so many."""
        if self.slower == 1:
            return examples
        wanted = max(3 * self.multiple, examples // self.slower)
        return min(examples, math.ceil(wanted / self.multiple) * self.multiple)

    @property
    def rates(self) -> list[float]:
        """Tweets per second, measurement by measurement."""
        return [result["tweets_per_second"] for result in self.results]

    @property
    def rate(self) -> float:
        """Their median."""
        return statistics.median(self.rates)


def contestants() -> list[Contestant]:
    """Return all contestants in the order of the tables."""
    causal, seq2seq = ("causal",), ("seq2seq",)
    trl = ("trl", "datasets")
    return [
        Contestant("training", "tgsent"),
        Contestant("training", "tgsent, loss: full", causal),
        Contestant("training", "HF Trainer", causal),
        Contestant("training", "HF Trainer, labels only", causal),
        Contestant("training", "HF Trainer, labels only, memory kept", causal),
        Contestant("training", "TRL SFTTrainer", causal, trl),
        Contestant("training", "TRL SFTTrainer, packed", causal, trl),
        Contestant("training", "HF Seq2SeqTrainer", seq2seq),
        Contestant("training", "HF Seq2SeqTrainer, memory kept", seq2seq),
        Contestant("training", "article", causal, slower=20, multiple=2),
        Contestant("training", "SimpleT5", seq2seq, ("simplet5",), slower=20, multiple=8),
        Contestant("evaluation", "tgsent, free"),
        Contestant("evaluation", "tgsent, score"),
        Contestant("evaluation", "article", causal, slower=4),
        Contestant("evaluation", "SimpleT5", seq2seq, ("simplet5",), slower=4),
    ]


def find_problem(contestant: Contestant) -> str:
    """Return which package is missing, or nothing."""
    for package in contestant.needs:
        if package == "simplet5":
            try:
                environment.find()
            except UnavailableError as error:
                return f"not installed: {str(error).splitlines()[0]}"
        elif importlib.util.find_spec(package) is None:
            return f"not installed: {package}; pip install 'tgsent[bench]'"
    return ""


def measure(kind: str, name: str, bench: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a process of its own; raises RuntimeError with the reason."""
    with tempfile.TemporaryDirectory(prefix="tgsent-bench-") as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        job.write_text(json.dumps({"kind": kind, "name": name, "bench": bench}), "utf-8")
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(job), str(result)],
            # one device for all: some trainers would take several
            env={"CUDA_VISIBLE_DEVICES": "0", "TOKENIZERS_PARALLELISM": "true", **os.environ},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            measured: dict[str, Any] = json.loads(result.read_bytes())
            return measured
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if done.returncode < 0:
            raise RuntimeError(f"ended by signal {-done.returncode}")
        last = said[-1] if said else f"exit code {done.returncode}"
        raise RuntimeError(re.sub(r"^tgsent\.errors\.\w+: ", "", last))


def measure_all(
    chosen: Sequence[Contestant], bench: dict[str, Any], repeats: int, facts: dict[str, Any]
) -> None:
    """Let the contestants take turns; write what is measured into them and the peaks in `facts`."""
    for number in range(1, repeats + 1):
        for contestant in chosen:
            if contestant.problem:
                continue
            say(f"{number}/{repeats}  {contestant.kind}: {contestant.name}")
            texts = contestant.texts(bench["examples"])
            try:
                found = measure(contestant.kind, contestant.name, {**bench, "texts": texts})
            except RuntimeError as error:
                contestant.problem, contestant.failed = f"failed: {error}", True
                say(f"     {contestant.problem}")
            else:
                contestant.results.append(found)
                say(f"     {found['tweets_per_second']:.2f} tweets/s")
        again = measure(FACTS, FACTS, {**bench, "texts": bench["examples"]})
        for precision, peak in again["peak_flops"].items():
            facts["peak_flops"][precision] = max(facts["peak_flops"][precision], peak)


def say(text: str) -> None:
    """Print the progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def summaries(chosen: Sequence[Contestant], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the rows of the tables together."""
    rates = {(c.kind, c.name): c.rate for c in chosen if c.results and not c.problem}
    peak = max(facts["peak_flops"].values())
    rows = []
    for c in chosen:
        row: dict[str, Any] = {"kind": c.kind, "name": c.name, "problem": c.problem}
        if not c.problem:
            article = rates.get((c.kind, "article"), rates.get((c.kind, "SimpleT5")))
            ours = rates.get((c.kind, "tgsent"), rates.get((c.kind, "tgsent, free")))
            row |= {
                "texts": c.results[0]["texts"],
                "precision": c.results[0]["precision"],
                "tweets_per_second": {"median": c.rate, "min": min(c.rates), "max": max(c.rates)},
                "times_article": c.rate / article if article else None,
                "tgsent_times_this": ours / c.rate if ours else None,
                "peak_memory_bytes": statistics.median(r["peak_memory_bytes"] for r in c.results),
                "share_of_peak": c.rate * facts[f"{c.kind}_flop"] / peak,
            }
        rows.append({**row, "measurements": c.results})
    return rows


def table(rows: Sequence[dict[str, Any]], kind: str, baseline: str) -> str:
    """Write one table in Markdown."""
    lines = [
        f"| {kind} | texts | precision | tweets/s, median (min-max) | x {baseline}"
        " | tgsent x this | peak memory, MB | share of peak |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row["kind"] != kind:
            continue
        if row["problem"]:
            problem = row["problem"].replace("|", "\\|")
            lines.append(f"| {row['name']} | {textwrap.shorten(problem, 120)} | | | | | | |")
            continue
        speed = row["tweets_per_second"]
        cells = (
            row["name"],
            row["texts"],
            row["precision"],
            f"{speed['median']:.3g} ({speed['min']:.3g}-{speed['max']:.3g})",
            ratio(row["times_article"]),
            ratio(row["tgsent_times_this"]),
            f"{row['peak_memory_bytes'] / 1e6:,.0f}",
            f"{100 * row['share_of_peak']:.1f} %",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def ratio(number: float | None) -> str:
    """Write a ratio with a sensible number of digits."""
    return "" if number is None else f"{number:.2f}" if number < 20 else f"{number:.0f}"


def machine(facts: dict[str, Any]) -> dict[str, Any]:
    """Describe this machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].partition(":")[2].strip() if named else cpu
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": facts["threads"],
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": facts["device_name"],
        "system": platform.platform(),
    }


def versions(chosen: Sequence[Contestant]) -> dict[str, Any]:
    """Return the versions of all that takes part."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if any(c.name == "SimpleT5" and not c.problem for c in chosen):
        found["environment of simplet5"] = environment.find()[1]
    return found


def headline(
    args: argparse.Namespace, facts: dict[str, Any], of: dict[str, Any], packages: dict[str, Any]
) -> str:
    """Return what was measured, on what."""
    peaks = ", ".join(f"{p} {peak / 1e9:,.0f}" for p, peak in facts["peak_flops"].items())
    gpu = f"{of['gpu']}; " if of["gpu"] else ""
    cores = f"{of['cores']} cores, {of['threads']} threads, {of['ram_bytes'] / 1e9:.0f} GB"
    known = ", ".join(f"{p} {v}" for p, v in packages.items() if isinstance(v, str))
    return "\n".join(
        [
            f"model     {args.model}, {args.init} weights, on {facts['device']}",
            f"texts     {args.examples} of {args.data}, on average {facts['prompt_tokens']:.1f}"
            f" tokens of prompt and {facts['label_tokens']:.1f} of label; the slow take fewer",
            f"repeats   {args.repeats}, each a process of its own, contestants in turn",
            f"machine   {gpu}{of['cpu']}, {cores}",
            f"peak      of matrix products, GFLOP/s: {peaks}",
            f"needed    GFLOP per tweet: training {facts['training_flop'] / 1e9:.3g},"
            f" evaluation {facts['evaluation_flop'] / 1e9:.3g}",
            f"versions  {known}",
        ]
    )


def choose(family: str, only: Sequence[str]) -> list[Contestant]:
    """Return the contestants for this family whose name begins as one of `only` says."""
    fitting = [c for c in contestants() if family in c.families]
    for name in only:
        if not any(begins(c, name) for c in fitting):
            known = ", ".join(dict.fromkeys(c.name for c in fitting))
            sys.exit(f"--only: there is no contestant {name!r} for this model; there are: {known}")
    return [c for c in fitting if not only or any(begins(c, name) for name in only)]


def begins(contestant: Contestant, name: str) -> bool:
    """Check whether the contestant is meant by a name or the beginning of one."""
    return contestant.name.casefold().startswith(name.casefold())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt2", help="gpt2, gpt-neo, t5 or a folder")
    parser.add_argument(
        "--init", choices=("random", "tiny"), default="random",
        help="random: the model's architecture; tiny: a small one, for quick tries",
    )  # fmt: skip
    parser.add_argument("--data", default="sample", help="file in Sentiment140's layout")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--examples", type=int, default=320, help="texts per measurement; the slow take fewer"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="names, or how they begin"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    args = parser.parse_args()
    if args.examples < 32 or args.examples % 32 or args.repeats < 1:
        parser.error("needs a multiple of 32 examples, and at least 1 repeat")
    return args


def main() -> None:
    """Measure and print the tables."""
    args = parse_arguments()
    bench = {name: getattr(args, name) for name in ("model", "init", "device", "data", "examples")}
    try:
        facts = measure(FACTS, FACTS, {**bench, "texts": args.examples})
    except RuntimeError as error:
        sys.exit(str(error))
    chosen = choose(facts["family"], args.only)
    for contestant in chosen:
        contestant.problem = find_problem(contestant)
    measure_all(chosen, bench, args.repeats, facts)

    here, packages, rows = machine(facts), versions(chosen), summaries(chosen, facts)
    baseline = "article" if facts["family"] == "causal" else "SimpleT5"
    print(headline(args, facts, here, packages))
    for kind in ("training", "evaluation"):
        if any(row["kind"] == kind for row in rows):
            print(f"\n{table(rows, kind, baseline)}")
    if args.json:
        everything = {
            "arguments": {**vars(args), "json": str(args.json)},
            "machine": here,
            "versions": packages,
            "facts": facts,
            "rows": rows,
        }
        args.json.write_text(json.dumps(everything, indent=2) + "\n", "utf-8")
    if any(contestant.failed for contestant in chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
