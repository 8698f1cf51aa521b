"""Do to runs what happens to runs of hours, and worse, and see that nothing is lost.

    python scripts/torture.py                     # all of it, about half an hour
    python scripts/torture.py --form short        # some of each, minutes; brief: fewer
    python scripts/torture.py --only kills disk   # parts

kills    SIGKILL at random moments in runs of all three families, until they end
writes   SIGKILL before and after every single step of every file's writing
full     a full disk at every single step of every file's writing
disk     small disks that are really full (needs the right to mount, as in `unshare -rm`)
configs  broken, odd and hostile configs, from a seed
data     the same for data files
memory   many trials in one process

A case has survived where the run, started again, ends with the same files as one that was never
disturbed, times aside, and no finished trial was run twice; and for an input where it ends in a
result or in a clean error, in time and memory. Exits with 1 where one has not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: forks are not to inherit threads

import torture_inputs
import torture_runs
from torture_runs import Tally

TRIALS, GROWTH = 50, 1.05
# how many cases each part has: in full, in the short form, in the tests of every commit
CASES: dict[str, tuple[int | None, int, int]] = {
    "kills": (400, 30, 4), "writes": (None, 10, 3), "full": (None, 8, 2), "disk": (60, 6, 1),
    "configs": (50_000, 2_000, 150), "data": (20_000, 1_000, 75), "memory": (TRIALS, TRIALS, 15),
}  # fmt: skip
FORMS = ("full", "short", "brief")


def do(part: str, folder: Path, cases: int | None, seed: int) -> Tally | None:
    """Run one part; return None where this machine does not allow it."""
    if part == "kills":
        return torture_runs.kill_at_random(folder, cases or 0, seed)
    if part == "writes":
        return torture_runs.fail_in_writes(folder, cases, ("kill before", "kill after"), seed)
    if part == "full":
        return torture_runs.fail_in_writes(folder, cases, ("disk full",), seed)
    if part == "disk":
        return torture_runs.fill_a_disk(folder, cases or 0)
    if part == "configs":
        return torture_inputs.feed_configs(folder, cases or 0, seed)
    if part == "data":
        return torture_inputs.feed_data_files(folder, cases or 0, seed)
    return soak(folder, cases or 0)


def soak(folder: Path, trials: int) -> Tally:
    """Run many trials in one process and compare its memory after the first and the last ones."""
    tally, place = Tally(), torture_runs.Place(folder / "soak")
    command = torture_runs.options(("gpt2",), trials=trials, texts=60)
    problems = torture_runs.finish(place, command)
    sizes = [int(size) for size in place.notes("memory")]
    early, late = sum(sizes[5:10]) / 5, sum(sizes[-5:]) / 5
    print(f"memory   after trials 6 to 10: {early / 1e6:.0f} MB, after the last five:"
          f" {late / 1e6:.0f} MB", file=sys.stderr)  # fmt: skip
    if late > GROWTH * early:
        problems.append(f"memory grew from {early:,.0f} to {late:,.0f} bytes")
    for _ in range(trials):
        tally.add("many trials", problems)
    return tally


def main() -> None:
    """Do the parts asked for, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--form", choices=FORMS, default="full", help="how many cases")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="parts"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if "disk" in asked.only and not asked.inside and _may_mount_in_a_namespace():
        again = ["unshare", "-rm", sys.executable, __file__, *sys.argv[1:], "--inside"]
        os.execvp(again[0], again)  # noqa: S606  no shell
    torture_runs.import_everything()
    print("| what | cases | survived | lost | steps taken twice | seconds |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    lost = 0
    folder = Path(tempfile.mkdtemp(prefix="tgsent-torture-"))
    for part in asked.only:
        started = time.monotonic()
        cases = CASES[part][FORMS.index(asked.form)]
        tally = do(part, folder / part, cases, asked.seed)
        seconds = time.monotonic() - started
        if tally is None:
            print(f"| {part} | not done: nothing can be mounted here | | | | |", flush=True)
            continue
        again = f"{tally.steps / tally.needed - 1:.0%}" if tally.needed else ""
        gone = tally.cases - tally.survived
        print(f"| {part} | {tally.cases:,} | {tally.survived:,} | {gone:,} | {again}"
              f" | {seconds:.0f} |", flush=True)  # fmt: skip
        for problem in tally.problems[:20]:
            print(f"{part}: {problem}", file=sys.stderr)
        lost += len(tally.problems)
    shutil.rmtree(folder)
    sys.exit(1 if lost else 0)


def _may_mount_in_a_namespace() -> bool:
    try:
        done = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)  # noqa: S607
    except FileNotFoundError:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    main()
