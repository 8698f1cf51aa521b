#!/usr/bin/env python3
"""Compare two checkouts of tgsent: the same config must give the same results, byte for byte.

Runs one config with each checkout and compares every trial's `predictions.csv`, its signature and
the hashes of its settings and its split. Then the second checkout resumes, reports and predicts
from the run folder of the first.

    git worktree add ../before COMMIT
    scripts/same_results.py ../before .
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_COMPARED = ("signature", "fingerprint", "split_sha256")


def tgsent(checkout: Path, folder: Path, *arguments: str) -> str:
    """Run a checkout's command line in `folder`; exit with its messages where it fails."""
    done = subprocess.run(  # noqa: PLW1510  the code is looked at below
        [sys.executable, "-m", "tgsent", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        command = " ".join(("tgsent", *arguments))
        sys.exit(f"{checkout}: {command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def trials(run: Path) -> dict[str, dict[str, object]]:
    """Return what is compared of every trial in a run folder."""
    found: dict[str, dict[str, object]] = {}
    for metrics in sorted(run.glob("*/trial-*/metrics.json")):
        values = json.loads(metrics.read_text("utf-8"))
        name = str(metrics.parent.relative_to(run))
        found[name] = {key: values.get(key) for key in _COMPARED}
        found[name]["predictions.csv"] = metrics.with_name("predictions.csv").read_bytes()
    return found


def main() -> None:
    """Compare, print what differs, and exit with 1 where anything does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("-c", "--config", default="smoke")
    asked = parser.parse_args()
    one, other = (checkout.resolve() for checkout in asked.checkouts)
    arguments = ("run", "-c", asked.config, "--quiet", "--set", "output.save_model=all", "-n", "1")
    with tempfile.TemporaryDirectory() as temporary:
        runs = {}
        for checkout, name in ((one, "one"), (other, "other")):
            folder = Path(temporary, name)
            folder.mkdir()
            tgsent(checkout, folder, *arguments)
            (runs[checkout],) = (path.parent for path in folder.glob("runs/*/manifest.json"))
        before, after = trials(runs[one]), trials(runs[other])
        different = [
            f"{trial}: {part}"
            for trial in sorted(before.keys() | after.keys())
            for part in (*_COMPARED, "predictions.csv")
            if before.get(trial, {}).get(part) != after.get(trial, {}).get(part)
        ]
        run, folder = runs[one], runs[one].parent.parent
        texts = ("what a lovely day", "this is awful")
        if len({tgsent(c, folder, "predict", str(run), *texts, "-q") for c in (one, other)}) != 1:
            different.append("predict")
        kept = {path: path.stat().st_mtime_ns for path in run.glob("*/trial-*/metrics.json")}
        tgsent(other, folder, *arguments)  # after which the first need not read the folder
        if {path: path.stat().st_mtime_ns for path in kept} != kept:
            different.append("finished trials were trained again")
        tgsent(other, folder, "report", str(run))
    print("\n".join(different) or f"the same: {len(before)} trials, continued and read as well")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
