"""Train and predict with the package SimpleT5; `package.py` runs this in its environment.

Nothing of tgsent can be imported here. The working folder is temporary: it holds `job.json` and
the folder `model`, and all that the libraries write goes there. Standard output carries one JSON
document per event, the results last; standard input only stays open.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simplet5 import SimpleT5
    from torch import Tensor

Tell = Callable[..., None]


def main() -> None:
    """Read the job, carry it out, and report its results."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # the libraries print too

    def tell(event: str, **more: object) -> None:
        events.write(json.dumps({"event": event, **more}) + "\n")

    threading.Thread(target=end_with_parent, args=(Path.cwd(),), daemon=True).start()
    job = SimpleNamespace(**json.loads(Path("job.json").read_bytes()))

    import torch

    if job.device == "cuda" and not torch.cuda.is_available():
        tell("unavailable")
    else:
        do(job, tell, use_gpu=job.device != "cpu" and torch.cuda.is_available())


def end_with_parent(folder: Path) -> None:
    """Wait for the parent process to end; then remove the working folder and end this process."""
    while os.read(0, 1024):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def do(job: SimpleNamespace, tell: Tell, *, use_gpu: bool) -> None:
    """Train, load the saved model and predict, as the package documents it."""
    import pandas as pd
    import pytorch_lightning as pl
    import torch
    from simplet5 import SimpleT5, simplet5

    # the package takes no callbacks, so its progress bar is replaced
    simplet5.TQDMProgressBar = progress_bar(tell)
    pl.seed_everything(job.seed, workers=True)  # the package has just set 42
    t5 = SimpleT5()
    t5.from_pretrained(model_type="t5", model_name="model")
    train = pd.DataFrame(job.train)
    check_labels(t5, job)
    tell("loaded")
    lost = [max(0, n - job.source_max_tokens) for n in token_counts(t5, job.train["source_text"])]

    pl.seed_everything(job.seed, workers=True)
    started = time.perf_counter()
    t5.train(
        train_df=train,
        # required by the package; nothing is selected by the loss on these training texts
        eval_df=train.head(job.batch_size),
        source_max_token_len=job.source_max_tokens,
        target_max_token_len=job.target_max_tokens,
        batch_size=job.batch_size,
        max_epochs=job.epochs,
        use_gpu=use_gpu,
        outputdir="outputs",
        logger=False,
        # in this process: more processes cost more than they save with short texts
        dataloader_num_workers=0,
        save_only_last_epoch=True,
    )
    trained = time.perf_counter()
    (saved,) = Path("outputs").iterdir()
    t5.load_model("t5", str(saved), use_gpu=use_gpu)
    loaded = time.perf_counter()
    generated = []
    for source in job.test:
        generated += t5.predict(
            source,
            max_length=job.target_max_tokens,
            num_beams=job.num_beams,
            repetition_penalty=job.repetition_penalty,
        )
        tell("answer")
    measured = {
        "train_seconds": trained - started,
        "eval_seconds": time.perf_counter() - loaded,
        "truncated": sum(tokens > 0 for tokens in lost),  # `predict` truncates nothing
        "truncated_tokens": sum(lost),
        "parameters": t5.model.num_parameters(),
        "trainable_parameters": t5.model.num_parameters(),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if use_gpu else peak_memory(),
        "device": "cuda" if use_gpu else "cpu",
    }
    tell("results", generated=generated, measured=measured)


def check_labels(t5: SimpleT5, job: SimpleNamespace) -> None:
    """Raise ValueError for labels that the package would truncate when it predicts."""
    longest = max(token_counts(t5, job.train["target_text"]))
    if longest >= job.target_max_tokens:  # generation counts the decoder's start token
        raise ValueError(
            f"training.simplet5.target_max_tokens: {job.target_max_tokens} is too few, the"
            f" longest label takes {longest + 1}"
        )


def token_counts(t5: SimpleT5, texts: Sequence[str]) -> list[int]:
    """Count the tokens of each text, the EOS token included."""
    return [len(ids) for ids in t5.tokenizer(texts, verbose=False)["input_ids"]]


def progress_bar(tell: Tell) -> type:
    """Return a progress bar class for Lightning that reports every step."""
    from pytorch_lightning.callbacks import ProgressBarBase

    class Bar(ProgressBarBase):  # type: ignore[misc]  # of a library that is not there for mypy
        def __init__(self, **_: object) -> None:
            super().__init__()

        def on_train_batch_end(
            self,
            _trainer: object,
            _module: object,
            outputs: Mapping[str, Tensor],
            batch: Mapping[str, Tensor],
            _index: int,
        ) -> None:
            tell("step", loss=outputs["loss"].item(), examples=len(batch["labels"]))

    return Bar


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage includes the parent process
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main()
