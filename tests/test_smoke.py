"""The shipped smoke run, as a user starts it: three families, two trials each, good scores, soon.

What is timed here is timed on two cores, so it is run before the other tests and not beside them.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

from conftest import ROOT, cli_environment
from tgsent.records import Example
from tiny_models import encode, examples, tiny_model, tiny_spec

EXAMPLE = ROOT / "docs/example/results.json"

FIRST_STEP = """
import sys, time
started = time.time()
import torch
step = torch.optim.AdamW.step
def stop(self, *args, **named):
    step(self, *args, **named)
    print(time.time() - started, file=sys.__stdout__)  # while a trial runs, stdout is stderr
    raise KeyboardInterrupt
torch.optim.AdamW.step = stop
sys.argv = ["tgsent", "run", "-c", "smoke", "--quiet"]
from tgsent.cli import main
main()
"""


def test_training_begins_soon(tmp_path: Path) -> None:
    """From the first line of Python to the end of the first step; 5 to 10 s on two quiet cores."""
    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_STEP],
            cwd=tmp_path, env=cli_environment({"OMP_NUM_THREADS": "2"}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 130, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 18


def test_smoke_run_learns_with_every_family_in_time(cli):
    started = time.monotonic()
    done = cli("run", "-c", "smoke", "--json", env={"OMP_NUM_THREADS": "2"}, timeout=600)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)["models"]
    assert [model["model"] for model in models] == ["gpt2", "gpt-neo", "t5"]
    for model in models:
        assert [trial["trial"] for trial in model["trials"]] == [1, 2]
        assert model["macro_f1"]["mean"] >= 0.80, model["model"]
        assert [trial["unparsed"] for trial in model["trials"]] == [0, 0]
    assert seconds < 160  # 41 to 92 on two quiet cores, as the processor is
    # what docs/example shows is what the shipped code and texts give, but for last digits
    shown = {m["model"]: m for m in json.loads(EXAMPLE.read_bytes())["models"]}
    for model in models:
        for ours, theirs in zip(model["trials"], shown[model["model"]]["trials"], strict=True):
            assert ours["signature"] == theirs["signature"]
            assert abs(ours["macro_f1"] - theirs["macro_f1"]) < 0.05

    # and what a dry run says of it beforehand is about right
    plan = cli("run", "-c", "smoke", "--dry-run", "--json", env={"OMP_NUM_THREADS": "2"})
    for planned, model in zip(json.loads(plan.stdout)["models"], models, strict=True):
        trials, cost = model["trials"], planned["cost"]
        taken = mean(trial["train_seconds"] + trial["eval_seconds"] for trial in trials)
        told = cost["training_seconds"] + cost["evaluation_seconds"]
        assert 1 / 2 < told / taken < 2, (planned["model"], told, taken)
        peak = max(trial["peak_memory_bytes"] for trial in trials)
        assert 1 / 1.5 < cost["peak_memory_bytes"] / peak < 1.5


def test_encoding_ten_thousand_texts_takes_about_a_second():
    spec = tiny_spec("gpt2")
    loaded = tiny_model(spec, examples(2000))
    texts = [Example(f"{e.text} {'so it goes on and on ' * 3}", e.label) for e in examples(10_000)]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        encoded = encode(loaded, spec, texts)
        seconds.append(time.perf_counter() - started)
    assert sum(map(len, encoded)) / len(encoded) > 25  # a tweet has about as many tokens
    assert min(seconds) < 2  # 0.3 to 1.0 on two quiet cores, as the processor is
