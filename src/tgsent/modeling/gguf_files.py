"""GGUF files: unpacked once into plain model folders of the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tgsent.errors import UnavailableError
from tgsent.files import cache_folder, show_size, storage_errors
from tgsent.records import Progress

if TYPE_CHECKING:  # it takes seconds to import, and few runs need it here
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def unpacked(name: str, file: Path, progress: Progress) -> Path:
    """Return a folder with configuration, tokenizer and fp32 weights of a file.

    Reading even a small file takes the library most of a minute, and it would be read three times.
    It is therefore unpacked once; the cache key is its path, size and modification time. Raises
    UnavailableError for a file that is damaged or that transformers cannot read, StorageError for a
    full disk.
    """
    about = file.stat()
    state = f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}|{version('transformers')}|1"
    key = hashlib.sha256(os.fsencode(state)).hexdigest()[:32]
    folder = cache_folder() / "gguf" / key
    if folder.is_dir():
        return folder
    progress.line(f"unpacking {file} ({show_size(about.st_size)}) into {folder}, once")
    model, tokenizer = _read(name, file)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{key}.", suffix=".tmp", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            try:
                Path(temporary).rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return folder


def _read(name: str, file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a file as a plain model, which can be saved, and its tokenizer."""
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError(
            f"{name}: a GGUF file needs the package gguf;"
            " install it with: pip install 'tgsent[gguf]'"
        )
    import torch
    import transformers

    from tgsent.modeling import loading

    # older versions of the library know no other weights
    config_class = getattr(transformers, "GgufConfig", None)
    # a caller may have made the meta device the default
    with torch.device("cpu"), tempfile.TemporaryDirectory(prefix="tgsent-") as folder:
        # alone, as the library would read other files beside it, perhaps of another model
        (Path(folder) / file.name).symlink_to(file.resolve())
        with loading.loading_errors(name, file):
            config = transformers.AutoConfig.from_pretrained(
                folder, gguf_file=file.name, trust_remote_code=False
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, gguf_file=file.name, trust_remote_code=False
            )
            loaded = loading.read_weights(
                name,
                Path(folder),
                config,
                gguf_file=file.name,
                quantization_config=config_class(dequantize=True) if config_class else None,
            )
        # rebuilt, as the library refuses to save a model loaded from a GGUF file
        values = loaded.config.to_dict()
        values.pop("quantization_config", None)
        model: PreTrainedModel = type(loaded)(type(loaded.config).from_dict(values))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.config.name_or_path = tokenizer.name_or_path = ""
    return model, tokenizer
