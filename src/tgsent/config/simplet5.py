"""Settings that the package SimpleT5 fixes, and the check that a config respects them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tgsent.config.aliases import ALIASES, alias_of
from tgsent.config.messages import Mistake, short

LEARNING_RATE = 1e-4
"""Written in the package, for all steps."""

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
"""By section and key; the defaults are allowed."""


def conflicts(model: object) -> Iterator[Mistake]:
    """Yield what an item of `models`, or the common sections, ask of the package that it cannot do.

    The values are not validated yet, so that these mistakes are reported beside all others.
    """
    values = model if isinstance(model, Mapping) else {}
    sections = {key: values[key] for key in _ALLOWED if isinstance(values.get(key), Mapping)}
    if sections.get("training", {}).get("backend") != "simplet5":
        return
    name = values.get("model")
    alias = alias_of(name) if isinstance(name, str) else None
    if alias and ALIASES[alias].model_type != "t5":
        yield _conflict("a T5 model", "training.backend", name, "model")
    for section, keys in sections.items():
        backend = "backend" if section == "training" else "training.backend"
        for key, allowed in _ALLOWED[section].items():
            value = keys.get(key, allowed[0])
            if (list(value) if isinstance(value, tuple) else value) not in allowed:
                names = " or ".join(json.dumps(one).strip('"') for one in allowed)
                yield _conflict(names, backend, value, section, key)
        if section == "training" and keys.get("epochs") == 0:
            yield _conflict("1 or more", backend, 0, section, "epochs")


def _conflict(what: str, backend: str, value: object, *path: str) -> Mistake:
    return Mistake(path, f"must be {what} with `{backend}: simplet5`, not {short(value)}")
