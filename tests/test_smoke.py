"""The shipped smoke run, as a user starts it: three families, two trials each, good scores, soon.

It is timed on two cores, so it is run before the other tests and not beside them.
"""

import json
import time


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
    assert seconds < 55  # 42 on two quiet cores
