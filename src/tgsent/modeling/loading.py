"""Model names to model, tokenizer and family: files, configuration, tokenizer, then weights."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tgsent.config import TrialSpec
from tgsent.config.aliases import ALIASES, alias_of
from tgsent.errors import ConfigError, TgsentError, UnavailableError, reason
from tgsent.modeling import causal, chat, hub, seq2seq, tiny
from tgsent.modeling.family import Family, SpecialIds
from tgsent.modeling.prompts import PromptEncoder, parse
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
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn generated tokens into text."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def describe(spec: TrialSpec, train: Iterable[Example]) -> LoadedModel:
    """Return model and tokenizer without weights or memory: for counting, not for running."""
    with torch.device("meta"):
        return load(spec, train, weights=False)


def load(spec: TrialSpec, train: Iterable[Example], *, weights: bool = True) -> LoadedModel:
    """Load or build what `spec.model` names; without `weights`, its own are not read.

    `train` is the training split, on which a tiny model's tokenizer is trained. Raises
    UnavailableError where files are missing, ConfigError where the model does not fit the settings.
    """
    pretrained = weights and spec.training.init == "pretrained"
    name = spec.model
    if spec.training.init == "tiny":
        snapshot = None
        config, tokenizer = tiny.build(spec, model_type(name), train)
    else:
        snapshot = hub.fetch(name, weights=pretrained)
        config, tokenizer = _config(name, snapshot.folder), _tokenizer(name, snapshot.folder)
    family: Family = seq2seq if config.is_encoder_decoder else causal
    _prepare_tokenizer(tokenizer, spec, family)
    _check_generates(config, name, family)
    _check_positions(config, spec, family)
    if snapshot is not None and pretrained:
        with loading_errors(name, snapshot.folder):
            model = read_weights(name, snapshot.folder, config, use_safetensors=True)
    else:
        with loading_errors(name, "its config.json", ConfigError):
            model = _auto_class(config).from_config(config, dtype=torch.float32)
    if len(tokenizer) > len(model.get_input_embeddings().get_parameter("weight")):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    is_chat, pad = spec.prompt.template == "chat", tokenizer.pad_token_id
    end = chat.markup(tokenizer, name).end_id if is_chat else tokenizer.eos_token_id
    ids = SpecialIds(pad, end, _decoder_start(model, pad) if family.is_seq2seq else pad)
    # settings that the weights came with (sampling, penalties, lengths) are not those of the run
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ids.end,
        pad_token_id=pad,
        decoder_start_token_id=ids.decoder_start if family.is_seq2seq else None,
    )
    model.config.pad_token_id = pad
    return LoadedModel(model, tokenizer, family, ids, snapshot.commit if snapshot else None)


def model_type(name: str) -> str:
    """Return the model type that the model's config.json names."""
    if alias := alias_of(name):
        return ALIASES[alias].model_type
    return str(_config(name, hub.fetch(name, weights=False).folder).model_type)


def _config(name: str, folder: Path) -> PreTrainedConfig:
    with loading_errors(name, folder):
        values, _ = PreTrainedConfig.get_config_dict(folder)
        if "auto_map" in values and values.get("model_type") not in transformers.CONFIG_MAPPING:
            raise UnavailableError(
                f"{name}: asks to run code of its own ({folder / 'config.json'}: auto_map), which"
                " tgsent never does; choose a model that transformers knows"
            )
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        )
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method") or "by an unnamed method"
        raise ConfigError(
            f"{name}: its weights are quantised ({method}), which tgsent does not train; use the"
            " unquantised model"
        )
    return config


def _check_generates(config: PreTrainedConfig, name: str, family: Family) -> None:
    """Raise ConfigError for a model that does not generate text from left to right."""
    kind = f'a model of type "{config.model_type}"'
    generating: Container[type[PreTrainedConfig]] = (
        transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if family.is_seq2seq
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in generating:
        text = " (its text part alone may be)" if hasattr(config, "text_config") else ""
        raise ConfigError(
            f"{name}: {kind} does not generate text{text}; use a causal or seq2seq language model"
        )
    bidirectional = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not (
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
    with loading_errors(name, folder):
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
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
    # for users who generate with the saved tokenizer; saved only if it is set in both places
    tokenizer.padding_side = "right" if family.is_seq2seq else "left"
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side


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


def _decoder_start(model: PreTrainedModel, pad: int) -> int:
    """Return the token that a seq2seq model's decoder starts with, chosen as the library does.

    T5 starts with padding, BART with its EOS token, T5Gemma with its BOS token, which is named in
    the configuration of its decoder alone.
    """
    named = (
        getattr(model.config, "decoder_start_token_id", None),
        model.generation_config.decoder_start_token_id,
        getattr(model.config.get_text_config(decoder=True), "bos_token_id", None),
    )
    return next((token for token in named if token is not None), pad)


def _auto_class(config: PreTrainedConfig) -> Any:
    is_seq2seq = config.is_encoder_decoder
    return transformers.AutoModelForSeq2SeqLM if is_seq2seq else transformers.AutoModelForCausalLM


def read_weights(
    name: str, folder: Path, config: PreTrainedConfig, **options: object
) -> PreTrainedModel:
    """Load fp32 weights; raise UnavailableError where some are missing or of another shape.

    The library itself only warns, and leaves random weights in their place.
    """
    model: PreTrainedModel
    model, report = _auto_class(config).from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{key} has another shape" for key, *_ in sorted(report["mismatched_keys"])]
    if wrong:
        raise UnavailableError(
            f"{name}: the weights do not fit the model's configuration: {', '.join(wrong[:3])};"
            " put the files that belong together there, or name another model"
        )
    return model


@contextlib.contextmanager
def loading_errors(
    name: str, place: Path | str, kind: type[TgsentError] = UnavailableError
) -> Iterator[None]:
    """Raise an error with a way out for any error of the library in the context.

    The library raises almost any exception for files that it cannot read.
    """
    try:
        yield
    except TgsentError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise kind(
            f"the model {name} cannot be loaded from {place}: {reason(error)}\n"
            "name another model or folder, or try `tgsent run -c smoke`, which needs neither"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Check for a failed allocation, for which the CPU has no exception class of its own."""
    signed = isinstance(error, RuntimeError) and any(s in str(error) for s in _OUT_OF_MEMORY)
    return signed or isinstance(error, torch.OutOfMemoryError | MemoryError)


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
        (shown,) = build(start=shot_before, stop=shot_after).encode_examples([shot])
        start_ids = (*start_ids, *shown.prompt, *shown.target[:-1])
    # a seq2seq model's encoder reads prompts that end in the EOS token
    stop_ids = (loaded.ids.end,) if loaded.family.is_seq2seq else ()
    encoder = build(start_ids=start_ids, start=before, stop=after, stop_ids=stop_ids)
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
    ids = loaded.tokenizer.convert_tokens_to_ids([start] if start else [])
    return tuple(ids), [("", ""), *[("\n\n", "")] * shots]  # type: ignore[arg-type]
