"""Settings that the package SimpleT5 fixes, and the check that a config respects them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tgsent.config.aliases import ALIASES, alias_of
from tgsent.config.messages import Mistake, short

LEARNING_RATE = 1e-4
"""The package's fixed learning rate, the same for all steps."""

_ALLOWED: dict[str, dict[str, tuple[object, ...]]] = {
    "prompt": {"start_token": (None,), "template": ("plain",), "shots": (0,)},
    "training": {
        "gradient_accumulation": (1,),
        "gradient_checkpointing": (False,),
        "lora": (None,),
        "freeze_embeddings": (False,),
        "learning_rate": ("auto", LEARNING_RATE),
        "warmup_steps": ("auto", 0),
        "weight_decay": (0.01,),
        "max_grad_norm": ("auto", None),
        "loss_on_padding": (False,),
        "padding": ("auto", "max_tokens"),
        "precision": ("auto", "fp32"),
        "device": ("auto", "cpu", "cuda"),
        "report_to": ([],),
    },
    "evaluation": {"decoding": ("free",)},
}
"""Allowed values by section and key; the first is the default."""


def conflicts(model: object) -> Iterator[Mistake]:
    """Yield the settings of an item of `models`, or of the common sections, that are not supported.

    The values are not validated yet, so that these mistakes are reported beside all others.
    """
    values = model if isinstance(model, Mapping) else {}
    training = values.get("training")
    if not isinstance(training, Mapping) or training.get("backend") != "simplet5":
        return
    name = values.get("model")
    alias = alias_of(name) if isinstance(name, str) else None
    if alias and ALIASES[alias].model_type != "t5":
        yield _conflict("a T5 model", name, "model")
    if training.get("epochs") == 0:
        yield _conflict("1 or more", 0, "training", "epochs")
    for section, keys in _ALLOWED.items():
        own = values.get(section)
        if not isinstance(own, Mapping):
            continue
        for key, allowed in keys.items():
            value = own.get(key, allowed[0])
            if (list(value) if isinstance(value, tuple) else value) not in allowed:
                names = " or ".join(json.dumps(one).strip('"') for one in allowed)
                yield _conflict(names, value, section, key)


def _conflict(what: str, value: object, *path: str) -> Mistake:
    message = f"must be {what} with `training.backend: simplet5`, not {short(value)}"
    return Mistake(path, message, is_conflict=True)
