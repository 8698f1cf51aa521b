"""GGUF files: configuration, tokenizer and weights of one file, loaded as a plain fp32 model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from tgsent import memory
from tgsent.errors import TgsentError, UnavailableError


def check(name: str, file: Path) -> None:
    """Make sure that all tensors of the file are there; raise UnavailableError where not.

    Reads no weights, only where they begin and end.
    """
    from gguf import GGUFReader

    with _explained(name):
        GGUFReader(file)


def load_config(name: str, file: Path) -> transformers.PreTrainedConfig:
    """Load the configuration; raise UnavailableError where the file has none that is known."""
    with _explained(name), _alone(file) as folder:
        config: transformers.PreTrainedConfig = AutoConfig.from_pretrained(
            folder, gguf_file=file.name, trust_remote_code=False
        )
        config.name_or_path = str(file)
    return config


def load_tokenizer(name: str, file: Path) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer; raise UnavailableError where the file has none that is known."""
    with _explained(name), _alone(file) as folder:
        tokenizer: transformers.PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, gguf_file=file.name, trust_remote_code=False
        )
        tokenizer.name_or_path = str(file)
    return tokenizer


def load_weights(name: str, file: Path, auto: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the weights as fp32; give the model, and the library's report of what is missing.

    `auto` is the library's class of automatic models. Raises UnavailableError.
    """
    with _explained(name), _alone(file) as folder:
        loaded, found = auto.from_pretrained(
            folder,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            quantization_config=_all_dequantised(),
        )
        return _plain(loaded), found


def _all_dequantised() -> Any:
    """Ask for weights that can be trained; older versions of the library know no others."""
    wanted = getattr(transformers, "GgufConfig", None)
    return wanted(dequantize=True) if wanted else None


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """Build the same model anew, as the library refuses to save one that came from a GGUF file.

    For a moment both are in memory, which is half of what training takes.
    """
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    model: PreTrainedModel = type(loaded)(type(loaded.config).from_dict(values))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Lend a folder with nothing but the file.

    The library would also read what lies beside it, which may be of another model.
    """
    with tempfile.TemporaryDirectory(prefix="tgsent-") as name:
        (Path(name) / file.name).symlink_to(file.resolve())
        yield Path(name)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever the libraries raise for a file that they cannot read into UnavailableError."""
    try:
        yield
    except TgsentError:
        raise
    except Exception as error:  # of a damaged file, nearly any: KeyError, struct.error, ...
        if memory.is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:300]
        known = isinstance(error, OSError | ImportError) or type(error) is ValueError
        reason = text if known and text else f"{type(error).__name__}: {text}"
        raise UnavailableError(
            f"{name}: this GGUF file cannot be loaded: {reason}\n"
            "it is damaged, or of a kind that transformers cannot read; put a good copy there, or"
            " name a folder with the model as safetensors"
        ) from error
