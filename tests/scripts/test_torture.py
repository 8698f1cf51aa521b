"""Nothing is lost: `scripts/torture.py`, part by part, with few cases; the slow tests have more."""

import re
import subprocess
import sys

import pytest

from conftest import ROOT, cli_environment

sys.path.insert(0, str(ROOT / "scripts"))

from torture import CASES


@pytest.mark.parametrize("part", CASES)
@pytest.mark.parametrize("form", ["brief", pytest.param("short", marks=pytest.mark.slow)])
def test_nothing_is_lost(part: str, form: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/torture.py", "--form", form, "--only", part],
        cwd=ROOT, env=cli_environment(), capture_output=True, text=True,
    )  # fmt: skip
    if f"| {part} | not done: nothing can be mounted here" in done.stdout:
        pytest.skip("mounting a small disk is not permitted on this machine")
    row = re.search(rf"^\| {part} \| ([\d,]+) \| ([\d,]+) \| 0 \|", done.stdout, re.MULTILINE)
    assert row, done.stdout + done.stderr
    assert row[1] == row[2] == f"{CASES[part][1 if form == 'short' else 2]:,}"
    assert done.returncode == 0, done.stderr
