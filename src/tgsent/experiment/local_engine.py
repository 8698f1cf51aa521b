"""The local engine: one trial after the other in this process, or shared by several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress

from accelerate.utils import release_memory

from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import EngineConfig, TrialSpec
from tgsent.errors import DivergedError
from tgsent.experiment import trial
from tgsent.experiment.execute import Ended, PendingRun
from tgsent.progress import Quiet
from tgsent.records import Failure, Split
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.training import distributed, interrupts


class LocalEngine:
    """Runs trials here; of several processes, this is the main one, and the others `follow`."""

    def run(self, run: PendingRun) -> Iterator[Ended]:
        """Run trials as `Engine.run` says."""
        trial.use_cores(run.config.engine.cpus_per_trial)
        folder, progress = run.folder, run.context.progress
        outcome: TrialResult | Failure
        ended: TrialMetrics | Failure | None
        for spec in run.unfinished:
            if interrupts.requested():
                raise KeyboardInterrupt
            split, backend = run.splits[spec.trial - 1], backend_of(spec)
            shared = distributed.working_on((spec, split)) if backend.in_our_loop else nullcontext()
            with folder.trial_locked(spec):
                ended = folder.finished(spec, split.summary)  # by another process
                if ended is None:
                    folder.tidy(spec, finished=False)
                    with folder.model_folder(spec) as model:
                        own = folder.trial_folder(spec)
                        places = TrialFolders(model, own / "checkpoint", own / "trackers")
                        with shared:
                            try:
                                done = backend.run(spec, split, progress, places)
                                outcome = trial.result(spec, split, done)
                            except Exception as error:  # noqa: BLE001  the other trials must go on
                                outcome = trial.failure(spec, error)
                        ended = trial.write(spec, outcome, run, model)
            yield spec, ended
            release_memory()  # before the next model is loaded


def follow(config: EngineConfig) -> None:
    """Do this process's share of every trial that the main process runs, until it has no more."""
    trial.use_cores(config.cpus_per_trial)
    nothing: tuple[TrialSpec, Split] | None = None
    while (work := distributed.broadcast(nothing)) is not None:
        spec, split = work
        with suppress(DivergedError):  # the main process sees it too, and records it
            backend_of(spec).run(spec, split, Quiet(), TrialFolders())
