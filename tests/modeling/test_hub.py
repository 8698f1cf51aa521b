"""Models from the Hub, against a small hub on this machine: downloads, the cache, and refusals."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from conftest import Cli
from fake_hub import COMMIT, Hub, Repository, hub_environment, serve
from tgsent.config.aliases import ALIASES
from tgsent.modeling import loading
from tiny_models import examples, tiny_spec

GPT2 = "openai-community/gpt2"
WEIGHTS = save({"w": np.arange(50_000, dtype=np.float32)})
FILES = {
    "config.json": b'{"model_type": "gpt2"}',
    "tokenizer.json": b"{}",
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"never read",
    "README.md": b"never read",
    "onnx/config.json": b"never read",
}

_FETCH = """
import contextlib, json, sys, time
from tgsent import errors
from tgsent.modeling import hub
class Progress:
    @contextlib.contextmanager
    def task(self, name, total):
        yield self
    def advance(self, examples, note=""):
        pass
    def line(self, text):
        lines.append(text)
lines = []
started = time.perf_counter()
try:
    for weights in json.loads(sys.argv[2]):
        snapshot = hub.fetch(sys.argv[1], weights=weights, progress=Progress())
    print(json.dumps({"folder": str(snapshot.folder), "commit": snapshot.commit, "lines": lines,
                      "seconds": time.perf_counter() - started}))
except errors.TgsentError as error:
    print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
"""


class Fetched:
    """What a process of its own got from `hub.fetch`."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        self.error: str = outcome.get("error", "")
        self.exit_code: int = outcome.get("exit_code", 0)
        self.folder = Path(outcome.get("folder", "nowhere"))
        self.commit: str | None = outcome.get("commit")
        self.lines: list[str] = outcome.get("lines", [])
        self.seconds: float = outcome.get("seconds", 0.0)

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


Fetch = Callable[..., Fetched]


@pytest.fixture
def repository() -> Repository:
    return Repository(dict(FILES))


@pytest.fixture
def hub(repository: Repository) -> Iterator[Hub]:
    with serve({GPT2: repository}) as running:
        yield running


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    """Calls `hub.fetch` in a new process, all with the same cache."""

    def call(
        model: str, endpoint: str, *, weights: tuple[bool, ...] = (True,), offline: bool = False
    ) -> Fetched:
        return Fetched(
            subprocess.run(
                [sys.executable, "-c", _FETCH, model, json.dumps(weights)],
                env=hub_environment(endpoint, tmp_path / "cache", offline=offline),
                capture_output=True,
                text=True,
                timeout=60,
            )
        )

    return call


def test_only_what_is_needed_is_downloaded_and_only_once(
    fetch: Fetch, hub: Hub, repository: Repository
) -> None:
    first = fetch("gpt2", hub.endpoint)
    wanted = {"config.json", "tokenizer.json", "vocab.json", "merges.txt", "model.safetensors"}
    assert first.names == wanted
    assert first.commit == COMMIT
    assert (first.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert first.lines == [f"downloading {GPT2} from {hub.endpoint} (0.2 MB)"]
    again = fetch("gpt2", hub.endpoint)
    assert (again.folder, again.commit, again.lines) == (first.folder, COMMIT, [])
    for name in wanted:
        assert len(hub.downloads(f"gpt2/{name}")) == 1


def test_one_process_asks_once(fetch: Fetch, hub: Hub) -> None:
    fetch("gpt2", hub.endpoint, weights=(True, True, False))
    assert len(hub.downloads(f"/api/models/{GPT2}")) == 1


def test_without_weights_none_are_downloaded(fetch: Fetch, hub: Hub) -> None:
    assert "model.safetensors" not in fetch(GPT2, hub.endpoint, weights=(False,)).names


def test_weights_in_several_files(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    del repository.files["model.safetensors"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}
    repository.files |= dict.fromkeys(shards, WEIGHTS)
    repository.files["model.safetensors.index.json"] = json.dumps(index).encode()
    fetched = fetch("gpt2", hub.endpoint)
    assert fetched.names > {*shards, "model.safetensors.index.json"}
    (fetched.folder / shards[1]).unlink()
    assert "not in the cache" in fetch("gpt2", "http://127.0.0.1:9").error


def test_a_pinned_revision(fetch: Fetch, hub: Hub) -> None:
    assert fetch(f"gpt2@{COMMIT}", hub.endpoint).commit == COMMIT
    assert f"/api/models/{GPT2}/revision/{COMMIT}" in {path for _, path, _ in hub.requests}
    gone = fetch(f"{GPT2}@v2", hub.endpoint)
    assert f"the model {GPT2}@v2 ({GPT2}) is not available: there is no revision v2" in gone.error
    assert gone.exit_code == 3


def test_the_cache_serves_a_pinned_revision(fetch: Fetch, hub: Hub) -> None:
    fetch(f"gpt2@{COMMIT}", hub.endpoint)
    assert fetch(f"gpt2@{COMMIT}", "http://127.0.0.1:9").commit == COMMIT


def test_a_new_commit_is_taken(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    fetch("gpt2", hub.endpoint)
    repository.commit = "f" * 40
    repository.files["config.json"] = b'{"model_type": "gpt2", "n_layer": 1}'
    assert fetch("gpt2", hub.endpoint).commit == "f" * 40
    assert fetch("gpt2", "http://127.0.0.1:9").commit == "f" * 40


@pytest.mark.parametrize("offline", [False, True], ids=["no hub", "offline mode"])
def test_without_a_hub_the_cache_serves(fetch: Fetch, hub: Hub, offline: bool) -> None:
    first = fetch("gpt2", hub.endpoint)
    asked = len(hub.requests)
    endpoint = hub.endpoint if offline else "http://127.0.0.1:9"
    cached = fetch("gpt2", endpoint, offline=offline)
    assert (cached.folder, cached.commit) == (first.folder, COMMIT)
    reason = "HF_HUB_OFFLINE is set" if offline else "cannot be reached"
    assert reason in cached.lines[0]
    assert f"taking commit {COMMIT} from the cache" in cached.lines[0]
    assert len(hub.requests) == asked


def test_a_half_filled_cache_does_not_serve(fetch: Fetch, hub: Hub) -> None:
    fetch("gpt2", hub.endpoint, weights=(False,))
    missing = fetch("gpt2", "http://127.0.0.1:9")
    assert "cannot be reached" in missing.error
    assert missing.exit_code == 3


def test_a_hub_that_is_out_of_order(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    fetch("gpt2", hub.endpoint)
    repository.status = 503
    cached = fetch("gpt2", hub.endpoint)
    assert cached.commit == COMMIT
    assert f"{hub.endpoint} answers 503" in cached.lines[0]


def test_a_hub_that_is_silent(fetch: Fetch, hub: Hub) -> None:
    fetch("gpt2", hub.endpoint)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, answers nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cached = fetch("gpt2", endpoint, weights=(True, False))
        assert cached.seconds < 4
        assert cached.commit == COMMIT
        missing = fetch("t5", endpoint)
        assert "no answer within 3.5 s" in missing.error


def test_neither_hub_nor_cache(fetch: Fetch) -> None:
    missing = fetch("gpt2", "http://127.0.0.1:9")
    assert missing.exit_code == 3
    what, *ways_out = missing.error.splitlines()
    assert what.startswith(
        f"the model gpt2 ({GPT2}) is not available: http://127.0.0.1:9 cannot be reached ("
    )
    assert what.endswith("), and it is not in the cache")
    assert len(ways_out) == 2
    for way_out in ("HF_ENDPOINT", "folder", "-c smoke"):
        assert way_out in " ".join(ways_out)


def test_a_repository_that_is_not_there(fetch: Fetch, hub: Hub) -> None:
    missing = fetch("nobody/nothing", hub.endpoint)
    assert missing.exit_code == 3
    assert f"there is no {hub.endpoint}/nobody/nothing, or it is private" in missing.error
    assert "hf auth login" in missing.error


@pytest.mark.parametrize(
    ("name", "hint"), [("gpt-2", "did you mean gpt2?"), ("xyzzy", "there are gpt2")]
)
def test_a_short_name_that_is_unknown(fetch: Fetch, hub: Hub, name: str, hint: str) -> None:
    for endpoint in (hub.endpoint, "http://127.0.0.1:9"):
        assert f"as a short name it is unknown: {hint}" in fetch(name, endpoint).error


def test_offline_mode_has_a_way_out_of_its_own(fetch: Fetch, hub: Hub) -> None:
    assert "unset HF_HUB_OFFLINE" in fetch("gpt2", hub.endpoint, offline=True).error


def test_a_folder_with_a_part_of_the_weights(fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no config.json" in fetch(str(folder), "http://127.0.0.1:9").error
    (folder / "config.json").write_bytes(FILES["config.json"])
    assert "holds no weights as safetensors" in fetch(str(folder), "http://127.0.0.1:9").error
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / shards[0]).write_bytes(WEIGHTS)
    assert (
        f"{shards[1]} is missing in {folder}; put it there"
        in fetch(str(folder), "http://127.0.0.1:9").error
    )
    (folder / shards[1]).write_bytes(WEIGHTS)
    assert fetch(str(folder), "http://127.0.0.1:9").folder == folder


@pytest.mark.parametrize("name", ["a--b", "..", "what ever"])
def test_a_name_that_is_none(fetch: Fetch, hub: Hub, name: str) -> None:
    refused = fetch(name, hub.endpoint)
    assert refused.exit_code == 3
    assert len(refused.error.splitlines()) <= 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository(fetch: Fetch, hub: Hub, repository: Repository, status: int) -> None:
    repository.status, repository.error = status, "GatedRepo"
    gated = fetch("gpt2", hub.endpoint)
    assert gated.exit_code == 3
    assert "you have not accepted its terms" in gated.error
    assert f"{hub.endpoint}/{GPT2}" in gated.error
    assert "hf auth login" in gated.error
    assert len(gated.error.splitlines()) <= 3


def test_a_download_that_is_cut_goes_on_where_it_ended(
    fetch: Fetch, hub: Hub, repository: Repository
) -> None:
    content = save({"w": np.arange(6_000_000, dtype=np.float32)})
    repository.files["model.safetensors"] = content
    repository.cut = {"model.safetensors"}
    fetched = fetch("gpt2", hub.endpoint)
    assert (fetched.folder / "model.safetensors").read_bytes() == content
    first, second = hub.downloads("cdn")
    assert first == ""
    assert second == f"bytes={10 * 2**20}-"  # the library keeps whole chunks of 10 MiB


def test_a_damaged_download_is_forgotten(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    repository.damaged = {"model.safetensors"}
    damaged = fetch("gpt2", hub.endpoint)
    assert damaged.exit_code == 3
    assert "model.safetensors arrived damaged" in damaged.error
    repository.damaged = set()
    fetched = fetch("gpt2", hub.endpoint)
    assert (fetched.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_weights_that_are_no_safetensors(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    repository.files["model.safetensors"] = WEIGHTS[:-5]
    for _ in range(2):
        corrupt = fetch("gpt2", hub.endpoint)
        assert corrupt.exit_code == 3
        assert "model.safetensors are damaged (" in corrupt.error


def test_pickled_weights_are_refused(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    del repository.files["model.safetensors"]
    refused = fetch("gpt2", hub.endpoint)
    assert refused.exit_code == 3
    assert "holds no weights as safetensors" in refused.error
    assert "training.init=random" in refused.error
    assert hub.downloads("resolve") == []


def test_a_repository_without_configuration(fetch: Fetch, hub: Hub, repository: Repository) -> None:
    del repository.files["config.json"]
    assert "holds no config.json" in fetch("gpt2", hub.endpoint).error


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Tiny models in the file layout of the three reference repositories, by Hub id."""
    found = {}
    for alias in ("gpt2", "gpt-neo", "t5"):
        folder = tmp_path_factory.mktemp(alias)
        loaded = loading.load(tiny_spec(alias, training={"max_tokens": 512}), examples(100))
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        found[ALIASES[alias].hub_id] = {
            "pytorch_model.bin": b"\x80never loaded",
            "README.md": b"# a model\n",
            **{path.name: path.read_bytes() for path in folder.iterdir()},
        }
    return found


SMALL = (
    "run", "-n", "1", "--set", "data.path=sample", "--set", "data.sample_size=100",
    "--set", "data.test_fraction=0.2", "--set", "training.epochs=1",
)  # fmt: skip


def test_the_three_models_from_the_hub_and_from_the_cache(
    cli: Cli, tiny_files: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    repositories = {hub_id: Repository(files) for hub_id, files in tiny_files.items()}
    with serve(repositories) as hub:
        environment = hub_environment(hub.endpoint, tmp_path / "cache")
        online = cli(*SMALL, env=environment)
    assert online.returncode == 0, online.stderr
    for hub_id in repositories:
        assert f"downloading {hub_id} from {hub.endpoint}" in online.stderr
    manifest = json.loads((tmp_path / "runs/default/manifest.json").read_bytes())
    assert [(m["name"], m["commit"]) for m in manifest["models"]] == [
        ("gpt2", COMMIT), ("gpt-neo", COMMIT), ("t5", COMMIT),
    ]  # fmt: skip
    first = (tmp_path / "runs/default/gpt2/trial-1/predictions.csv").read_bytes()

    offline = cli(*SMALL, "--fresh", env=environment)
    assert offline.returncode == 0, offline.stderr
    assert offline.stderr.count("from the cache") == 3
    assert (tmp_path / "runs/default/gpt2/trial-1/predictions.csv").read_bytes() == first


def test_no_hub_and_no_cache_is_told_in_three_lines_within_ten_seconds(
    cli: Cli, tmp_path: Path
) -> None:
    started = time.perf_counter()
    done = cli(*SMALL, "-m", "gpt2", env=hub_environment("http://127.0.0.1:9", tmp_path / "cache"))
    assert time.perf_counter() - started < 15  # 7 s on two quiet cores
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 3
    for part in (f"gpt2 ({GPT2})", "cannot be reached", "HF_ENDPOINT", "folder", "-c smoke"):
        assert part in done.stderr
    assert not (tmp_path / "runs/default").exists()


def test_a_model_that_is_missing_is_found_before_any_other_is_run(
    cli: Cli, tiny_files: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with serve({GPT2: Repository(tiny_files[GPT2])}) as hub:
        done = cli(
            *SMALL, "-m", "gpt2", "-m", "t5", env=hub_environment(hub.endpoint, tmp_path / "cache")
        )
    assert done.returncode == 3
    assert "google-t5/t5-base" in done.stderr
    assert "epoch" not in done.stderr
    assert not (tmp_path / "runs/default").exists()


def test_a_repository_that_asks_for_code_is_refused(
    cli: Cli, tiny_files: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    files = dict(tiny_files[GPT2])
    config = json.loads(files["config.json"])
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    files["config.json"] = json.dumps(config).encode()
    files["mine.py"] = b"open('was_run', 'w')\n"
    with serve({"me/mine": Repository(files)}) as hub:
        done = cli(*SMALL, "-m", "me/mine", env=hub_environment(hub.endpoint, tmp_path / "cache"))
    assert done.returncode == 3
    assert "me/mine: asks to run code of its own" in done.stderr
    assert "which tgsent never does" in done.stderr
    assert not list(tmp_path.rglob("was_run"))
    assert not (tmp_path / "runs/default").exists()
