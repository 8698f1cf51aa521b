"""Train and predict with the package SimpleT5; `package.py` runs this in its environment.

Nothing of tgsent can be imported here. The working folder is temporary: it holds `job.json` and
the folder `model`; `results.json` and all that the libraries write go there. Standard output
carries one JSON document per event; standard input only stays open.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the job, carry it out, and write its results."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the libraries print too

    def tell(event: str, **more: Any) -> None:
        events.write(json.dumps({"event": event, **more}) + "\n")
        events.flush()

    threading.Thread(target=end_with_parent, args=(Path.cwd(),), daemon=True).start()
    job = json.loads(Path("job.json").read_bytes())

    import torch

    use_gpu = job["device"] == "cuda" or (job["device"] == "auto" and torch.cuda.is_available())
    if use_gpu and not torch.cuda.is_available():
        tell("unavailable", reason="the environment of the package simplet5 finds no cuda device")
        return
    results = do(job, use_gpu=use_gpu, tell=tell)
    Path("results.json").write_text(json.dumps(results), "utf-8")


def end_with_parent(folder: Path) -> None:
    """Wait for the parent process to end; then remove the working folder and end this process."""
    while os.read(0, 1024):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def do(job: dict[str, Any], *, use_gpu: bool, tell: Any) -> dict[str, Any]:
    """Train, load the saved model and predict, as the package documents it."""
    import pandas as pd
    import pytorch_lightning as pl
    import torch
    from simplet5 import SimpleT5, simplet5

    # the package takes no callbacks, so its progress bar is replaced
    simplet5.TQDMProgressBar = progress_bar(tell)
    pl.seed_everything(job["seed"], workers=True)  # the package has just set 42
    t5 = SimpleT5()
    t5.from_pretrained(model_type="t5", model_name="model")
    train = pd.DataFrame(job["train"])
    check(t5, job)
    tell("loaded")
    lengths = token_counts(t5, job["train"]["source_text"])
    lost = [length - job["source_max_tokens"] for length in lengths]

    pl.seed_everything(job["seed"], workers=True)
    started = time.perf_counter()
    t5.train(
        train_df=train,
        # required by the package; nothing is selected by the loss on these training texts
        eval_df=train.head(job["batch_size"]),
        source_max_token_len=job["source_max_tokens"],
        target_max_token_len=job["target_max_tokens"],
        batch_size=job["batch_size"],
        max_epochs=job["epochs"],
        use_gpu=use_gpu,
        outputdir="outputs",
        logger=False,
        # in this process: more processes cost more than they save with short texts
        dataloader_num_workers=0,
        save_only_last_epoch=True,
    )
    train_seconds = time.perf_counter() - started

    (saved,) = Path("outputs").iterdir()
    t5.load_model("t5", str(saved), use_gpu=use_gpu)
    started = time.perf_counter()
    return {
        "generated": list(predictions(t5, job, tell)),
        "train_seconds": train_seconds,
        "eval_seconds": time.perf_counter() - started,
        "truncated": sum(tokens > 0 for tokens in lost),  # `predict` truncates nothing
        "truncated_tokens": sum(tokens for tokens in lost if tokens > 0),
        "parameters": t5.model.num_parameters(),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if use_gpu else peak_memory(),
        "device": "cuda" if use_gpu else "cpu",
        "model_folder": str(saved),
    }


def predictions(t5: Any, job: dict[str, Any], tell: Any) -> Iterator[str]:
    """Yield what the model generates for each test text."""
    for source in job["test"]:
        (generated,) = t5.predict(
            source,
            max_length=job["target_max_tokens"],
            num_beams=job["num_beams"],
            repetition_penalty=job["repetition_penalty"],
        )
        tell("answer")
        yield generated


def check(t5: Any, job: dict[str, Any]) -> None:
    """Raise ValueError for settings that the package would accept and use wrongly."""
    if len(t5.tokenizer) > t5.model.get_input_embeddings().num_embeddings:
        raise ValueError("the tokenizer has more tokens than the model has embeddings")
    # generation counts the decoder's start token
    needed = 1 + max(token_counts(t5, sorted(set(job["train"]["target_text"]))))
    if needed > job["target_max_tokens"]:
        raise ValueError(
            f"training.simplet5.target_max_tokens: {job['target_max_tokens']} is too few, the"
            f" longest label takes {needed}"
        )


def token_counts(t5: Any, texts: list[str]) -> list[int]:
    """Count the tokens of each text, the EOS token included."""
    return [len(ids) for ids in t5.tokenizer(texts, verbose=False)["input_ids"]]


def progress_bar(tell: Any) -> type:
    """Return a progress bar class for Lightning that reports every step."""
    from pytorch_lightning.callbacks import ProgressBarBase

    class Bar(ProgressBarBase):  # type: ignore[misc]  # of a library that is not there for mypy
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
        ) -> None:
            del trainer, module, index
            tell("step", loss=outputs["loss"].item(), examples=len(batch["labels"]))

        def disable(self) -> None:
            pass

    return Bar


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage includes the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
