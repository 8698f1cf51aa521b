"""Nothing is lost: the short form of `scripts/torture.py`, part by part."""

import re
import subprocess
import sys

import pytest

from conftest import ROOT, cli_environment

# and how many cases each must have tried
PARTS = {
    "kills": 30, "writes": 10, "full": 8, "disk": 6, "configs": 2_000, "data": 1_000, "memory": 50,
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_lost(part: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/torture.py", "--short", "--only", part],
        cwd=ROOT, env=cli_environment(), capture_output=True, text=True,
    )  # fmt: skip
    if f"| {part} | not done: nothing can be mounted here" in done.stdout:
        pytest.skip("mounting a small disk is not permitted on this machine")
    row = re.search(rf"^\| {part} \| ([\d,]+) \| ([\d,]+) \| 0 \|", done.stdout, re.MULTILINE)
    assert row, done.stdout + done.stderr
    assert row[1] == row[2] == f"{PARTS[part]:,}"
    assert done.returncode == 0, done.stderr
