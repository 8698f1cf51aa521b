"""What the backends that train a language model share: checks, loading and warnings."""

from __future__ import annotations

from accelerate.utils import set_seed

from tgsent.config import TrialSpec
from tgsent.errors import ConfigError
from tgsent.modeling import loading, tiny
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import PromptEncoder
from tgsent.modeling.tokens import legibility
from tgsent.records import Progress, Split
from tgsent.training import memory


def check(spec: TrialSpec, *, here: bool, loaded: LoadedModel | None) -> tuple[str, ...]:
    """Check a model as `Backend.check` says."""
    if spec.training.init == "tiny":
        tiny.architecture(spec.model, loading.model_type(spec.model), spec.training.max_tokens)
        if spec.prompt.template == "chat":
            raise ConfigError("prompt.template: a tiny model has no chat template; use `plain`")
        return ()
    loaded = loaded or loading.describe(spec, ())
    loading.prompt_encoder(loaded, spec)
    if here:
        memory.check(loaded.model, spec)
    if loaded.tokenizer.chat_template and spec.prompt.template == "plain":
        return (
            f"{spec.name}: its tokenizer has a chat template, and its prompts are plain;"
            " prompt.template=chat uses the template",
        )
    return ()


def load(spec: TrialSpec, split: Split, progress: Progress) -> LoadedModel:
    """Load or build the model that training starts from."""
    set_seed(spec.seed)
    with (
        progress.task(f"{spec.title}, loading", 1) as task,
        memory.allocation_errors(spec, "loading"),
    ):
        loaded = loading.load(spec, split.train)
        task.advance(1)
    return loaded


def illegible(loaded: LoadedModel, encoder: PromptEncoder, split: Split) -> tuple[str, ...]:
    """Return warnings about training and test texts that the model cannot read."""
    texts = [example.text for example in (*split.train, *split.tested)]
    return legibility(loaded.tokenizer, encoder, texts).warnings
