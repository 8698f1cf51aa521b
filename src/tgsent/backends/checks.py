"""Check, before anything runs, that every model can be trained as it is to be."""

from __future__ import annotations

from tgsent.backends.simplet5 import environment
from tgsent.config import TrialSpec
from tgsent.errors import ConfigError
from tgsent.modeling import loading, tiny
from tgsent.training import adapters, memory, trackers


def check(spec: TrialSpec, *, here: bool = True) -> tuple[str, ...]:
    """Check, before anything runs, that the model fits the recipe; return notes for the user.

    Raises UnavailableError or ConfigError as `load` and `prompt_encoder` do, where the package that
    the recipe wants is not there or cannot train this model, and, if it is to be trained `here`,
    where the machine's memory cannot hold it.
    """
    check_backend(spec)
    if spec.training.init == "tiny":
        tiny.architecture(spec.model, loading.model_type(spec.model), spec.training.max_tokens)
        if spec.prompt.template == "chat":
            raise ConfigError("prompt.template: a tiny model has no chat template; use `plain`")
        return ()
    loaded = loading.describe(spec, ())
    loading.prompt_encoder(loaded, spec)
    if here:
        memory.check(loaded.model, spec)
    if loaded.tokenizer.chat_template and spec.prompt.template == "plain":
        return (
            f"{spec.name}: its tokenizer has a chat template, and its prompts are plain;"
            " prompt.template=chat uses the template",
        )
    return ()


def check_backend(spec: TrialSpec) -> None:
    """Find out whether what is to train the model is there, and can."""
    adapters.check(spec.training)
    trackers.check(spec.training)
    if spec.training.backend != "simplet5":
        return
    if (kind := loading.model_type(spec.model)) != "t5":
        raise ConfigError(
            f"training.backend: the package SimpleT5 trains T5, and {spec.model} is a model of the"
            f' kind "{kind}"; train it with backend: native'
        )
    environment.find()
