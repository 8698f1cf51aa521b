"""Model names to files: folders, GGUF files, and repositories of the Hugging Face Hub.

Models of the Hub are pinned by commit, local ones by the hash of their files.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from tgsent.config import TrialSpec
from tgsent.config.aliases import ALIASES, name_and_revision
from tgsent.errors import UnavailableError, reason
from tgsent.files import atomic_writer, cache_folder, show_size
from tgsent.modeling import gguf_files
from tgsent.progress import Quiet
from tgsent.records import Progress, Task

_INDEX = "model.safetensors.index.json"
_PATIENCE = 3.5
"""Seconds to wait for the Hub's first answer."""
_ANNOUNCED = 10**9
"""File size in bytes above which hashing is announced."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a model on this machine."""

    folder: Path
    commit: str | None = None
    """The commit on the Hub; None for a folder or a file that the user named."""


@dataclass
class _Session:
    """What this process has learned from the Hub.

    Process-wide, so that all trials of a run start from the same commit, and a Hub that is down is
    waited for only once.
    """

    snapshots: dict[tuple[str, bool], Snapshot] = field(default_factory=dict)
    """By model, and whether its weights are wanted."""
    down: str = ""
    """Why the Hub could not be reached; empty if it could."""


_session = _Session()


def fetch(model: str, *, weights: bool, progress: Progress | None = None) -> Snapshot:
    """Return the files of a model: configuration, tokenizer and, if wanted, weights.

    `model` is a folder, a GGUF file, an alias or a Hub id, the latter two optionally with
    `@revision`. Files of the Hub are downloaded once, and taken from the cache where the Hub cannot
    be reached; a process asks the Hub once for each model. Raises UnavailableError with the ways
    out where the files are not available or may not be loaded.
    """
    progress = progress or Quiet()
    if (path := _local_path(model)) is not None:
        if path.is_file():
            return Snapshot(gguf_files.unpacked(model, path, progress))
        names = [file.name for file in path.iterdir()]
        _check_names(model, "this folder", names, weights)
        if weights:
            _check_weights(model, path, names, "put a good copy of it there")
        return Snapshot(path)
    snapshots = _session.snapshots
    if (model, True) in snapshots:  # has all that is wanted without weights, too
        return snapshots[model, True]
    if (model, weights) not in snapshots:
        snapshots[model, weights] = _from_hub(model, weights, progress)
    return snapshots[model, weights]


def with_hashes(specs: Iterable[TrialSpec], progress: Progress) -> list[TrialSpec]:
    """Return the specs with the hash of the local model that each starts from.

    Hub models, which are pinned by commit, and models trained from scratch are unchanged. So is a
    missing model: whether it is needed is not known yet.
    """
    hash_of = cache(lambda model: _hash_of(model, progress))
    return [
        spec.with_weights(hash_of(spec.model)) if spec.starts_from_weights else spec
        for spec in specs
    ]


def _hash_of(model: str, progress: Progress) -> str:
    """Hash a GGUF file, or the lines that `sha256sum` prints for the files of a folder.

    A score depends on configuration, tokenizer and chat template as well as on the weights.
    """
    try:
        path = _local_path(model)
        if path is None:
            return ""
        if path.is_file():
            return _hash_of_file(path, progress)
        names = sorted(file.name for file in path.iterdir())
        weights = weight_files(names)
        files = [*weights, *_small_files(names)] if weights else []
        lines = [f"{_hash_of_file(path / name, progress)}  {name}\n" for name in files]
    except (OSError, UnavailableError):  # reported when the model is loaded
        return ""
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _hash_of_file(file: Path, progress: Progress) -> str:
    """Hash a file, or return the cached hash for its path, size and modification time."""
    about = file.stat()
    state = f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}"
    entry = cache_folder() / "weights" / hashlib.sha256(os.fsencode(state)).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", kept := entry.read_text("ascii")):
            return kept
    if about.st_size >= _ANNOUNCED:
        progress.line(f"hashing {file} ({show_size(about.st_size)}), once")
    sha256 = _sha256(file)
    after = file.stat()
    if (after.st_size, after.st_mtime_ns) == (about.st_size, about.st_mtime_ns):
        # without the cache, the file is only hashed again
        with contextlib.suppress(OSError), atomic_writer(entry) as cached:
            cached.write(sha256.encode())
    return sha256


def _local_path(model: str) -> Path | None:
    """Return the folder or the GGUF file that is named; None for a model of the Hub."""
    path = Path(model).expanduser()
    is_gguf = path.suffix.lower() == ".gguf"
    if model in ALIASES:
        return None
    if path.is_dir() or (is_gguf and path.is_file()):
        return path
    name, _ = name_and_revision(model)
    if is_gguf or name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        kind = "file; name a GGUF file" if is_gguf else "folder; name a folder that holds a model"
        raise UnavailableError(f"{model}: no such {kind}")
    return None


def _from_hub(model: str, weights: bool, progress: Progress) -> Snapshot:
    name, revision = name_and_revision(model)
    repository = _Repository(model, ALIASES[name].hub_id if name in ALIASES else name, revision)
    with repository.errors():
        cached = repository.cached(weights)
        info = repository.ask()
        if info is not None:
            return repository.download(info, weights, progress)
        if cached is None:
            raise repository.unavailable(f"{_session.down}, and it is not in the cache")
        progress.line(
            f"{repository.repo_id}: {_session.down}; taking commit {cached.commit} from the cache"
        )
        return cached


@dataclass(frozen=True)
class _Repository:
    """One repository of the Hub, as the user named it."""

    model: str
    repo_id: str
    revision: str | None

    def unavailable(self, why: str, way_out: str = "") -> UnavailableError:
        """Return an error that names the model, the reason and the ways out."""
        if not way_out:
            is_offline = constants.is_offline_mode()
            reachable = "set HF_ENDPOINT to a hub that can be reached"
            way_out = "unset HF_HUB_OFFLINE" if is_offline else reachable
        if "/" not in self.repo_id:
            near = difflib.get_close_matches(self.repo_id.lower(), ALIASES, n=1, cutoff=0.5)
            guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(ALIASES)}"
            why += f"; as a short name it is unknown: {guess}"
        named = "" if self.repo_id == self.model else f" ({self.repo_id})"
        return UnavailableError(
            f"the model {self.model}{named} is not available: {why}\n"
            f"{way_out}, or name a folder that holds the model with --model FOLDER,\n"
            "or try `tgsent run -c smoke`, which needs neither hub nor download"
        )

    def cached(self, weights: bool) -> Snapshot | None:
        """Return the snapshot of an earlier download, if it is complete."""
        config = try_to_load_from_cache(self.repo_id, "config.json", revision=self.revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        names = [path.name for path in folder.iterdir()]
        if weights and (not weight_files(names) or _missing_weights(folder, names)):
            return None
        return Snapshot(folder, folder.name) if len(names) > 1 else None

    def ask(self) -> ModelInfo | None:
        """Ask the Hub for the commit and its files; return None, and note why, if it is down."""
        if _session.down:
            return None
        future: Future[ModelInfo] = Future()
        threading.Thread(target=self._answer, args=[future], daemon=True).start()
        try:
            return future.result(_PATIENCE)
        except hub_errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500 and status != 429:  # too many requests
                raise
            _session.down = f"{constants.ENDPOINT} answers {status}"
        except hub_errors.OfflineModeIsEnabled:
            _session.down = "HF_HUB_OFFLINE is set"
        except TimeoutError:
            _session.down = f"no answer within {_PATIENCE:g} s from {constants.ENDPOINT}"
        except HTTPError as error:
            _session.down = f"{constants.ENDPOINT} cannot be reached ({reason(error)})"
        return None

    def _answer(self, future: Future[ModelInfo]) -> None:
        """Ask in a thread: no timeout bounds the lookup of a name, nor trying several addresses."""
        try:
            info = HfApi().model_info(
                self.repo_id, revision=self.revision, timeout=_PATIENCE, files_metadata=True
            )
            future.set_result(info)
        except BaseException as error:  # noqa: BLE001  raised by `ask`
            future.set_exception(error)

    def download(self, info: ModelInfo, weights: bool, progress: Progress) -> Snapshot:
        """Download and check what is not in the cache yet; return the snapshot."""
        files = {file.rfilename: file for file in info.siblings or ()}
        _check_names(self.model, self.repo_id, files, weights)
        wanted = _small_files(files) + (weight_files(files) if weights else [])
        # last, so that where it is, all others are
        wanted.sort(key=lambda name: name == "config.json")
        missing = [
            name
            for name in wanted
            if not isinstance(try_to_load_from_cache(self.repo_id, name, revision=info.sha), str)
        ]
        total = sum(files[name].size or 0 for name in missing)
        shown = progress if missing else Quiet()
        shown.line(f"downloading {self.repo_id} from {constants.ENDPOINT} ({total / 1e6:.1f} MB)")
        with shown.task(f"downloading {self.repo_id}, MB", total // 10**6) as task:
            bar = _bar(task)
            for name in wanted:
                path = Path(hf_hub_download(self.repo_id, name, revision=info.sha, tqdm_class=bar))
                lfs = files[name].lfs
                if name in missing and lfs is not None and _sha256(path) != lfs.sha256:
                    path.resolve().unlink()  # the link in the snapshot leads to it
                    path.unlink(missing_ok=True)
                    raise self.unavailable(f"{name} arrived damaged", "run the command again")
            # the library notes the commit of the revision for when the Hub cannot be reached
            hf_hub_download(self.repo_id, "config.json", revision=self.revision, tqdm_class=bar)
        _check_weights(self.model, path.parent, wanted, f"delete {path.parent} and run again")
        return Snapshot(path.parent, path.parent.name)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise UnavailableError, with a way out, for errors of the Hub in the context."""
        page = f"{constants.ENDPOINT}/{self.repo_id}"
        try:
            yield
        except hub_errors.RevisionNotFoundError:
            raise self.unavailable(
                f"there is no revision {self.revision}", f"see {page}/commits/main for those there"
            ) from None
        except hub_errors.RepositoryNotFoundError:
            raise self.unavailable(
                f"there is no {page}, or it is private, or you have not accepted its terms",
                "see that page, log in with `hf auth login` (or set HF_TOKEN)",
            ) from None
        except hub_errors.HFValidationError as error:
            raise self.unavailable(reason(error), "name it as owner/name") from None
        except HTTPError as error:
            raise self.unavailable(reason(error)) from None
        except OSError as error:
            raise self.unavailable(reason(error), f"look at {constants.HF_HUB_CACHE}") from None


def weight_files(names: Collection[str]) -> list[str]:
    """Return the safetensors weights, with their index where they are in several files."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    shards = sorted(n for n in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", n))
    return [_INDEX, *shards] if _INDEX in names and shards else []


def _missing_weights(folder: Path, names: Collection[str]) -> list[str]:
    """Return the files that the index names and the folder lacks."""
    if _INDEX not in weight_files(names):
        return []
    index = json.loads((folder / _INDEX).read_bytes())
    return sorted(set(index["weight_map"].values()) - set(names))


def _small_files(names: Collection[str]) -> list[str]:
    """Return configuration, tokenizer and chat template: small files of the top folder."""
    return [n for n in names if re.fullmatch(r"[^/]+\.(json|txt|model|jinja)", n) and n != _INDEX]


def _check_names(model: str, place: str, names: Collection[str], weights: bool) -> None:
    """Check that there is a configuration and, if wanted, weights; raise UnavailableError."""
    if "config.json" not in names:
        raise UnavailableError(
            f"{model}: {place} holds no config.json, so it is no transformers model;"
            " name one, or a GGUF file"
        )
    if weights and not weight_files(names):
        raise UnavailableError(
            f"{model}: {place} holds no weights as safetensors (others may run code when loaded)\n"
            "choose another model or revision (MODEL@REVISION), convert the weights to"
            " model.safetensors,\nor train the architecture from nothing:"
            " --set training.init=random"
        )


def _check_weights(model: str, folder: Path, names: Collection[str], way_out: str) -> None:
    """Check that no file is missing, and read the headers, which say how long each must be."""
    if lacking := _missing_weights(folder, names):
        raise UnavailableError(f"{model}: {lacking[0]} is missing in {folder}; put it there")
    for path in (folder / name for name in weight_files(names) if name != _INDEX):
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise UnavailableError(
                f"{model}: the weights {path} are damaged ({reason(error)}); {way_out}"
            ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bar(task: Task) -> type[tqdm[object]]:
    """Return a class of bars that reports megabytes to `task`, and draws nothing."""
    done = 0

    class Bar(tqdm):  # type: ignore[type-arg]  # no subscript when it runs
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[call-overload]

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            size = int(n or 0)
            task.advance((done + size) // 10**6 - done // 10**6)
            done += size

        def update_transfer(self, n: float) -> None:
            """Ignore the bytes received: those written are counted."""

    return Bar
