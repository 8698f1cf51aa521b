"""The shipped smoke run, as a user starts it: three families, two trials each, good scores."""

import json


def test_smoke_run_learns_with_every_family(cli):
    done = cli("run", "-c", "smoke", "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)["models"]
    assert [model["model"] for model in models] == ["gpt2", "gpt-neo", "t5"]
    for model in models:
        assert [trial["trial"] for trial in model["trials"]] == [1, 2]
        assert model["macro_f1"]["mean"] >= 0.80, model["model"]
        assert [trial["unparsed"] for trial in model["trials"]] == [0, 0]
