"""The local engine: one trial after the other in this process, or shared by several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tgsent.backends import TrialFolders
from tgsent.backends.registry import backend_of
from tgsent.config import EngineConfig, TrialSpec
from tgsent.errors import DivergedError
from tgsent.experiment import trial
from tgsent.experiment.engine import EngineContext, use_cores
from tgsent.progress import Quiet
from tgsent.records import Failure, Split
from tgsent.runs.folder import RunFolder
from tgsent.runs.metrics import TrialMetrics, TrialResult
from tgsent.training import distributed, interrupts, memory


class LocalEngine:
    """Runs trials here; of several processes, this is the main one, and the others `follow`."""

    def run(
        self, pending: Sequence[TrialSpec], context: EngineContext
    ) -> Iterator[tuple[TrialSpec, TrialMetrics | Failure]]:
        """Run trials as `Engine.run` says."""
        use_cores(context.config.cpus_per_trial)
        folder = context.folder
        outcome: TrialResult | Failure
        for spec in pending:
            if interrupts.requested():
                raise KeyboardInterrupt
            split, backend = context.splits[spec.trial - 1], backend_of(spec)
            with folder.trial_locked(spec):
                ended: TrialMetrics | Failure | None
                ended = folder.finished(spec, split.summary)  # by another process
                if ended is None:
                    with _places(spec, folder) as places:
                        with _shared(spec, split):
                            try:
                                done = backend.run(spec, split, context.progress, places)
                                outcome = trial.result(spec, split, done, places, context.data)
                            except Exception as error:  # noqa: BLE001  the other trials must go on
                                outcome = trial.failure(spec, error)
                        ended = trial.write(spec, outcome, context, places.model)
            yield spec, ended
            memory.release()  # before the next model is loaded


@contextlib.contextmanager
def _places(spec: TrialSpec, folder: RunFolder) -> Iterator[TrialFolders]:
    """Remove what a killed run left of a trial, and yield the folders that it may write to."""
    folder.tidy(spec, finished=False)
    with folder.model_folder(spec) as model:
        place = folder.trial_folder(spec)
        yield TrialFolders(model, place / "checkpoint", place / "trackers")


def _shared(spec: TrialSpec, split: Split) -> contextlib.AbstractContextManager[None]:
    """Share a trial with the other processes, where its backend can use them."""
    if backend_of(spec).in_our_loop:
        return distributed.working_on((spec, split))
    return contextlib.nullcontext()


def follow(config: EngineConfig) -> None:
    """Do this process's share of every trial that the main process runs, until it has no more."""
    use_cores(config.cpus_per_trial)
    nothing: tuple[TrialSpec, Split] | None = None
    while (work := distributed.broadcast(nothing)) is not None:
        spec, split = work
        with contextlib.suppress(DivergedError):  # the main process sees it too, and records it
            backend_of(spec).run(spec, split, Quiet(), TrialFolders())
