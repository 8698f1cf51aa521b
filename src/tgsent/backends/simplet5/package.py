"""T5 with the package SimpleT5, which trains and predicts in a process of its own.

The package needs an older transformers than tgsent. So the interpreter of another environment runs
`worker.py`: it reads the job from a file, and reports steps, answers and results on a pipe.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

from tgsent.backends import Backend, TrialFolders
from tgsent.backends.native import Native, illegible, load, save
from tgsent.backends.simplet5 import environment
from tgsent.config import SIMPLET5_LEARNING_RATE, TrainingConfig, TrialSpec
from tgsent.errors import ConfigError, TrialError, UnavailableError
from tgsent.modeling import hub, loading
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import parse, render_prompt, render_target
from tgsent.records import LogRow, Outcome, Prediction, Progress, Split

_WORKER = Path(__file__).with_name("worker.py")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model",
)  # fmt: skip


class SimpleT5(Backend):
    """Trains and evaluates with the package SimpleT5, in the environment made for it."""

    def settings(self, spec: TrialSpec) -> TrainingConfig:
        """Return the settings with those that are fixed in the package instead of `auto`."""
        fixed = {
            "learning_rate": SIMPLET5_LEARNING_RATE, "warmup_steps": 0, "max_grad_norm": None,
            "padding": "max_tokens", "precision": "fp32",
        }  # fmt: skip
        return spec.training.model_copy(update=fixed)

    def check_installed(self, spec: TrialSpec) -> None:  # noqa: ARG002  the same for all trials
        """Raise UnavailableError where the environment is missing or broken."""
        environment.find()

    def check(
        self, spec: TrialSpec, *, here: bool = True, loaded: LoadedModel | None = None
    ) -> tuple[str, ...]:
        """Check the model as `Backend.check` says."""
        if (kind := loading.model_type(spec.model)) != "t5":
            raise ConfigError(
                f"training.backend: the package SimpleT5 trains T5, and {spec.model} is a model of"
                f' type "{kind}"; train it with backend: native'
            )
        return Native().check(spec, here=here, loaded=loaded)

    def run(
        self, spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders
    ) -> Outcome:
        """Train and evaluate as `Backend.run` says.

        Raises UnavailableError where package or device are missing, TrialError where the package
        fails or its loss is not finite.
        """
        python, versions = environment.find()
        sources = [render_prompt(spec.prompt, example.text) for example in split.train]
        targets = [render_target(spec.prompt, example.label) for example in split.train]
        job = {
            "seed": spec.seed,
            "device": spec.training.device,
            "train": {"source_text": sources, "target_text": targets},
            "test": [render_prompt(spec.prompt, example.text) for example in split.tested],
            "epochs": spec.training.epochs,
            "batch_size": spec.training.batch_size,
            "source_max_tokens": spec.training.max_tokens,
            **spec.training.simplet5.model_dump(),
        }
        with tempfile.TemporaryDirectory(prefix="tgsent-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            start = _start(spec, split, folder / "start", progress)
            _lend_model(start, folder / "model")
            (folder / "job.json").write_text(json.dumps(job), "utf-8")
            with _running(python, folder, spec.title) as worker:
                log = _follow(worker, spec, split, progress)
                results = worker.next()
            if folders.model is not None:
                _keep_model(folder, start, folders.model)
        loaded = loading.describe(spec, split.train)  # the package uses the same tokenizer
        return Outcome(
            predictions=tuple(
                Prediction(
                    text=example.text,
                    label=example.label,
                    predicted=parse(spec.prompt, spec.labels, generated),
                    generated=generated,
                )
                for example, generated in zip(split.tested, results.generated, strict=True)
            ),
            log=log,
            steps=int(log[-1]["step"]),
            learning_rate=SIMPLET5_LEARNING_RATE,
            **results.measured,
            precision="fp32",
            padding="max_tokens",
            versions=versions,
            example=(sources[0], targets[0]),
            warnings=illegible(loaded, loading.prompt_encoder(loaded, spec), split),
            commit=loaded.commit,
        )


def _start(spec: TrialSpec, split: Split, folder: Path, progress: Progress) -> Path:
    """Return the folder of the model that training starts from; `folder` if it is built here."""
    if spec.training.init == "pretrained":
        return hub.fetch(spec.model, weights=True).folder
    save(load(spec, split, progress), folder)
    return folder


def _follow(
    worker: _Worker, spec: TrialSpec, split: Split, progress: Progress
) -> tuple[LogRow, ...]:
    """Report progress as our own loop does; return the rows of the log."""
    with progress.task(f"{spec.title}, loading", 1) as task:
        worker.next()
        task.advance(1)
    per_epoch, epochs = math.ceil(len(split.train) / spec.training.batch_size), spec.training.epochs
    steps = per_epoch * epochs
    log = []
    for epoch in range(1, epochs + 1):
        started, losses = time.perf_counter(), []
        with progress.task(f"{spec.title}, epoch {epoch}/{epochs}", len(split.train)) as task:
            for step in range((epoch - 1) * per_epoch + 1, epoch * per_epoch + 1):
                told = worker.next()
                if not math.isfinite(told.loss):
                    raise TrialError(
                        f"{spec.title}: the loss is {told.loss} at step {step} of {steps};"
                        " the package has no setting against that: take backend: native"
                    )
                losses.append(told.loss)
                if step % max(1, steps // 100) == 0 or step == steps:
                    row = {"step": step, "epoch": epoch, "loss": told.loss}
                    log.append({**row, "learning_rate": SIMPLET5_LEARNING_RATE})
                task.advance(told.examples, f"loss {told.loss:.3f}")
        rate = len(split.train) / (time.perf_counter() - started)
        progress.line(
            f"{spec.title}: epoch {epoch}/{epochs}, mean loss {fmean(losses):.4f},"
            f" {rate:.0f} examples/s"
        )
    with progress.task(f"{spec.title}, evaluation", len(split.tested)) as task:
        for _ in split.tested:
            worker.next()
            task.advance(1)
    return tuple(log)


@dataclass
class _Worker:
    """The worker process, and its events."""

    process: subprocess.Popen[str]
    folder: Path
    title: str

    def next(self) -> SimpleNamespace:
        """Wait for the next event and return what it tells.

        Raises TrialError where the worker has ended, UnavailableError where it has no such device.
        """
        assert self.process.stdout is not None  # noqa: S101  it was asked for
        line = self.process.stdout.readline()
        if line.endswith("\n"):  # else the worker has ended, perhaps while it wrote
            told = SimpleNamespace(**json.loads(line))
            if told.event == "unavailable":
                raise UnavailableError(
                    "training.device: the environment of the package simplet5 finds no cuda device"
                )
            return told
        code = self.process.wait()
        said = (self.folder / "stderr.txt").read_text("utf-8", "replace")
        last = said.strip().rpartition("\n")[2].strip()[:300] or "it said nothing"
        raise TrialError(
            f"{self.title}: the package simplet5 failed (exit code {code}): {last}\n"
            "all that it said is in error.txt of this trial",
            details=said,
        )


@contextlib.contextmanager
def _running(python: Path, folder: Path, title: str) -> Iterator[_Worker]:
    """Run the worker in the context; kill it and its children at the end.

    It ends by itself when its standard input closes, also where this process is killed.
    """
    with (
        (folder / "stderr.txt").open("wb") as stderr,
        subprocess.Popen(  # noqa: S603  our own script
            # isolated: our PYTHONPATH and the folder of the script hold other packages
            [str(python), "-I", str(_WORKER)],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            start_new_session=True,
        ) as process,
    ):
        try:
            yield _Worker(process, folder, title)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _lend_model(start: Path, folder: Path) -> None:
    """Link the files of a model into `folder`; write its tokenizer's settings as transformers 4."""
    folder.mkdir()
    for path in start.resolve().iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_bytes()) if file.is_file() else {}
    special = settings.pop("extra_special_tokens", [])
    if "backend" not in settings or not isinstance(special, list):  # transformers 5 writes both
        return
    for key in ("backend", "is_local"):
        settings.pop(key, None)
    settings["additional_special_tokens"] = special
    settings["tokenizer_class"] = "T5Tokenizer"
    # T5's class adds 100 tokens of its own, beyond the model's embeddings, unless told otherwise
    settings["extra_ids"] = sum("<extra_id_" in token for token in special)
    file.unlink()  # the link
    file.write_text(json.dumps(settings), "utf-8")


def _keep_model(folder: Path, start: Path, save_to: Path) -> None:
    """Copy the model that the package saved, with the tokenizer files that training started from.

    Training does not change the tokenizer, but transformers 5 misreads some tokenizers that
    transformers 4 has saved (those of tiny models).
    """
    (trained,) = (folder / "outputs").iterdir()
    shutil.copytree(
        trained, save_to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_TOKENIZER_FILES)
    )
    for name in _TOKENIZER_FILES:
        if (start / name).is_file():
            shutil.copyfile(start / name, save_to / name)
