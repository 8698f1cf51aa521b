"""T5 with the package SimpleT5, which trains and predicts in a process of its own.

The package needs an older transformers than tgsent. So the interpreter of another environment runs
`worker.py`: it reads the job from a file, reports steps and answers on a pipe, and writes the
results to a file.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tgsent.backends import TrialFolders, models
from tgsent.backends.simplet5 import environment
from tgsent.config import SIMPLET5_LEARNING_RATE, TrainingConfig, TrialSpec
from tgsent.errors import ConfigError, TrialError, UnavailableError
from tgsent.modeling import hub, loading
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import parse, render_prompt, render_target
from tgsent.records import Outcome, Prediction, Progress, Split

_WORKER = Path(__file__).with_name("worker.py")
_SECONDS_TO_END = 5.0
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model",
)  # fmt: skip


class SimpleT5:
    """Trains and evaluates with the package SimpleT5, in the environment made for it."""

    in_our_loop = False

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
                f' the kind "{kind}"; train it with backend: native'
            )
        return models.check(spec, here=here, loaded=loaded)

    def run(
        self, spec: TrialSpec, split: Split, progress: Progress, folders: TrialFolders
    ) -> Outcome:
        """Train and evaluate as `Backend.run` says.

        Raises UnavailableError where package or device are missing, TrialError where the package
        fails or its loss is not finite.
        """
        python, versions = environment.find()
        with tempfile.TemporaryDirectory(prefix="tgsent-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            start = _start(spec, split, folder / "start", progress)
            _lend_model(start, folder / "model")
            (folder / "job.json").write_text(json.dumps(_job(spec, split)), "utf-8")
            with _running(python, folder) as process:
                worker = _Worker(process, folder, spec.title)
                log = _follow(worker, spec, split, progress)
                results = worker.results()
            if folders.model is not None:
                _keep_model(folder / results["model_folder"], start, folders.model)
        loaded = loading.describe(spec, split.train)  # the package uses the same tokenizer
        warnings = models.illegible(loaded, loading.prompt_encoder(loaded, spec), split)
        outcome = _outcome(spec, split, log, results, versions)
        return replace(outcome, warnings=warnings, commit=loaded.commit)


def _start(spec: TrialSpec, split: Split, folder: Path, progress: Progress) -> Path:
    """Return the folder of the model that training starts from; `folder` if it is built here."""
    if spec.training.init == "pretrained":
        return hub.fetch(spec.model, weights=True).folder
    loaded = models.load(spec, split, progress)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def _outcome(
    spec: TrialSpec,
    split: Split,
    log: tuple[dict[str, Any], ...],
    results: dict[str, Any],
    versions: dict[str, str],
) -> Outcome:
    measured = (
        "train_seconds", "eval_seconds", "truncated", "truncated_tokens", "peak_memory_bytes",
        "parameters", "device",
    )  # fmt: skip
    return Outcome(
        predictions=tuple(
            Prediction(
                text=example.text,
                label=example.label,
                predicted=parse(spec.prompt, spec.labels, generated),
                generated=generated,
            )
            for example, generated in zip(split.tested, results["generated"], strict=True)
        ),
        log=log,
        steps=_steps_per_epoch(spec, split) * spec.training.epochs,
        learning_rate=SIMPLET5_LEARNING_RATE,
        **{key: results[key] for key in measured},
        padding="max_tokens",
        trainable_parameters=results["parameters"],
        precision="fp32",
        versions=versions,
        example=_example(spec, split),
    )


def _example(spec: TrialSpec, split: Split) -> tuple[str, str]:
    text, label = split.train[0].text, split.train[0].label
    return render_prompt(spec.prompt, text), render_target(spec.prompt, label)


def _job(spec: TrialSpec, split: Split) -> dict[str, Any]:
    training = spec.training
    return {
        "seed": spec.seed,
        "device": training.device,
        "train": {
            "source_text": [render_prompt(spec.prompt, example.text) for example in split.train],
            "target_text": [render_target(spec.prompt, example.label) for example in split.train],
        },
        "test": [render_prompt(spec.prompt, example.text) for example in split.tested],
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "source_max_tokens": training.max_tokens,
        **training.simplet5.model_dump(),
    }


def _steps_per_epoch(spec: TrialSpec, split: Split) -> int:
    return math.ceil(len(split.train) / spec.training.batch_size)


def _follow(
    worker: _Worker, spec: TrialSpec, split: Split, progress: Progress
) -> tuple[dict[str, Any], ...]:
    """Report progress as our own loop does; return the rows of the log."""
    with progress.task(f"{spec.title}, loading", 1) as task:
        worker.next("loaded")
        task.advance(1)
    per_epoch, epochs = _steps_per_epoch(spec, split), spec.training.epochs
    log_every = max(1, per_epoch * epochs // 100)
    log = []
    for epoch in range(1, epochs + 1):
        started, losses = time.perf_counter(), 0.0
        with progress.task(f"{spec.title}, epoch {epoch}/{epochs}", len(split.train)) as task:
            for step in range((epoch - 1) * per_epoch + 1, epoch * per_epoch + 1):
                told = worker.next("step")
                loss = float(told["loss"])
                if not math.isfinite(loss):
                    raise TrialError(
                        f"{spec.title}: the loss is {loss} at step {step} of {per_epoch * epochs};"
                        " the package has no setting against that: take backend: native"
                    )
                losses += loss
                if step % log_every == 0 or step == per_epoch * epochs:
                    row = {"step": step, "epoch": epoch, "loss": loss}
                    log.append({**row, "learning_rate": SIMPLET5_LEARNING_RATE})
                task.advance(told["examples"], f"loss {loss:.3f}")
        rate = len(split.train) / (time.perf_counter() - started)
        progress.line(
            f"{spec.title}: epoch {epoch}/{epochs}, mean loss {losses / per_epoch:.4f},"
            f" {rate:.0f} examples/s"
        )
    with progress.task(f"{spec.title}, evaluation", len(split.tested)) as task:
        for _ in split.tested:
            worker.next("answer")
            task.advance(1)
    return tuple(log)


@dataclass
class _Worker:
    """The worker process, and its events."""

    process: subprocess.Popen[str]
    folder: Path
    title: str

    def next(self, event: str) -> dict[str, Any]:
        """Wait for the next event, which must be `event`, and return it."""
        assert self.process.stdout is not None  # noqa: S101  it was asked for
        line = self.process.stdout.readline()
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._failure() from None
        if told["event"] == "unavailable":
            raise UnavailableError(f"training.device: {told['reason']}")
        if told["event"] != event:
            raise TrialError(
                f"{self.title}: the package reported {told['event']} instead of {event}"
            )
        return told

    def results(self) -> dict[str, Any]:
        """Wait for the worker to end; return its results."""
        if self.process.wait() != 0:
            raise self._failure()
        results: dict[str, Any] = json.loads((self.folder / "results.json").read_bytes())
        return results

    def _failure(self) -> TrialError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_SECONDS_TO_END)
        said = (self.folder / "stderr.txt").read_text("utf-8", "replace")
        lines = [line.strip()[:300] for line in said.splitlines() if line.strip()]
        return TrialError(
            f"{self.title}: the package simplet5 failed (exit code {self.process.returncode}):"
            f" {lines[-1] if lines else 'it said nothing'}\n"
            "all that it said is in error.txt of this trial",
            details=said,
        )


@contextlib.contextmanager
def _running(python: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the worker in the context; end it and its children at the end.

    It ends by itself when its standard input closes, also where this process is killed.
    """
    variables = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    with (folder / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603  our own script
            # isolated: our PYTHONPATH and the folder of the script hold other packages
            [str(python), "-I", str(_WORKER)],
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with process:  # closes the pipes and waits
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the worker and its children, with SIGTERM first and SIGKILL if that does not help."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)


def _lend_model(start: Path, folder: Path) -> None:
    """Link the files of a model into `folder`; write its tokenizer's settings as transformers 4."""
    folder.mkdir()
    for file in start.resolve().iterdir():
        if file.is_file() and file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file.resolve())
    settings = start / "tokenizer_config.json"
    if settings.is_file():
        known = _in_older_words(json.loads(settings.read_bytes()))
        (folder / settings.name).write_text(json.dumps(known, indent=2) + "\n", "utf-8")


def _in_older_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's settings as transformers 4 writes them."""
    if not isinstance(settings.get("extra_special_tokens", []), list) or "backend" not in settings:
        return settings
    special = settings.get("extra_special_tokens", [])
    # T5's class adds 100 tokens of its own, beyond the model's embeddings, unless told otherwise
    extra_ids = sum("<extra_id_" in token for token in special)
    dropped = {"extra_special_tokens", "backend", "is_local"}
    kept = {key: value for key, value in settings.items() if key not in dropped}
    return {
        **kept,
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": extra_ids,
        "additional_special_tokens": special,
    }


def _keep_model(trained: Path, start: Path, save_to: Path) -> None:
    """Copy the model that the package saved, with the tokenizer files that training started from.

    Training does not change the tokenizer, but transformers 5 misreads some tokenizers that
    transformers 4 has saved (those of tiny models).
    """
    shutil.copytree(
        trained, save_to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_TOKENIZER_FILES)
    )
    for name in _TOKENIZER_FILES:
        if (start / name).is_file():
            shutil.copyfile(start / name, save_to / name)
