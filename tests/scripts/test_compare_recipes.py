"""The fast way to train scores like the plain one: a short form of `scripts/compare_recipes.py`."""

import subprocess
import sys

import pytest

from conftest import ROOT, cli_environment

SEEDS = 5


@pytest.mark.slow
def test_scores_are_those_of_the_plain_way() -> None:
    """On two thirds of the shipped sample; it fails where an interval does not hold zero."""
    options = ("--model", "gpt2", "--sample", "2000", "--seeds", str(SEEDS))
    # not measured by coverage: what it runs is covered elsewhere, and it would take twice as long
    env = {k: v for k, v in cli_environment().items() if not k.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "scripts/compare_recipes.py", *options],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| gpt2 |" in done.stdout
    assert len(done.stderr.splitlines()) == SEEDS, done.stderr
