"""One measurement of `bench.py`: one contestant, in this process alone.

    python scripts/bench_contestants.py JOB.json RESULT.json

Training is two epochs over the same texts, and evaluation two passes; the first warms up (memory,
kernels, and every shape there is), the second is timed. Encoding for training is not timed, for
evaluation it is.

The work that the task needs, per tweet of P prompt tokens and T label tokens (the end token is one
of them), for a model whose matrices have M parameters without embeddings and head, and whose head
has H:

    training     6 * (M * (P + T - 1) + H * T)   floating-point operations
    evaluation   2 * (M * (P + T - 1) + H * T)

For an encoder and a decoder, M * (P + T - 1) is M_read * P + M_write * T, where M_read are the
encoder's matrices and those that make the decoder's keys and values of what the encoder gives. The
products of attention scores are not counted, which are few for short texts, nor is padding, nor the
head at positions that no label is read from: whoever computes these has them as a loss.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    trainer_pt_utils,
)

from tgsent.backends import TrialFolders
from tgsent.backends.native import Native
from tgsent.backends.simplet5.package import SimpleT5
from tgsent.backends.simplet5.worker import peak_memory
from tgsent.config import DataConfig, EvaluationConfig, PromptConfig, TrainingConfig, TrialSpec
from tgsent.data.dataset import load_dataset
from tgsent.evaluation.generate import classify
from tgsent.experiment import plan
from tgsent.modeling import loading, speedups
from tgsent.modeling.loading import LoadedModel
from tgsent.modeling.prompts import render_prompt, render_target
from tgsent.progress import Quiet
from tgsent.records import Encoded, Example, Split
from tgsent.training import loop, memory, recipe

SAMPLE = 9_500
BATCH = 32
ARTICLE_BATCH = 2
SIMPLET5_BATCH = 8
MAX_TOKENS = 512
LEARNING_RATE = 3e-4

Result = dict[str, Any]


class Clock:
    """Notes when each piece of work began, advanced and ended; it stands in for a progress bar."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Clock]:
        """Time one piece of work; of an earlier one only epochs are remembered."""
        del total
        if "evaluation" in name:  # of a trial, which comes after the epochs
            yield Clock()
            return
        self.marks = []
        self.tick()
        yield self
        self.tick()

    def tick(self) -> None:
        """Note the time, when the device has done all that it was told."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.marks.append(time.perf_counter())

    def line(self, text: str) -> None:
        """Print nothing."""

    def advance(self, examples: int, note: str = "") -> None:
        """Note the time as it is: asking the device would slow it down."""
        del examples, note
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Seconds of the last piece of work."""
        return self.marks[-1] - self.marks[0]


class EpochClock(TrainerCallback):
    """The same for the trainers of Hugging Face."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin."""
        del args, state, control
        self.clock.marks = []
        self.clock.tick()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End."""
        del args, state, control
        self.clock.tick()


@dataclass
class Bench:
    """What all contestants share: texts, model, device and precision."""

    model: str
    init: str
    device: str
    data: str
    examples: int
    """Texts of the benchmark."""
    texts: int
    """The first so many of them are for this measurement."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))

    @functools.cached_property
    def sample(self) -> tuple[Example, ...]:
        """As many texts as the article trains on, or all where the file has fewer."""
        dataset = load_dataset(DataConfig(path=self.data, sample_size=None))
        examples = pd.Series(map(Example, dataset.texts, dataset.text_labels))
        return tuple(examples.sample(min(SAMPLE, len(examples)), random_state=1))

    @functools.cached_property
    def all_texts(self) -> tuple[Example, ...]:
        """The texts of the benchmark, in random order: some batches of the sample's.

        Who sorts the whole sample by length gets batches of one length. As many as there are to be
        are taken from there, evenly, so that who sorts these few texts gets no worse ones. The
        trainers of Hugging Face sort fewer than they would of many: see `group_as_for_many`.
        """
        loaded = loading.describe(self.spec(), self.sample)
        encoded = loading.prompt_encoder(loaded, self.spec()).encode_examples(self.sample)
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        full = len(by_length) // BATCH
        batches = [by_length[i * BATCH : (i + 1) * BATCH] for i in range(full)]
        wanted = self.examples // BATCH
        if wanted > full:
            sys.exit(f"--examples: {self.data} has no more than {full * BATCH}")
        taken = [batches[int((k + 0.5) * len(batches) / wanted)] for k in range(wanted)]
        chosen = [i for batch in taken for i in batch]
        random.Random(1).shuffle(chosen)
        return tuple(self.sample[i] for i in chosen)

    @property
    def chosen(self) -> tuple[Example, ...]:
        """The texts of this measurement."""
        return self.all_texts[: self.texts]

    @functools.cached_property
    def resolved_device(self) -> str:
        """The device in PyTorch's words."""
        return recipe.resolve_device(self.device)

    @functools.cached_property
    def precision(self) -> str:
        """The best precision: bf16 where the device computes it natively, else fp32."""
        return recipe.resolve_precision(TrainingConfig(), self.resolved_device)

    def spec(self, decoding: str = "free", **training: Any) -> TrialSpec:
        """Describe the trial."""
        recipe = {
            "init": self.init, "device": self.device, "epochs": 2, "batch_size": BATCH,
            "max_tokens": MAX_TOKENS,
        }  # fmt: skip
        return TrialSpec(
            model=self.model,
            name=self.model,
            trial=1,
            seed=1,
            labels=tuple(sorted({example.label for example in self.sample})),
            prompt=PromptConfig(),
            training=TrainingConfig.model_validate({**recipe, **training}),
            evaluation=EvaluationConfig.model_validate({"decoding": decoding}),
        )

    def split(self, train: Sequence[Example], test: Sequence[Example]) -> Split:
        """Put texts together as a trial wants them."""
        return Split(trial=1, seed=1, train=tuple(train), test=tuple(test), sha256="", overlap=0)

    def load(self, positions: int = MAX_TOKENS) -> LoadedModel:
        """Build the model with random weights, the same for all, on the CPU.

        A tiny one gets so many positions, and others must have them.
        """
        set_seed(1)
        loaded = loading.load(self.spec(max_tokens=positions), self.all_texts)
        loaded.tokenizer.padding_side = "right"  # for training by others; tgsent pads by itself
        return loaded

    def encoded(self, loaded: LoadedModel) -> list[Encoded]:
        """Return the texts of this measurement in tokens."""
        return loading.prompt_encoder(loaded, self.spec()).encode_examples(self.chosen)

    def prompt(self, loaded: LoadedModel, text: str) -> str:
        """Write the whole prompt of a text, its first token too."""
        return (loaded.tokenizer.bos_token or "") + render_prompt(self.spec().prompt, text)

    def result(self, seconds: float, precision: str, **more: Any) -> Result:
        """Put together what was measured in this process."""
        on_cuda = self.resolved_device == "cuda"
        return {
            "texts": len(self.chosen),
            "tweets_per_second": len(self.chosen) / seconds,
            "seconds": seconds,
            "precision": precision,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_cuda else peak_memory(),
            **more,
        }


def train_tgsent(bench: Bench, loss: str) -> Result:
    """Train by a trial of tgsent, as `tgsent run` does; a few texts are answered afterwards."""
    clock = Clock()
    split = bench.split(bench.chosen, bench.chosen[:2])
    outcome = Native().run(bench.spec(loss=loss), split, clock, TrialFolders())
    return bench.result(clock.seconds, outcome.precision)


def train_article(bench: Bench) -> Result:
    """Train by the article's recipe, written plainly.

    Two texts at a time, each padded to 512 tokens, the loss over everything, fp32.
    """
    clock, loaded = Clock(), bench.load()
    model = loaded.model.to(bench.resolved_device).train()
    width, pad = MAX_TOKENS, loaded.ids.pad
    rows = []
    for one in bench.encoded(loaded):
        ids = [*one.prompt, *one.target]
        padding = width - len(ids)
        rows.append(
            (torch.tensor(ids + [pad] * padding), torch.tensor([1] * len(ids) + [0] * padding))
        )
    batches = DataLoader(rows, batch_size=ARTICLE_BATCH, shuffle=True)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 100, 2 * len(batches))
    for _ in range(2):
        with clock.task("epoch", len(rows)):
            for input_ids, attention_mask in batches:
                input_ids = input_ids.to(model.device)  # noqa: PLW2901
                attention_mask = attention_mask.to(model.device)  # noqa: PLW2901
                loss = model(
                    input_ids=input_ids, attention_mask=attention_mask, labels=input_ids
                ).loss
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return bench.result(clock.seconds, "fp32")


def settings(bench: Bench, **more: Any) -> dict[str, Any]:
    """Return the arguments of Hugging Face's trainers: the fastest, with training alone."""
    return {
        "output_dir": str(bench.folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "group_by_length",
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "bf16": bench.precision == "bf16",
        "use_cpu": bench.resolved_device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        **more,
    }


def group_as_for_many() -> None:
    """Make Hugging Face's trainers sort 50 batches at a time, as they do with 6,400 texts or more.

    With fewer they sort a quarter of them at a time, which would be held against them here.
    """
    trainer_pt_utils.get_length_grouped_indices = functools.partial(
        trainer_pt_utils.get_length_grouped_indices, mega_batch_mult=50
    )


def train_hf(bench: Bench, *, labels_only: bool, keep_memory: bool = False) -> Result:
    """Train with `Trainer`: batches of one length, padded to their longest.

    The loss is over all tokens but the padding, as the stock collator for language models has it;
    with `labels_only` over the label and the end token, which the collator for given labels allows.
    With `keep_memory` the C library keeps freed memory, as it does for tgsent.
    """
    if keep_memory:
        memory.keep_freed_memory()
    group_as_for_many()
    clock, loaded = Clock(), bench.load()
    rows = []
    for one in bench.encoded(loaded):
        row = {"input_ids": [*one.prompt, *one.target]}
        if labels_only:
            row["labels"] = [-100] * len(one.prompt) + list(one.target)
        rows.append(row)
    collator: Any = (
        DataCollatorForSeq2Seq(loaded.tokenizer)
        if labels_only
        else DataCollatorForLanguageModeling(loaded.tokenizer, mlm=False)
    )
    Trainer(
        model=loaded.model,
        args=TrainingArguments(**settings(bench)),
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=collator,
        processing_class=loaded.tokenizer,
        callbacks=[EpochClock(clock)],
    ).train()
    return bench.result(clock.seconds, bench.precision)


def train_hf_seq2seq(bench: Bench, *, keep_memory: bool = False) -> Result:
    """Train with `Seq2SeqTrainer`: batches of one length, padded to their longest."""
    if keep_memory:
        memory.keep_freed_memory()
    group_as_for_many()
    clock, loaded = Clock(), bench.load()
    rows = [
        {"input_ids": list(one.prompt), "labels": list(one.target)} for one in bench.encoded(loaded)
    ]
    Seq2SeqTrainer(
        model=loaded.model,
        args=Seq2SeqTrainingArguments(**settings(bench)),
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(loaded.tokenizer, loaded.model),
        processing_class=loaded.tokenizer,
        callbacks=[EpochClock(clock)],
    ).train()
    return bench.result(clock.seconds, bench.precision)


def train_trl(bench: Bench, *, packed: bool) -> Result:
    """Train with TRL's `SFTTrainer` on prompts and completions, the loss on the completions.

    Packed, two rows of 512 tokens make a step of about as many texts as the others have.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    group_as_for_many()

    # the trainer joins the rows of a step to one
    clock, loaded = Clock(), bench.load(2 * MAX_TOKENS if packed else MAX_TOKENS)
    prompt = bench.spec().prompt
    rows = [
        {
            "prompt": bench.prompt(loaded, example.text),
            "completion": render_target(prompt, example.label),
        }
        for example in bench.chosen
    ]
    way: dict[str, Any] = {}
    if packed:
        way = {
            "packing": True,
            "per_device_train_batch_size": 2,
            "train_sampling_strategy": "random",
        }
    arguments = SFTConfig(
        **settings(
            bench,
            completion_only_loss=True,
            max_length=MAX_TOKENS,
            gradient_checkpointing=False,
            **way,
        )
    )
    SFTTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        callbacks=[EpochClock(clock)],
    ).train()
    return bench.result(clock.seconds, bench.precision)


def run_simplet5(bench: Bench, test: Sequence[Example], target_max_tokens: int) -> Any:
    """Let the package SimpleT5 train on the texts and answer others; give its clocks and outcome.

    The package pads to the article's 300 tokens.
    """
    device = bench.resolved_device if bench.resolved_device == "cuda" else "cpu"
    spec = bench.spec(
        backend="simplet5",
        device=device,
        batch_size=SIMPLET5_BATCH,
        max_tokens=300,
        simplet5={"target_max_tokens": target_max_tokens},
    )
    train = bench.chosen if not test else bench.chosen[:SIMPLET5_BATCH]
    clocks: dict[str, Clock] = {}

    class Clocks:
        def task(self, name: str, total: int) -> Any:
            clocks[name.rsplit(", ", 1)[-1]] = clock = Clock()
            return clock.task("package", total)

        def line(self, text: str) -> None:
            del text

    outcome = SimpleT5().run(spec, bench.split(train, test), Clocks(), TrialFolders())
    return clocks, outcome


def train_simplet5(bench: Bench) -> Result:
    """Train with the package SimpleT5 as the article did: 300 and 200 tokens, batches of 8.

    Timed from the end of the second epoch's first step to that of its last, as the package
    validates between epochs; every batch is padded to the same length.
    """
    clocks, outcome = run_simplet5(bench, (), 200)
    steps = clocks["epoch 2/2"].marks[1:-1]
    texts = len(bench.chosen)
    per_second = (texts - SIMPLET5_BATCH) / (steps[-1] - steps[0])
    return bench.result(
        texts / per_second, outcome.precision, peak_memory_bytes=outcome.peak_memory_bytes
    )


def answer_tgsent(bench: Bench, decoding: str) -> Result:
    """Answer as a trial of tgsent does after training."""
    clock, spec = Clock(), bench.spec(decoding)
    accelerator = loop.make_accelerator(spec.training)
    loaded = bench.load()
    speedups.apply(loaded.model)
    loaded.model = accelerator.prepare(loaded.model)
    encoder = loading.prompt_encoder(loaded, spec)
    for _ in range(2):
        with clock.task("pass", len(bench.chosen)):
            classify(loaded, encoder, bench.chosen, spec, Quiet())
    return bench.result(clock.seconds, bench.precision)


def answer_article(bench: Bench) -> Result:
    """Answer one text at a time with `generate`, greedily, stopped where a label ends."""
    clock, loaded = Clock(), bench.load()
    model, tokenizer = loaded.model.to(bench.resolved_device).eval(), loaded.tokenizer
    longest = label_tokens(bench, loaded)
    for _ in range(2):
        with clock.task("pass", len(bench.chosen)):
            for example in bench.chosen:
                inputs = tokenizer(
                    bench.prompt(loaded, example.text), return_tensors="pt",
                    truncation=True, max_length=MAX_TOKENS - longest,
                ).to(model.device)  # fmt: skip
                output = model.generate(  # type: ignore[operator]
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                    do_sample=False, max_new_tokens=longest,
                )  # fmt: skip
                tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    return bench.result(clock.seconds, "fp32")


def label_tokens(bench: Bench, loaded: LoadedModel) -> int:
    """Count the tokens of the longest label, its end token too."""
    return max(map(len, loading.prompt_encoder(loaded, bench.spec()).targets.values()))


def answer_simplet5(bench: Bench) -> Result:
    """Answer one text at a time with the package's `predict`, stopped where a label ends.

    Random weights would never end by themselves. The package trains a batch first, as the worker
    knows no other way.
    """
    longest = 1 + label_tokens(bench, bench.load())  # it counts the decoder's first token
    texts = bench.chosen
    clocks, outcome = run_simplet5(bench, (*texts, *texts), longest)
    answers = clocks["evaluation"].marks[1:-1]
    seconds = answers[-1] - answers[len(texts) - 1]
    return bench.result(seconds, outcome.precision, peak_memory_bytes=outcome.peak_memory_bytes)


def facts(bench: Bench) -> Result:
    """Return what holds for all: family, device, work per tweet, and the device's peak."""
    loaded = loading.describe(bench.spec(), bench.all_texts)
    reads = [(len(e.prompt), len(e.target)) for e in bench.encoded(loaded)]
    prompt, target = (fmean(column) for column in zip(*reads, strict=True))
    precisions = sorted({"fp32", bench.precision})
    model: Any = loaded.model
    multiplied = multiplications(model, prompt, target)
    seq2seq = bool(model.config.is_encoder_decoder)
    return {
        "family": "seq2seq" if seq2seq else "causal",
        "device": bench.resolved_device,
        "device_name": torch.cuda.get_device_name() if bench.resolved_device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "precision": bench.precision,
        "prompt_tokens": prompt,
        "label_tokens": target,
        "multiplied": multiplied,
        "training_flop": 6 * multiplied,
        "evaluation_flop": 2 * multiplied,
        "peak_flops": {p: matrix_product_peak(bench.resolved_device, p) for p in precisions},
    }


def multiplications(model: Any, prompt: float, target: float) -> float:
    """Count the parameters that a tweet has to be multiplied with, once per token: see above."""
    reading, writing = plan.matrix_parameters(model)
    head = model.get_output_embeddings().weight.numel()
    if not model.config.is_encoder_decoder:
        return (reading - head) * (prompt + target - 1) + head * target
    # the decoder's keys and values of what the encoder gives are made once per token of that
    between = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight"))
    )
    return (reading + between) * prompt + (writing - between) * target


def matrix_product_peak(device: str, precision: str) -> float:
    """Measure the most floating-point operations per second of `torch.mm`.

    The sizes are those of a small GPT-2's widest layers, for a batch of short texts and for more.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    calls = 1 if device == "cpu" else 20
    clock, best = Clock(), 0.0
    for rows in (1024, 4096) if device == "cpu" else (1024, 4096, 16384):
        for inner, columns in ((768, 3072), (3072, 768)):
            a = torch.randn(rows, inner, device=device, dtype=dtype)
            b = torch.randn(inner, columns, device=device, dtype=dtype)
            for _ in range(6):
                with clock.task("product", 1):
                    for _ in range(calls):
                        torch.mm(a, b)
                best = max(best, calls * 2 * rows * inner * columns / clock.seconds)
    return best


Way = Callable[[Bench], Result]

TRAINING: Mapping[str, Way] = {
    "tgsent": functools.partial(train_tgsent, loss="label"),
    "tgsent, loss: full": functools.partial(train_tgsent, loss="full"),
    "article": train_article,
    "HF Trainer": functools.partial(train_hf, labels_only=False),
    "HF Trainer, labels only": functools.partial(train_hf, labels_only=True),
    "HF Trainer, labels only, memory kept": functools.partial(
        train_hf, labels_only=True, keep_memory=True
    ),
    "TRL SFTTrainer": functools.partial(train_trl, packed=False),
    "TRL SFTTrainer, packed": functools.partial(train_trl, packed=True),
    "HF Seq2SeqTrainer": train_hf_seq2seq,
    "HF Seq2SeqTrainer, memory kept": functools.partial(train_hf_seq2seq, keep_memory=True),
    "SimpleT5": train_simplet5,
}
EVALUATION: Mapping[str, Way] = {
    "tgsent, free": functools.partial(answer_tgsent, decoding="free"),
    "tgsent, score": functools.partial(answer_tgsent, decoding="score"),
    "article": answer_article,
    "SimpleT5": answer_simplet5,
}
WAYS: Mapping[str, Mapping[str, Way]] = {
    "facts": {"facts": facts},
    "training": TRAINING,
    "evaluation": EVALUATION,
}


def main() -> None:
    """Do one job."""
    job, result = map(Path, sys.argv[1:])
    asked = json.loads(job.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(**asked["bench"], folder=Path(folder))
        measured = WAYS[asked["kind"]][asked["name"]](bench)
    result.write_text(json.dumps(measured), "utf-8")


if __name__ == "__main__":
    main()
