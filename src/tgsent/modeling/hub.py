"""Model names to files: folders, and repositories of the Hugging Face Hub and its cache."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import queue
import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from tgsent.config import TrialSpec
from tgsent.config.aliases import ALIASES, alias_of, name_and_revision
from tgsent.errors import UnavailableError
from tgsent.modeling import gguf_files
from tgsent.records import Progress

_INDEX = "model.safetensors.index.json"
_GGUF, _GGUF_MAGIC = ".gguf", b"GGUF"
_PATIENCE = {"cached": 2.5, "missing": 3.5}
"""Seconds to wait for the Hub's first answer: less where the cache can stand in for it."""
_TOO_MANY_REQUESTS = 429

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """The files of a model on this machine."""

    folder: Path
    commit: str | None
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


def fetch_for(spec: TrialSpec, progress: Progress | None = None) -> Snapshot | None:
    """Return the files that a trial starts from, as `fetch` does; None where it needs none."""
    if not spec.needs_files:
        return None
    return fetch(spec.model, weights=spec.training.init == "pretrained", progress=progress)


def fetch(model: str, *, weights: bool, progress: Progress | None = None) -> Snapshot:
    """Return the files of a model: configuration, tokenizer and, if wanted, weights.

    `model` is a folder, a GGUF file, an alias or a Hub id, the latter two optionally with
    `@revision`. Files of the Hub are downloaded once, and taken from the cache where the Hub cannot
    be reached; a process asks the Hub once for each model. Raises UnavailableError with the ways
    out where the files are not available or may not be loaded.
    """
    if (file := _named_gguf(model)) is not None:
        _check_gguf(model, file)
        return Snapshot(gguf_files.unpacked(model, file, progress), None)
    if (folder := _named_folder(model)) is not None:
        _check_folder(model, folder, weights)
        return Snapshot(folder, None)
    snapshots = _session.snapshots
    if (model, True) in snapshots:  # has all that is wanted without weights, too
        return snapshots[model, True]
    if (model, weights) not in snapshots:
        snapshots[model, weights] = _from_hub(model, weights, progress)
    return snapshots[model, weights]


def local_files(model: str) -> list[Path]:
    """Return a local model's files: weights, configuration, tokenizer and chat template.

    The list is empty for a model of the Hub, and for one that is missing or has no weights.
    """
    try:
        if (file := _named_gguf(model)) is not None:
            return [file]
        folder = _named_folder(model)
    except UnavailableError:
        return []
    if folder is None:
        return []
    names = sorted(path.name for path in folder.iterdir())
    weights = weight_files(names)
    return [folder / name for name in (*weights, *_small_files(names))] if weights else []


def _named_gguf(model: str) -> Path | None:
    file = Path(model).expanduser()
    if file.suffix.lower() != _GGUF or file.is_dir():
        return None
    if not file.is_file():
        raise UnavailableError(f"{model}: no such file; name a GGUF file that is there")
    return file


def _check_gguf(model: str, file: Path) -> None:
    """Check that the package gguf is installed and that the file starts with GGUF's magic bytes.

    Raises UnavailableError. Other damage is found when the file is loaded.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError(
            f"{model}: a GGUF file needs the package gguf;"
            " install it with: pip install 'tgsent[gguf]'"
        )
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise UnavailableError(f"{model}: cannot be read: {error.strerror}") from None
    if magic != _GGUF_MAGIC:
        problem = "is not a GGUF file, despite its name" if magic else "is empty"
        raise UnavailableError(f"{model}: {problem}; put a good copy of it there")


def _named_folder(model: str) -> Path | None:
    folder = Path(model).expanduser()
    if model in ALIASES:
        return None
    if folder.is_dir():
        return folder
    name, _ = name_and_revision(model)
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        raise UnavailableError(f"{model}: no such folder; name a folder that holds a model")
    return None


def _check_folder(model: str, folder: Path, weights: bool) -> None:
    names = [path.name for path in folder.iterdir()]
    if "config.json" not in names:
        ggufs = sorted(folder / name for name in names if name.lower().endswith(_GGUF))
        instead = f"\nname {ggufs[0]} to take that file" if ggufs else ""
        raise UnavailableError(
            f"{model}: this folder holds no config.json, so it is no model's{instead}"
        )
    if not weights:
        return
    if not weight_files(names):
        raise UnavailableError(_no_weights(model, names, "this folder"))
    if lacking := _missing_weights(folder, names):
        raise UnavailableError(
            f"{model}: the weights are in several files, and {lacking[0]} is missing; put it there"
        )
    for name in weight_files(names):
        _check_safetensors(model, folder / name, "put a good copy of it there")


def _from_hub(model: str, weights: bool, progress: Progress | None) -> Snapshot:
    name, revision = name_and_revision(model)
    repo_id = ALIASES[name].hub_id if name in ALIASES else name
    repository = _Repository(model, repo_id, revision)
    cached = repository.cached(weights)
    try:
        info = repository.ask(_PATIENCE["cached" if cached else "missing"])
    except _HubIsDownError as down:
        if cached is None:
            raise repository.unavailable(f"{down}, and it is not in the cache") from None
        if progress is not None:
            progress.line(f"{repo_id}: {down}; taking commit {cached.commit} from the cache")
        return cached
    return repository.download(info, weights, progress)


class _HubIsDownError(Exception):
    """The Hub does not answer, or answers with an error of its own."""


@dataclass(frozen=True)
class _Repository:
    """One repository of the Hub, as the user named it."""

    model: str
    repo_id: str
    revision: str | None

    def unavailable(self, reason: str, way_out: str = "") -> UnavailableError:
        """Return an error that names the model, the reason and the ways out."""
        if not way_out:
            way_out = "set HF_ENDPOINT to a hub that can be reached"
            if constants.is_offline_mode():
                way_out = "unset HF_HUB_OFFLINE"
            if (alias := alias_of(self.repo_id)) and ALIASES[alias].gated:
                page = f"{constants.ENDPOINT}/{self.repo_id}"
                way_out += f", accept the terms on {page} and log in with `hf auth login`"
        if "/" not in self.repo_id:
            near = difflib.get_close_matches(self.repo_id.lower(), ALIASES, n=1, cutoff=0.5)
            guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(ALIASES)}"
            reason += f"; as a short name it is unknown: {guess}"
        named = "" if self.repo_id == self.model else f" ({self.repo_id})"
        return UnavailableError(
            f"the model {self.model}{named} is not available: {reason}\n"
            f"{way_out}, or name a folder that holds the model with --model FOLDER,\n"
            "or try `tgsent run -c smoke`, which needs neither hub nor download"
        )

    def cached(self, weights: bool) -> Snapshot | None:
        """Return the snapshot of an earlier download, if it is complete."""
        with self.errors():
            config = try_to_load_from_cache(self.repo_id, "config.json", revision=self.revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        names = [path.name for path in folder.iterdir()]
        if weights and (not weight_files(names) or _missing_weights(folder, names)):
            return None
        return Snapshot(folder, folder.name) if len(names) > 1 else None

    def ask(self, patience: float) -> ModelInfo:
        """Ask the Hub for the commit and its files; raise _HubIsDownError without an answer."""
        if _session.down:
            raise _HubIsDownError(_session.down)
        with self.errors():
            try:
                return _within(
                    patience,
                    lambda: HfApi().model_info(
                        self.repo_id, revision=self.revision, timeout=patience, files_metadata=True
                    ),
                )
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status < 500 and status != _TOO_MANY_REQUESTS:
                    raise
                down = f"{constants.ENDPOINT} answers {status}"
            except OfflineModeIsEnabled:
                down = "HF_HUB_OFFLINE is set"
            except (HTTPError, TimeoutError) as error:
                down = f"{constants.ENDPOINT} cannot be reached ({_one_line(error)})"
            _session.down = down
            raise _HubIsDownError(down)

    def download(self, info: ModelInfo, weights: bool, progress: Progress | None) -> Snapshot:
        """Download and check what is not in the cache yet; return the snapshot."""
        files = {file.rfilename: file for file in info.siblings or ()}
        wanted = _small_files(files)
        if weights:
            if not weight_files(files):
                raise UnavailableError(_no_weights(self.model, files, self.repo_id))
            wanted += weight_files(files)
        if "config.json" not in files:
            raise UnavailableError(
                f"{self.model}: {self.repo_id} holds no config.json, so it is no transformers model"
            )
        wanted.sort(key="config.json".__eq__)  # last, so that where it is, all others are
        missing = [
            name
            for name in wanted
            if not isinstance(try_to_load_from_cache(self.repo_id, name, revision=info.sha), str)
        ]
        total = sum(files[name].size or 0 for name in missing)
        with _shown(progress, self.repo_id, total) as count:
            # asked for in any case, so that the library notes the revision's commit
            names = dict.fromkeys((*missing, "config.json"))
            paths = {name: self._download(name, count) for name in names}
        folder = paths["config.json"].parent
        if any(path.parent != folder for path in paths.values()):
            raise self.unavailable("it changed while it was downloaded", "run the command again")
        for name in missing:
            lfs = files[name].lfs
            if lfs is not None and _sha256(paths[name]) != lfs.sha256:
                _forget(paths[name])
                raise self.unavailable(f"{name} arrived damaged", "run the command again")
        for name in weight_files(wanted):
            _check_safetensors(self.model, folder / name, f"delete {folder} and run again")
        return Snapshot(folder, folder.name)

    def _download(self, name: str, count: Callable[[int], None]) -> Path:
        class Bar(tqdm):  # type: ignore[type-arg]  # no subscript when it runs
            """Counts what the library reports to its bars, and draws nothing."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> None:
                count(int(n or 0))

            def update_transfer(self, n: float) -> None:
                """Ignore the bytes received: those written are counted."""

        with self.errors():
            return Path(hf_hub_download(self.repo_id, name, revision=self.revision, tqdm_class=Bar))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise UnavailableError, with a way out, for errors of the Hub in the context."""
        page = f"{constants.ENDPOINT}/{self.repo_id}"
        try:
            yield
        except GatedRepoError:
            raise self.unavailable(
                "its owner wants you to accept terms first",
                f"accept them on {page} and log in with `hf auth login` (or set HF_TOKEN)",
            ) from None
        except RevisionNotFoundError:
            raise self.unavailable(
                f"there is no revision {self.revision}", f"see {page}/commits/main for those there"
            ) from None
        except RepositoryNotFoundError:
            raise self.unavailable(
                f"there is no {page}, or it is private",
                "check the spelling, or log in with `hf auth login` (or set HF_TOKEN)",
            ) from None
        except HFValidationError as error:
            raise self.unavailable(_one_line(error), "name it as owner/name") from None
        except HTTPError as error:
            raise self.unavailable(_one_line(error)) from None
        except OSError as error:
            raise self.unavailable(_one_line(error), f"look at {constants.HF_HUB_CACHE}") from None


def weight_files(names: Collection[str]) -> list[str]:
    """Return the safetensors weights, with their index where they are in several files."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    shards = sorted(n for n in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", n))
    return [_INDEX, *shards] if _INDEX in names and shards else []


def _missing_weights(folder: Path, names: Collection[str]) -> list[str]:
    """Return the files that the index names and the folder lacks."""
    if weight_files(names)[:1] != [_INDEX]:
        return []
    index = json.loads((folder / _INDEX).read_bytes())
    return sorted(set(index["weight_map"].values()) - set(names))


def _small_files(names: Collection[str]) -> list[str]:
    """Return configuration, tokenizer and chat template: small files of the top folder."""
    return [n for n in names if re.fullmatch(r"[^/]+\.(json|txt|model|jinja)", n) and n != _INDEX]


def _no_weights(model: str, names: Collection[str], place: str) -> str:
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    held = f", only {pickles[0]}, which may run code when it is loaded" if pickles else ""
    return (
        f"{model}: {place} holds no weights as safetensors{held}\n"
        "choose another model or revision (MODEL@REVISION), convert the weights to"
        " model.safetensors,\nor train the architecture from nothing: --set training.init=random"
    )


def _check_safetensors(model: str, path: Path, way_out: str) -> None:
    """Read the header, which says how long the file must be."""
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise UnavailableError(
            f"{model}: the weights {path} are damaged ({_one_line(error)}); {way_out}"
        ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget(path: Path) -> None:
    """Remove a file from the cache: the link in the snapshot and what it leads to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _shown(progress: Progress | None, repo_id: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a download in megabytes; yield the function that counts bytes."""
    if progress is None or not total:
        yield lambda _: None
        return
    progress.line(f"downloading {repo_id} from {constants.ENDPOINT} ({total / 1e6:.1f} MB)")
    with progress.task(f"downloading {repo_id}, MB", total // 10**6) as task:
        done = 0

        def count(size: int) -> None:
            nonlocal done
            task.advance((done + size) // 10**6 - done // 10**6)
            done += size

        yield count


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Call with a deadline; raise TimeoutError after it.

    No timeout of the HTTP library bounds the lookup of a name, nor the trying of several addresses.
    """
    outcome: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # without an error there is a value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
