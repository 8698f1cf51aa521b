"""Trials on a Ray cluster: three nodes on this machine, each with processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ray.cluster_utils import Cluster

import tiny_models
from cli_process import Running
from conftest import cli_environment
from run_folders import write_texts
from tgsent.config import RunConfig
from tgsent.errors import UnavailableError
from tgsent.experiment import ray_engine
from tgsent.modeling import loading

SETTINGS = (
    "-m", "gpt2", "-m", "t5", "-m", "tfidf", "-n", "2",
    "--set", "data.path=texts.csv", "--set", "data.sample_size=null",
    "--set", "data.test_fraction=0.2", "--set", "training.init=tiny", "--set", "training.epochs=1",
    "--set", "training.device=cpu", "--set", "engine.cpus_per_trial=1",
)  # fmt: skip


COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
SMALL = {"object_store_memory": 100 * 2**20}  # in shared memory, of which there may be little


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes; the head, where drivers are, has no room for trials."""
    with cluster_environment():
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL},
        )
        for _ in range(2):
            found.add_node(num_cpus=1, **SMALL)
        yield found
        found.shutdown()


@contextlib.contextmanager
def cluster_environment() -> Iterator[None]:
    """What the nodes are started with: no metrics, and nothing that measures what tests cover."""
    before = dict(os.environ)
    for name in COVERAGE:
        del os.environ[name]
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
    yield
    os.environ.clear()
    os.environ.update(before)


def start(place: Path, cluster: Cluster, *more: str, engine: str = "ray") -> Running:
    return Running(
        ("run", *SETTINGS, "--engine", engine, *more), place,
        cli_environment({**COVERAGE, "RAY_ADDRESS": cluster.address}),
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts.csv")
    return tmp_path


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_bytes())
    return found


def lasting(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for what tells of the time and the place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/trial-*/*")):
        name = str(path.relative_to(folder))
        found[name] = (
            path.read_bytes() if path.is_file() else sorted(p.name for p in path.iterdir())
        )
        if path.name == "metrics.json":
            found[name] = {
                key: value
                for key, value in json.loads(path.read_bytes()).items()
                if not key.endswith(("_seconds", "_per_second", "_bytes"))
            }
    return found


def test_a_cluster_does_what_one_process_does(place: Path, cluster: Cluster) -> None:
    kept = ("--set", "output.save_model=first")
    there = start(place, cluster, *kept, "--set", "name=there")
    here = start(place, cluster, *kept, "--set", "name=here", engine="local")
    for process in (there, here):
        done = process.ended(900)
        assert done.returncode == 0, done.stderr
    ours, theirs = lasting(place / "runs/here"), lasting(place / "runs/there")
    assert ours == theirs
    assert "model.safetensors" in ours["t5/trial-1/model"]
    assert "README.md" in ours["t5/trial-1/model"]
    one, two = results(place / "runs/here"), results(place / "runs/there")
    assert one["verdict"] == two["verdict"]
    assert one["signature"] == two["signature"]


LONG = ("--set", "training.epochs=40", "--set", "models=[gpt2]", "-n", "3")


@pytest.mark.slow
def test_a_node_that_dies_costs_no_trial(place: Path, cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, **SMALL)
    process = start(place, cluster, *LONG)
    wait_for(lambda: is_at_work(node), "no trial was given to the third node")
    time.sleep(2)  # into the training
    cluster.remove_node(node, allow_graceful=False)
    done = process.ended(900)
    assert done.returncode == 0, done.stderr
    assert "its process or machine died; it is run again (" in done.stderr
    found = results(place / "runs/default")
    assert [trial["trial"] for trial in found["models"][0]["trials"]] == [1, 2, 3]
    assert [one["trial"].partition(":")[0] for one in found["manifest"]["retried"]] == ["gpt2"]


@pytest.mark.slow
def test_a_driver_that_dies_is_started_again_and_does_the_rest(
    place: Path, cluster: Cluster
) -> None:
    process = start(place, cluster, *LONG)
    first = place / "runs/default"
    wait_for(lambda: list(first.glob("gpt2/*/metrics.json")), "no trial was finished")
    process.send(signal.SIGKILL)
    process.ended()
    done = {path: path.stat().st_mtime_ns for path in first.glob("gpt2/*/metrics.json")}
    assert len(done) < 3
    again = start(place, cluster, *LONG).ended(900)
    assert again.returncode == 0, again.stderr
    assert f"already finished: {len(done)} of 3 trials" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(results(first)["models"][0]["trials"]) == 3


@pytest.mark.slow
def test_a_machine_without_the_package_or_the_model_fails_the_trial(
    place: Path, cluster: Cluster
) -> None:
    """Only one machine has two cores, and one three, so that trials which take as many go there."""
    (place / "hidden").mkdir()
    (place / "hidden/sitecustomize.py").write_text("import sys\nsys.modules['tgsent'] = None\n")
    nodes = [
        cluster.add_node(num_cpus=2, **SMALL, env_vars={"PYTHONPATH": str(place / "hidden")}),
        cluster.add_node(num_cpus=3, **SMALL, env_vars={"HF_HOME": str(place / "nothing")}),
    ]
    loaded = loading.load(tiny_models.tiny_spec(), tiny_models.examples(20))
    loaded.model.save_pretrained(place / "model")
    loaded.tokenizer.save_pretrained(place / "model")
    for cpus, reason in ((2, "No module named"), (3, "./model")):
        settings = (
            "--set", f"engine.cpus_per_trial={cpus}",
            "--set", "models=[{model: ./model, training: {init: pretrained, max_tokens: 64}}]",
        )  # fmt: skip
        done = start(place, cluster, *settings, "--set", "trials=1", "--fresh").ended(900)
        assert done.returncode == 1, done.stderr
        (failure,) = results(place / "runs/default")["models"][0]["failed"]
        assert reason in failure["reason"]
        assert "Traceback" not in done.stderr
    for node in nodes:
        cluster.remove_node(node)


def is_at_work(node: Any) -> bool:
    """Check whether a process of this node is running a trial; Ray names processes so."""
    (raylet,) = (info.process.pid for info in node.all_processes["raylet"])
    children = Path(f"/proc/{raylet}/task").glob("*/children")
    pids = [pid for path in children for pid in path.read_text().split()]
    with contextlib.suppress(FileNotFoundError):  # of one that has just ended
        return any(b"ray::_trial" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
    return False


def wait_for(condition: Any, otherwise: str) -> None:
    deadline = time.monotonic() + 360
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tgsent\[ray\]'"):
        next(ray_engine.attempts(Mock(unfinished=[1], config=RunConfig())))


def test_a_cluster_that_is_not_there_is_told(place: Path) -> None:
    process = Running(
        ("run", *SETTINGS, "--engine", "ray"), place,
        cli_environment({"RAY_ADDRESS": "127.0.0.1:1"}),
    ).ended()  # fmt: skip
    assert process.returncode == 3
    assert "cannot reach the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in process.stderr
    assert len(process.stderr.splitlines()) <= 3


def test_a_trial_that_no_machine_has_room_for_is_refused(place: Path, cluster: Cluster) -> None:
    process = start(place, cluster, "--set", "engine.gpus_per_trial=8").ended(300)
    assert process.returncode == 3
    refusal = "a trial takes 1 CPUs and 8 GPUs, and no machine of the cluster has as many"
    assert refusal in process.stderr
