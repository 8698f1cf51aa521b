"""Which local model a trial starts from: the hash of its files, computed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tgsent.config import TrialSpec
from tgsent.files import atomic_writer, cache_folder, show_size
from tgsent.modeling import hub
from tgsent.records import Progress

_ANNOUNCED = 10**9
"""File size in bytes above which hashing is announced."""


def recorded(specs: Iterable[TrialSpec], progress: Progress) -> list[TrialSpec]:
    """Return the specs with the hash of the local model that each starts from.

    Hub models, which are pinned by commit, and models trained from scratch are unchanged. So is a
    missing model: whether it is needed is not known yet.
    """
    specs = list(specs)
    models = dict.fromkeys(spec.model for spec in specs if spec.starts_from_weights)
    hashes = {model: _of_model(model, progress) for model in models}
    return [
        spec.with_weights(hashes[spec.model])
        if spec.starts_from_weights and hashes[spec.model]
        else spec
        for spec in specs
    ]


def _of_model(model: str, progress: Progress) -> str:
    """Hash a local model as `sha256sum` hashes one file, or its lines for several.

    A score depends on configuration, tokenizer and chat template as well as on the weights.
    """
    try:
        files = hub.local_files(model)
        hashes = [(_of_file(file, progress), file.name) for file in files]
    except OSError:  # reported when the model is loaded
        return ""
    if len(hashes) < 2:
        return hashes[0][0] if hashes else ""
    lines = "".join(f"{sha256}  {name}\n" for sha256, name in hashes)
    return hashlib.sha256(lines.encode()).hexdigest()


def _of_file(file: Path, progress: Progress) -> str:
    """Hash a file, or return the cached hash for its size and modification time."""
    path = file.resolve()
    with path.open("rb") as opened:
        about = os.fstat(opened.fileno())
        state = {"path": str(path), "size": about.st_size, "mtime_ns": about.st_mtime_ns}
        entry = _entry(path)
        if kept := _kept(entry, state):
            return kept
        if about.st_size >= _ANNOUNCED:
            progress.line(f"hashing {file} ({show_size(about.st_size)}), once")
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        after = os.fstat(opened.fileno())
    if (after.st_size, after.st_mtime_ns) == (about.st_size, about.st_mtime_ns):
        # without the cache, the file is only hashed again
        with contextlib.suppress(OSError), atomic_writer(entry) as cache_file:
            cache_file.write(json.dumps({**state, "sha256": sha256}).encode())
    return sha256


def _entry(path: Path) -> Path:
    """Return the cache file for the hash of a file."""
    key = hashlib.sha256(os.fsencode(path)).hexdigest()
    return cache_folder() / "weights" / f"{key[:32]}.json"


def _kept(entry: Path, state: Mapping[str, object]) -> str | None:
    """Return the cached hash of a file in this state, or None."""
    try:
        values = json.loads(entry.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or {**values, **state} != values:
        return None
    sha256 = values.get("sha256")
    return sha256 if isinstance(sha256, str) and len(sha256) == 64 else None
