"""Model names to model, tokenizer and family: files, configuration, tokenizer, then weights."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tgsent.config import TrialSpec
from tgsent.config.aliases import ALIASES, alias_of
from tgsent.errors import ConfigError, TgsentError, UnavailableError, reason
from tgsent.modeling import chat, hub, tiny
from tgsent.modeling.batches import SpecialIds
from tgsent.modeling.family import Family, family_of
from tgsent.modeling.gguf_files import misfits
from tgsent.modeling.prompts import PromptEncoder, encode_markup, parse
from tgsent.modeling.tokens import special_ids
from tgsent.records import Example

PAD_TOKEN = "<|pad|>"
_VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "tokenizer_config.json",
)  # fmt: skip

_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED",
)  # fmt: skip


@dataclass
class LoadedModel:
    """A model ready for training, with all that its family needs to know."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    ids: SpecialIds
    commit: str | None = None
    """The commit on the Hub of its files; None where they are not of the Hub."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Turn texts into tokens, with no special token added around them."""
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn generated tokens into text."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def load(spec: TrialSpec, train: Iterable[Example]) -> LoadedModel:
    """Load or build what `spec.model` names.

    `train` is the training split, on which a tiny model's tokenizer is trained. Raises
    UnavailableError where files are missing, ConfigError where the model does not fit the settings.
    """
    return _load(spec, train, pretrained=spec.training.init == "pretrained")


def describe(spec: TrialSpec, train: Iterable[Example]) -> LoadedModel:
    """Return model and tokenizer without weights or memory: for counting, not for running."""
    with torch.device("meta"):
        return _load(spec, train, pretrained=False)


def _load(spec: TrialSpec, train: Iterable[Example], *, pretrained: bool) -> LoadedModel:
    name = spec.model
    if spec.training.init == "tiny":
        snapshot = None
        config, tokenizer = tiny.build(spec, model_type(name), train)
    else:
        snapshot = hub.fetch(name, weights=pretrained)
        config, tokenizer = _config(name, snapshot.folder), _tokenizer(name, snapshot.folder)
    family = family_of(config)
    _prepare_tokenizer(tokenizer, spec, family)
    _check_generates(config, name, family)
    _check_positions(config, spec, family)
    model: Any  # mypy does not know the attributes of an embedding
    if snapshot is not None and pretrained:
        model = _pretrained(name, snapshot.folder, family)
    else:
        model = _with_fresh_weights(name, config, family)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = SpecialIds(
        pad=tokenizer.pad_token_id,
        end=_end_id(tokenizer, spec),
        decoder_start=_decoder_start(model, tokenizer, family),
    )
    # settings that the weights came with (sampling, penalties, lengths) are not those of the run
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ids.end,
        pad_token_id=ids.pad,
        decoder_start_token_id=ids.decoder_start if family.is_seq2seq else None,
    )
    model.config.pad_token_id = ids.pad
    return LoadedModel(model, tokenizer, family, ids, snapshot.commit if snapshot else None)


def model_type(name: str) -> str:
    """Return the model type that the model's config.json names."""
    if alias := alias_of(name):
        return ALIASES[alias].model_type
    return str(_config(name, hub.fetch(name, weights=False).folder).model_type)


def _config(name: str, folder: Path) -> PreTrainedConfig:
    with _loading_errors(name, folder):
        values, _ = PreTrainedConfig.get_config_dict(folder)
        if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING:
            raise UnavailableError(
                f"{name}: asks to run code of its own ({folder / 'config.json'}: auto_map), which"
                " tgsent never does; choose a model that transformers knows"
            )
        if method := (values.get("quantization_config") or {}).get("quant_method"):
            raise ConfigError(
                f"{name}: its weights are quantised ({method}), which tgsent does not train;"
                " use the unquantised model"
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return config


def _check_generates(config: PreTrainedConfig, name: str, family: Family) -> None:
    """Raise ConfigError for a model that does not generate text from left to right."""
    kind = f'a model of the kind "{config.model_type}"'
    generating: Container[type[PreTrainedConfig]] = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if family.is_seq2seq else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in generating:
        text = " (its text part alone may be)" if hasattr(config, "text_config") else ""
        raise ConfigError(
            f"{name}: {kind} does not generate text{text}; use a causal or seq2seq language model"
        )
    bidirectional = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not (
        family.is_seq2seq or getattr(config, "is_decoder", False)
    )
    attention = getattr(config.get_text_config(), "use_bidirectional_attention", None)
    if bidirectional or attention in (True, "all"):
        raise ConfigError(
            f"{name}: {kind} reads in both directions: in training it sees the label that it should"
            " generate; use a causal or seq2seq language model"
        )


def _check_positions(config: PreTrainedConfig, spec: TrialSpec, family: Family) -> None:
    """Refuse texts longer than the model has positions for (T5's are relative and unbounded)."""
    reading = config.get_text_config(encoder=True) if family.is_seq2seq else config
    limit = getattr(reading.get_text_config(), "max_position_embeddings", None)
    if limit is not None and spec.training.max_tokens > limit:
        raise ConfigError(
            f"training.max_tokens: {spec.training.max_tokens} is more than the {limit} positions of"
            f" {spec.model}"
        )


def _tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        raise UnavailableError(f"{name}: {folder} holds no tokenizer; put the model's files there")
    with _loading_errors(name, folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
        return tokenizer


def _prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, spec: TrialSpec, family: Family) -> None:
    """Add the tokens that the settings need and the tokenizer lacks."""
    if tokenizer.eos_token is None:
        raise ConfigError(f"{spec.model}: its tokenizer has no EOS token, so no answer would end")
    new = [] if tokenizer.pad_token else [PAD_TOKEN]
    tokenizer.pad_token = tokenizer.pad_token or PAD_TOKEN
    if spec.prompt.start_token:
        _check_start_token(tokenizer, spec)
        new.append(spec.prompt.start_token)
    if new:  # existing extra tokens stay: chat templates use them
        tokenizer.add_special_tokens(
            {"additional_special_tokens": new}, replace_extra_special_tokens=False
        )
    # saved with the tokenizer only if it is set in both places
    tokenizer.padding_side = family.padding_side
    tokenizer.init_kwargs["padding_side"] = family.padding_side


def _check_start_token(tokenizer: PreTrainedTokenizerBase, spec: TrialSpec) -> None:
    """Refuse a new token that every prompt would begin with and no training would reach.

    The embeddings of a tiny model are all as random as that of a new token.
    """
    training = spec.training
    frozen = "lora" if training.lora else "freeze_embeddings" if training.freeze_embeddings else ""
    if frozen and training.init != "tiny" and spec.prompt.start_token not in tokenizer.get_vocab():
        raise ConfigError(
            f'prompt.start_token: "{spec.prompt.start_token}" is new to {spec.model}, and with'
            f" training.{frozen} its embedding would stay random;\n"
            "take a token that the model knows, or null"
        )


def _end_id(tokenizer: PreTrainedTokenizerBase, spec: TrialSpec) -> int:
    """Return the id of the token that ends an answer; in a chat, the template's."""
    if spec.prompt.template == "chat":
        return _id_of(tokenizer, chat.markup(tokenizer, spec.model).end)
    return int(tokenizer.eos_token_id)


def _id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]  # a list for lists


def _decoder_start(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family
) -> int:
    """Return the token that a seq2seq model's decoder starts with, chosen as the library does.

    T5 starts with padding, BART with its EOS token, T5Gemma with its BOS token, which is named in
    the configuration of its decoder alone.
    """
    if not family.is_seq2seq:  # it has no decoder
        return int(tokenizer.pad_token_id)
    decoder = model.config.get_text_config(decoder=True)
    for place, name in (
        (model.config, "decoder_start_token_id"),
        (model.generation_config, "decoder_start_token_id"),
        (decoder, "bos_token_id"),
    ):
        if (token := getattr(place, name, None)) is not None:
            return int(token)
    return int(tokenizer.pad_token_id)


def _pretrained(name: str, folder: Path, family: Family) -> PreTrainedModel:
    """Load weights; raise UnavailableError where some are missing or of another shape."""
    model: PreTrainedModel
    with _loading_errors(name, folder):
        model, report = family.auto_class.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if wrong := misfits(report):
        raise UnavailableError(
            f"{name}: the weights in {folder} do not fit its config.json: {wrong};"
            " put the files that belong together there, or name another model"
        )
    return model


def _with_fresh_weights(name: str, config: PreTrainedConfig, family: Family) -> PreTrainedModel:
    """Build an architecture; raise ConfigError where the library cannot."""
    try:
        model: PreTrainedModel = family.auto_class.from_config(config, dtype=torch.float32)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{name}: no model can be built from its config.json: {reason(error)}"
        ) from error
    return model


@contextlib.contextmanager
def _loading_errors(name: str, folder: Path) -> Iterator[None]:
    """Raise UnavailableError, with a way out, for any error of the library in the context."""
    try:
        yield
    except TgsentError:
        raise
    except Exception as error:
        # the library raises almost any exception for files it cannot read
        if is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"the model {name} cannot be loaded from {folder}: {reason(error)}\n"
            "name another model or folder, or try `tgsent run -c smoke`, which needs neither"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Check for a failed allocation, for which the CPU has no exception class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def prompt_encoder(
    loaded: LoadedModel, spec: TrialSpec, shots: Sequence[Example] = ()
) -> PromptEncoder:
    """Return the encoder of prompts for this model's tokenizer; `shots` are its worked examples.

    Raises ConfigError where the tokenizer cannot write a label word so that it can be read back.
    """
    build = partial(
        PromptEncoder,
        prompt=spec.prompt,
        labels=spec.labels,
        encode_texts=loaded.encode,
        special_ids=special_ids(loaded.tokenizer),
        end_id=loaded.ids.end,
        max_tokens=spec.training.max_tokens,
        target_counts=not loaded.family.is_seq2seq,
    )
    start_ids, (*shot_turns, (before, after)) = _turns(loaded, spec, len(shots))
    for shot, (shot_before, shot_after) in zip(shots, shot_turns, strict=True):
        (shown,) = build(
            start_ids=encode_markup(loaded.encode, shot_before), start=shot_before,
            stop_ids=encode_markup(loaded.encode, shot_after), stop=shot_after,
        ).encode_examples([shot])  # fmt: skip
        start_ids = (*start_ids, *shown.prompt, *shown.target[:-1])
    # a seq2seq model's encoder reads prompts that end in the EOS token
    end = (loaded.ids.end,)
    encoder: PromptEncoder = build(
        start_ids=(*start_ids, *encode_markup(loaded.encode, before)), start=before,
        stop_ids=end if loaded.family.is_seq2seq else encode_markup(loaded.encode, after),
        stop=after,
    )  # fmt: skip
    for label, target in encoder.targets.items():
        if parse(spec.prompt, spec.labels, loaded.decode(target[:-1])) != label:
            raise ConfigError(
                f'the tokenizer of {spec.model} cannot write the label "{label}": it reads back as'
                f' "{loaded.decode(target[:-1]).strip()}"; choose another word with data.labels'
            )
    return encoder


def _turns(
    loaded: LoadedModel, spec: TrialSpec, shots: int
) -> tuple[tuple[int, ...], Sequence[tuple[str, str]]]:
    """Return the ids that every prompt begins with, and the strings around each turn's prompt.

    Each worked example is a turn, and the text itself the last: turns of a chat, or else separated
    by empty lines.
    """
    if spec.prompt.template == "chat":
        if loaded.family.is_seq2seq:
            raise ConfigError(
                f"prompt.template: {spec.model} is a seq2seq model, and `chat` is for causal ones;"
                " use `plain`"
            )
        return (), chat.markup(loaded.tokenizer, spec.model, shots).around
    start = spec.prompt.start_token or loaded.tokenizer.bos_token
    start_ids = (_id_of(loaded.tokenizer, start),) if start else ()
    return start_ids, [("", ""), *[("\n\n", "")] * shots]
