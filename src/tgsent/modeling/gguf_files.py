"""GGUF files: unpacked once into plain model folders of the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgsent.errors import TgsentError, UnavailableError, reason
from tgsent.files import cache_folder, show_size, storage_errors
from tgsent.records import Progress

if TYPE_CHECKING:  # it takes seconds to import, and few runs need it here
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FORMAT = 1
"""Version of the unpacked folder; raising it unpacks all files again."""


def unpacked(name: str, file: Path, progress: Progress | None = None) -> Path:
    """Return a folder with configuration, tokenizer and fp32 weights of a file.

    Reading even a small file takes the library most of a minute, and it would be read three times.
    It is therefore unpacked once; the cache key is its path, size and modification time. Raises
    UnavailableError for a file that is damaged or that transformers cannot read, StorageError for a
    full disk.
    """
    about = file.stat()
    library = version("transformers")
    state = f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}|{library}|{_FORMAT}"
    key = hashlib.sha256(os.fsencode(state)).hexdigest()[:32]
    folder = cache_folder() / "gguf" / key
    if folder.is_dir():
        return folder
    if progress is not None:
        progress.line(f"unpacking {file} ({show_size(about.st_size)}) into {folder}, once")
    model, tokenizer = _read(name, file)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=folder.parent))
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _read(name: str, file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a file as a plain model, which can be saved, and its tokenizer."""
    import torch
    import transformers

    from tgsent.modeling.family import family_of

    # older versions of the library know no other weights
    config_class = getattr(transformers, "GgufConfig", None)
    # a caller may have made the meta device the default
    with torch.device("cpu"), _gguf_errors(name), _folder_with_only(file) as source:
        config = transformers.AutoConfig.from_pretrained(
            source, gguf_file=file.name, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, gguf_file=file.name, trust_remote_code=False
        )
        loaded, report = family_of(config).auto_class.from_pretrained(
            source,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            quantization_config=config_class(dequantize=True) if config_class else None,
        )
    if wrong := misfits(report):
        raise UnavailableError(
            f"{name}: the weights in this GGUF file are not those of its architecture: {wrong};"
            " put a good copy there"
        )
    # rebuilt, as the library refuses to save a model loaded from a GGUF file
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    with torch.device("cpu"):
        model: PreTrainedModel = type(loaded)(type(loaded.config).from_dict(values))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.config.name_or_path = tokenizer.name_or_path = ""
    return model, tokenizer


def misfits(report: Mapping[str, Any]) -> str:
    """Return what the library's loading report names as missing or misshapen; empty if nothing.

    The library itself only warns, and leaves random weights in their place.
    """
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{key[0]} has another shape" for key in sorted(report["mismatched_keys"])]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}" if wrong else ""


@contextlib.contextmanager
def _folder_with_only(file: Path) -> Iterator[Path]:
    """Yield a folder that holds only the file.

    The library would also read other files beside it, which may belong to another model.
    """
    with tempfile.TemporaryDirectory(prefix="tgsent-") as name:
        (Path(name) / file.name).symlink_to(file.resolve())
        yield Path(name)


@contextlib.contextmanager
def _gguf_errors(name: str) -> Iterator[None]:
    """Raise UnavailableError for whatever the libraries raise for a file they cannot read."""
    try:
        yield
    except (TgsentError, MemoryError):
        raise
    except Exception as error:  # damaged files raise almost any: KeyError, struct.error, ...
        raise UnavailableError(
            f"{name}: this GGUF file cannot be loaded: it is damaged, or transformers does not"
            f" read its kind\n{reason(error)}\n"
            "put a good copy there, or name a folder with the model as safetensors"
        ) from error
