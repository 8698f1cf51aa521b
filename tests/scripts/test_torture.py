"""Nothing is lost: `scripts/torture.py` with few cases; the slow tests have more."""

import re
import subprocess
import sys

import pytest

from conftest import ROOT, cli_environment

sys.path.insert(0, str(ROOT / "scripts"))

from torture import CASES, FORMS


@pytest.mark.parametrize("form", ["brief", pytest.param("short", marks=pytest.mark.slow)])
def test_nothing_is_lost(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/torture.py", "--form", form],
        cwd=ROOT, env=cli_environment(), capture_output=True, text=True,
    )  # fmt: skip
    for part, counts in CASES.items():
        if f"| {part} | not done: nothing can be mounted here" in done.stdout:
            assert part == "disk"
            continue
        row = re.search(rf"^\| {part} \| ([\d,]+) \| ([\d,]+) \| 0 \|", done.stdout, re.MULTILINE)
        assert row, done.stdout + done.stderr
        assert row[1] == row[2] == f"{counts[FORMS.index(form)]:,}"
    assert done.returncode == 0, done.stderr
