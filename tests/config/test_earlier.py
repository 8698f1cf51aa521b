import copy
from typing import Any

from tgsent.config import RunConfig, earlier
from tgsent.config.run import with_key

OLD: dict[str, Any] = {
    "models": [
        "gpt2",
        {"model": "gpt-neo", "training": {"lora": {"r": 8}}},
        {"model": "t5", "training": {"epochs": 2}},
    ],
    "prompt": {"input": "{text}"},
    "training": {"lora": {"r": 4, "alpha": 32, "dropout": 0.1}},
    "evaluation": {"decoding": "free"},
}


def test_what_a_stored_config_lacks_is_what_was_done():
    assert earlier.lacking(OLD) == {
        ("prompt", "words"): None,
        ("prompt", "template"): "plain",
        ("training", "lora", "target"): "attention",
        ("evaluation", "calibration"): "none",
        ("models", 1, "training", "lora", "alpha"): 32,
        ("models", 1, "training", "lora", "dropout"): 0.1,
        ("models", 1, "training", "lora", "target"): "attention",
    }


def test_a_filled_config_loads():
    stored: Any = copy.deepcopy(OLD)
    for path, value in earlier.lacking(OLD).items():
        stored = with_key(stored, path, value)
    adapters = [spec.training.lora for spec in RunConfig.model_validate(stored).trial_specs(())]
    assert {(one.r, one.target) for one in adapters if one} == {(4, "attention"), (8, "attention")}


def test_a_config_of_this_version_lacks_nothing():
    now = RunConfig.model_validate(
        {"models": [{"model": "gpt2", "training": {"lora": {"r": 8}}}], "training": {"lora": {}}}
    )
    assert not earlier.lacking(now.dump())
