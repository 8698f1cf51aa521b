"""What a training needs at least, what the machine has, and what happens when it runs out."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from conftest import cli_environment
from tgsent.backends import native
from tgsent.config import TrainingConfig
from tgsent.errors import ConfigError, TrialError
from tgsent.files import show_size
from tgsent.modeling import loading
from tgsent.modeling.family import token_losses
from tgsent.records import Split
from tgsent.training import adapters, loop, memory
from tiny_models import FAMILIES, Silent, encode, examples, run_trial, tiny_model, tiny_spec

GB = 10**9


def described(model: str, **training: Any) -> tuple[loading.LoadedModel, Any]:
    spec = tiny_spec(model, training=training)
    return loading.describe(spec, examples(20)), spec


@pytest.mark.parametrize(
    "training",
    [{}, {"freeze_embeddings": True}, {"lora": {"r": 2}}, {"gradient_checkpointing": True}],
)
@pytest.mark.parametrize("model", FAMILIES)
def test_the_estimate_is_what_weights_gradients_and_optimizer_take(
    model: str, training: dict[str, Any]
) -> None:
    spec = tiny_spec(model, training=training)
    loaded = tiny_model(spec, examples(20))
    adapters.prepare(loaded.model, spec.training)
    optimizer = loop.make_optimizer(loaded.model, 1e-3, 0.0)
    batch = loaded.family.collate(encode(loaded, spec, examples(4)), loaded.ids, "full", None)
    token_losses(loaded.model, batch).sum().backward()
    optimizer.step()
    parameters = list(loaded.model.parameters())
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    real = sum(t.nbytes for t in [*parameters, *gradients, *moments])
    plain, _ = described(model)
    trainable, least = memory.estimate(plain.model, spec.training)
    low_rank = sum(p.nbytes for n, p in loaded.model.named_parameters() if "lora_" in n)
    assert trainable == loaded.model.num_parameters(only_trainable=True)
    assert 0.95 * real - low_rank <= least <= real


def test_estimating_leaves_the_model_as_it_is() -> None:
    loaded, _ = described("gpt2")
    names = [name for name, _ in loaded.model.named_parameters()]
    memory.estimate(loaded.model, TrainingConfig.model_validate({"lora": {}}))
    assert [name for name, _ in loaded.model.named_parameters()] == names
    assert all(p.requires_grad for p in loaded.model.parameters())


def refusal(monkeypatch: pytest.MonkeyPatch, there: int, **training: Any) -> str:
    """What is said to someone with that much memory; nothing where the model may fit."""
    monkeypatch.setattr(memory, "limit", lambda device: there)
    loaded, spec = described("gpt2", **training)
    try:
        memory.check(loaded.model, spec)
    except ConfigError as error:
        return str(error)
    return ""


def test_what_cannot_fit_is_refused_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, spec = described("gpt2")
    parameters = loaded.model.num_parameters()
    _, needed = memory.estimate(loaded.model, spec.training)
    assert needed == 16 * parameters
    assert refusal(monkeypatch, needed) == ""
    barely = refusal(monkeypatch, needed - 1)
    assert f"take {show_size(needed)}, and this machine has" in barely
    assert "take a smaller model, or train less of it: training.lora={}" in barely
    assert refusal(monkeypatch, needed // 2, lora={}) == ""


def test_a_huge_model_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """In a process of its own with little memory, and without a run folder afterwards."""
    config = {
        "model_type": "gpt2", "n_embd": 4096, "n_layer": 64, "n_head": 32, "vocab_size": 50257,
    }  # fmt: skip
    loaded = tiny_model(tiny_spec("gpt2"))
    loaded.tokenizer.save_pretrained(tmp_path / "huge")
    (tmp_path / "huge" / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "tgsent", "run", "-c", "smoke", "-m", "./huge",
         "--set", "training.init=random", "--set", "training.device=cpu"],
        cwd=tmp_path, env=cli_environment(), capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (24 * GB, 24 * GB)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "weights, gradients and optimizer state take 209" in done.stderr
    assert "take a smaller model, or train less of it" in done.stderr
    assert not (tmp_path / "runs").exists()


def size_of_imports() -> int:
    """Bytes of address space that a process has once everything is imported."""
    code = "import tgsent.backends.native; print(open('/proc/self/statm').read().split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=cli_environment()
    )
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE")


def test_a_trial_that_runs_out_of_memory_fails_with_advice_and_the_next_one_runs(
    tmp_path: Path,
) -> None:
    """All for real: one batch of 300 texts, each padded to 512 tokens, in 3 GB (torch for CPUs)."""
    limit = size_of_imports() + 19 * GB // 10  # a torch for GPUs maps almost 4 GB by itself
    big = {"batch_size": 300, "padding": "max_tokens", "loss": "full"}
    config = {
        "trials": 1,
        "models": [{"model": "gpt2", "as": "big", "training": big}, "gpt2"],
        "data": {"path": "sample", "sample_size": 350},
        "training": {"init": "tiny", "epochs": 1, "device": "cpu", "precision": "fp32"},
    }
    (tmp_path / "two.yaml").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "tgsent", "run", "-c", "two.yaml"],
        cwd=tmp_path, env=cli_environment(), capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "big trial 1 failed: out of memory in training\n" in done.stderr
    assert "raise training.gradient_accumulation" in done.stderr
    assert "Traceback" not in done.stderr
    assert "gpt2 trial 1: macro-F1" in done.stderr
    assert not list(tmp_path.rglob("error.txt"))


def test_limits_of_this_machine() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert GB / 4 < memory.limit("cpu") <= physical + psutil.swap_memory().total


def test_the_limits_of_control_groups_are_those_above_too(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    assert list(memory._cgroup_limits(root, own)) == []
    own.write_text("1:name=systemd:/other\n0::/outer/inner\n")
    assert list(memory._cgroup_limits(root, own)) == []
    (inner / "memory.max").write_text("max\n")
    (root / "outer" / "memory.max").write_text("5000\n")
    (root / "memory.max").write_text("7000\n")
    assert list(memory._cgroup_limits(root, own)) == [5000, 7000]


CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError(CPU_ERROR), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_failed_allocations_are_told_from_other_errors(error: Exception, is_one: bool) -> None:
    assert loading.is_out_of_memory(error) is is_one
    with (
        pytest.raises(TrialError if is_one else type(error)),
        memory.allocation_errors("training"),
    ):
        raise error


def test_a_real_failed_allocation_is_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert loading.is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("phase", "advice"),
    [
        ("loading", "take a smaller one"),
        ("training", "raise training.gradient_accumulation"),
        ("evaluation", "lower evaluation.batch_size, on which the answers do not depend"),
    ],
)
def test_the_advice_fits_what_was_being_done(phase: memory.Phase, advice: str) -> None:
    with (
        pytest.raises(TrialError, match=rf"^out of memory in {phase}\n.*{advice}"),
        memory.allocation_errors(phase),
    ):
        raise MemoryError


@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_a_trial_names_the_part_in_which_memory_ran_out(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    module, name = (loop, "token_losses") if phase == "training" else (native, "classify")
    monkeypatch.setattr(module, name, fail)
    texts = examples(20)
    split = Split(1, 1, tuple(texts[:12]), tuple(texts[12:]), sha256="5" * 64, overlap=0)
    with pytest.raises(TrialError, match=f"out of memory in {phase}"):
        run_trial(tiny_spec(), split, Silent())
