"""The Ray engine: many trials at once, on all machines of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tgsent import __version__, files
from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import TrialSpec
from tgsent.errors import RunFolderError, TgsentError, UnavailableError
from tgsent.experiment import trial
from tgsent.experiment.engine import EngineContext, use_cores
from tgsent.progress import Quiet
from tgsent.records import Failure, Progress, Splits
from tgsent.runs.manifest import DataSummary
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.training import interrupts

Returned = tuple[TrialResult | Failure, dict[str, bytes]]
"""The outcome of a trial, and the files of its model and its trackers by their paths."""

_ATTEMPTS = 3
"""Number of times that a trial's machine may die before the trial counts as failed."""


class RayEngine:
    """Runs trials on the cluster, and writes their files here."""

    def run(
        self, pending: Sequence[TrialSpec], context: EngineContext
    ) -> Iterator[tuple[TrialSpec, TrialMetrics | Failure]]:
        """Run trials as `Engine.run` says."""
        for spec, outcome, found in attempts(pending, context) if pending else ():
            try:
                with context.folder.trial_locked(spec):
                    ended = _keep(spec, outcome, found, context)
            except RunFolderError as error:  # another process runs the trial, and writes it
                ended = Failure(str(error))
            yield spec, ended


def _keep(
    spec: TrialSpec, outcome: TrialResult | Failure, found: dict[str, bytes], context: EngineContext
) -> TrialMetrics | Failure:
    """Write the files of a trial, those of its model and its trackers included."""
    folder = context.folder
    with folder.model_folder(spec) as save_to:
        places = {"model": save_to, "trackers": folder.trial_folder(spec) / "trackers"}
        for name, content in found.items():
            kind, _, inside = name.partition("/")
            if place := places[kind]:
                file = place / inside
                with files.storage_errors(file, len(content)):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
        return trial.write(spec, outcome, context, save_to)


def attempts(
    pending: Sequence[TrialSpec], context: EngineContext
) -> Iterator[tuple[TrialSpec, TrialResult | Failure, dict[str, bytes]]]:
    """Run trials as tasks of a Ray cluster, and yield their outcomes and files as they complete.

    What all of them need travels once, through Ray's object store; the workers share no disk with
    this machine. A trial whose machine dies is run again elsewhere. Raises UnavailableError where
    Ray is not installed, the cluster cannot be reached, or none of its machines is large enough.
    """
    engine = context.config
    with _cluster():
        cpus = engine.cpus_per_trial or torch.get_num_threads()
        _check_room(cpus, engine.gpus_per_trial)
        common = _Common(context.splits, context.data, cpus, engine.gpus_per_trial)
        at_once = engine.max_concurrent or len(pending)
        yield from _Driver(pending, common, at_once, context.progress, context.on_retry).run()


@dataclass(frozen=True)
class _Common:
    """What every trial needs."""

    splits: Splits
    data: DataSummary
    cpus: int
    gpus: float
    version: str = __version__


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
        _knock(address)
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  Ray raises many kinds
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
        reason = str(error).strip().splitlines()[0]
        raise UnavailableError(
            f"--engine ray: cannot reach {where}: {reason}\n"
            "`ray status` shows a cluster; without RAY_ADDRESS one is started here"
        ) from None
    signal.signal(signal.SIGTERM, ours)  # Ray replaces it
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError where nothing answers at `HOST:PORT`; Ray would try for minutes."""
    if address and (found := re.fullmatch(r"([^/]+):(\d+)", address)):
        socket.create_connection((found[1], int(found[2])), timeout=10).close()


def _check_room(cpus: int, gpus: float) -> None:
    """Raise UnavailableError where no machine is large enough: a trial would wait forever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    there = ", ".join(
        dict.fromkeys(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
    )
    raise UnavailableError(
        f"--engine ray: a trial takes {cpus} CPUs and {gpus:g} GPUs, and no machine of the cluster"
        f" has as many ({there}); set engine.cpus_per_trial and engine.gpus_per_trial"
    )


@dataclass
class _Driver:
    """Submits trials and collects their outcomes."""

    pending: Sequence[TrialSpec]
    common: _Common
    at_once: int
    progress: Progress
    died: Callable[[TrialSpec, str], None]
    _deaths: dict[str, int] = field(default_factory=dict, init=False)

    def run(self) -> Iterator[tuple[TrialSpec, TrialResult | Failure, dict[str, bytes]]]:
        """Keep up to `at_once` trials running."""
        import ray

        remote = ray.remote(num_cpus=self.common.cpus, num_gpus=self.common.gpus, max_retries=0)(
            _trial
        )
        common = ray.put(self.common)
        waiting, running = list(reversed(self.pending)), dict[Any, TrialSpec]()
        with self.progress.task("trials on Ray", len(self.pending)) as task:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    spec = waiting.pop()
                    running[remote.remote(common, spec)] = spec
                ended, _ = ray.wait(list(running), timeout=0.5)
                if interrupts.requested():
                    raise KeyboardInterrupt
                for reference in ended:
                    spec = running.pop(reference)
                    if (outcome := self._outcome(reference, spec)) is None:
                        waiting.append(spec)
                        continue
                    task.advance(1)
                    yield spec, *outcome

    def _outcome(self, reference: Any, spec: TrialSpec) -> Returned | None:
        """Return the outcome of a trial, or None where it is to be run again."""
        import ray
        from ray import exceptions

        try:
            outcome: Returned = ray.get(reference)
        except exceptions.RayTaskError as error:
            return Failure(_reason(error), str(error)), {}
        except exceptions.RayError as error:  # of its process or machine
            deaths = self._deaths[spec.title] = self._deaths.get(spec.title, 0) + 1
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if deaths == _ATTEMPTS:
                message = f"its process or machine died {deaths} times: {reason}"
                return Failure(message, str(error)), {}
            self.died(spec, reason)
            return None
        return outcome


def _reason(error: Exception) -> str:
    """Return in one line why a worker could not run the trial at all."""
    text = str(error)
    if missing := re.search(r"No module named '([^'.]+)", text):
        return (
            f"a machine of the cluster has no module {missing[1]}: there,"
            f" pip install 'tgsent[ray]=={__version__}'"
        )
    return text.strip().splitlines()[-1]


def _trial(common: _Common, spec: TrialSpec) -> Returned:
    """Run a trial on whatever machine this is."""
    if common.gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide those that it has not assigned
    if common.version != __version__:
        return Failure(f"a machine has tgsent {__version__}, and the run {common.version}"), {}
    use_cores(common.cpus)
    with tempfile.TemporaryDirectory(prefix="tgsent-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        save_to = place / "model" if spec.save_model else None
        if save_to is not None:
            save_to.mkdir()
        try:
            outcome = _outcome(common, spec, TrialFolders(save_to, trackers=place / "trackers"))
        except TgsentError as error:  # of this machine; others may not have it
            return Failure(f"on {socket.gethostname()}: {error}"), {}
        found = {
            str(file.relative_to(place)): file.read_bytes()
            for file in place.rglob("*")
            if file.is_file()
        }
    return outcome, found


def _outcome(common: _Common, spec: TrialSpec, folders: TrialFolders) -> TrialResult | Failure:
    split = common.splits[spec.trial - 1]
    try:
        done = backend_of(spec).run(spec, split, Quiet(), folders)
        return trial.result(spec, split, done, folders, common.data)
    except Exception as error:  # noqa: BLE001  returned, or raised again there
        return trial.failure(spec, error)
