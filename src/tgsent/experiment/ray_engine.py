"""The Ray engine: many trials at once, on all machines of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tgsent import __version__, files
from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import EngineConfig, TrialSpec
from tgsent.errors import RunFolderError, TgsentError, UnavailableError
from tgsent.experiment import trial
from tgsent.experiment.execute import Ended, PendingRun
from tgsent.progress import Quiet
from tgsent.records import Failure, Split, Splits
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.training import interrupts

if TYPE_CHECKING:
    from ray import ObjectRef

Returned = tuple[TrialResult | Failure, Mapping[str, bytes]]
"""The outcome of a trial, and the files of its model and its trackers by their paths."""

_ATTEMPTS = 3
"""Number of times that a trial's machine may die before the trial counts as failed."""


class RayEngine:
    """Runs trials on the cluster, and writes their files here."""

    def run(self, run: PendingRun) -> Iterator[Ended]:
        """Run trials as `Engine.run` says."""
        for spec, returned in attempts(run) if run.unfinished else ():
            try:
                with run.folder.trial_locked(spec):
                    ended = _keep(spec, returned, run)
            except RunFolderError as error:  # another process runs the trial, and writes it
                ended = Failure(str(error))
            yield spec, ended


def _keep(spec: TrialSpec, returned: Returned, run: PendingRun) -> TrialMetrics | Failure:
    """Write the files of a trial, those of its model and its trackers included."""
    (outcome, found), folder = returned, run.folder
    with folder.model_folder(spec) as save_to:
        places = {"model": save_to, "trackers": folder.trial_folder(spec) / "trackers"}
        for name, content in found.items():
            kind, _, inside = name.partition("/")
            if place := places[kind]:
                file = place / inside
                with files.storage_errors(file, len(content)):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
        return trial.write(spec, outcome, run, save_to)


def attempts(run: PendingRun) -> Iterator[tuple[TrialSpec, Returned]]:
    """Run trials as tasks of a Ray cluster, and yield their outcomes and files as they complete.

    The splits travel once, through Ray's object store; the workers share no disk with this
    machine. A trial whose machine dies is run again elsewhere. Raises UnavailableError where Ray is
    not installed, the cluster cannot be reached, or none of its machines is large enough.
    """
    engine = run.config.engine
    cpus, gpus = engine.cpus_per_trial or torch.get_num_threads(), engine.gpus_per_trial
    config = engine.model_copy(update={"cpus_per_trial": cpus})
    waiting, deaths = run.unfinished[::-1], Counter[str]()
    at_once = config.max_concurrent or len(waiting)
    with _cluster(), run.context.progress.task("trials on Ray", len(waiting)) as task:
        import ray
        from ray.exceptions import RayError, RayTaskError

        _check_room(cpus, gpus)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_trial)
        splits = ray.put(run.splits)
        running: dict[ObjectRef[Returned], TrialSpec] = {}
        while waiting or running:
            while waiting and len(running) < at_once:
                spec = waiting.pop()
                running[remote.remote(splits, config, __version__, spec)] = spec
            ended, _ = ray.wait(list(running), timeout=0.5)
            if interrupts.requested():
                raise KeyboardInterrupt
            for reference in ended:
                spec = running.pop(reference)
                returned: Returned
                try:
                    returned = ray.get(reference)
                except RayTaskError as error:  # a worker could not run the trial at all
                    reason = str(error).strip().splitlines()[-1]
                    returned = Failure(f"on a machine of the cluster: {reason}", str(error)), {}
                except RayError as error:  # of its process or machine
                    deaths[spec.title] += 1
                    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                    if deaths[spec.title] < _ATTEMPTS:
                        run.retry(spec, reason)
                        waiting.append(spec)
                        continue
                    message = f"its process or machine died {_ATTEMPTS} times: {reason}"
                    returned = Failure(message, str(error)), {}
                task.advance(1)
                yield spec, returned


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UnavailableError(
            "--engine ray: Ray is not installed; install it with: pip install 'tgsent[ray]'"
        ) from None
    address = os.environ.get("RAY_ADDRESS")
    ours = signal.getsignal(signal.SIGTERM)
    try:
        if address and (found := re.fullmatch(r"([^/]+):(\d+)", address)):  # Ray tries for minutes
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  Ray raises many kinds
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
        raise UnavailableError(
            f"--engine ray: cannot reach {where}: {str(error).strip().splitlines()[0]}\n"
            "`ray status` shows a cluster; without RAY_ADDRESS one is started here"
        ) from None
    signal.signal(signal.SIGTERM, ours)  # Ray replaces it
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(cpus: int, gpus: float) -> None:
    """Raise UnavailableError where no machine is large enough: a trial would wait forever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = {(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes}
    if not any(size[0] >= cpus and size[1] >= gpus for size in sizes):
        there = ", ".join(f"{size[0]:g} CPUs and {size[1]:g} GPUs" for size in sorted(sizes))
        raise UnavailableError(
            f"--engine ray: a trial takes {cpus} CPUs and {gpus:g} GPUs, and no machine of the"
            f" cluster has as many ({there}); set engine.cpus_per_trial and engine.gpus_per_trial"
        )


def _trial(splits: Splits, config: EngineConfig, version: str, spec: TrialSpec) -> Returned:
    """Run a trial on whatever machine this is."""
    if config.gpus_per_trial == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide those that it has not assigned
    if version != __version__:
        return Failure(f"a machine has tgsent {__version__}, and the run {version}"), {}
    trial.use_cores(config.cpus_per_trial)
    with tempfile.TemporaryDirectory(prefix="tgsent-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        save_to = place / "model" if spec.save_model else None
        if save_to is not None:
            save_to.mkdir()
        folders = TrialFolders(save_to, trackers=place / "trackers")
        try:
            outcome = _outcome(spec, splits[spec.trial - 1], folders)
        except TgsentError as error:  # of this machine; others may not have it
            return Failure(f"on {socket.gethostname()}: {error}"), {}
        found = {
            str(file.relative_to(place)): file.read_bytes()
            for file in place.rglob("*")
            if file.is_file()
        }
    return outcome, found


def _outcome(spec: TrialSpec, split: Split, folders: TrialFolders) -> TrialResult | Failure:
    try:
        return trial.result(spec, split, backend_of(spec).run(spec, split, Quiet(), folders))
    except Exception as error:  # noqa: BLE001  returned, or raised again there
        return trial.failure(spec, error)
