"""Who may import whom: the layers of the house, and where heavy libraries are at home."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import tgsent

# A module may import what stands on an earlier line. Lines of the same number are one layer of
# the house: what order there is within a layer is an exception, and all of them are here.
LAYERS = (
    (0, ("tgsent", "aliases", "errors", "records", "redaction")),
    (0, ("terminal",)),
    (0, ("markup",)),
    (1, ("processes",)),
    (1, ("yaml_source", "progress", "cache", "files", "interrupts", "texts")),
    (1, ("earlier",)),
    (1, ("config",)),
    (1, ("prompts", "store", "environment", "signature", "variants")),
    (1, ("runs",)),
    (2, ("sentiment140", "streaming")),
    (2, ("gguf_files",)),
    (2, ("data", "hub", "metrics", "report", "significance", "charts")),
    (2, ("weights",)),
    (2, ("results", "pages")),
    (3, ("finetune", "finetune.family", "finetune.checkpoint")),
    (3, ("finetune.causal", "finetune.seq2seq", "finetune.loop", "finetune.simplet5")),
    (
        3,
        (
            "finetune.rates",
            "finetune.speedups",
            "finetune.trainable",
            "finetune.trackers",
            "finetune._simplet5_worker",
        ),
    ),
    (3, ("memory", "baselines", "tiny", "tokens")),
    (3, ("chat",)),
    (3, ("models",)),
    (4, ("evaluate", "legibility")),
    (4, ("trial", "model_card")),
    (4, ("attempt",)),
    (5, ("cost", "manifest", "ray_engine")),
    (5, ("plan", "execute", "predict")),
    (5, ("sweep",)),
    (6, ("cli",)),
    (6, ("__main__",)),
)
LINE_OF = {module: line for line, (_, modules) in enumerate(LAYERS) for module in modules}
LIGHT_LAYERS = (0, 1, 6)
HEAVY = {
    "accelerate", "gguf", "matplotlib", "optuna", "pandas", "peft", "pooch", "pyarrow", "ray",
    "requests", "scipy", "sklearn", "tokenizers", "torch", "transformers",
}  # fmt: skip


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the rules in `{module: source}`; the modules are named without `tgsent.`."""
    found = [f"{module} is in no layer" for module in sources if module not in LINE_OF]
    for module in sources.keys() & LINE_OF.keys():
        tree, line = ast.parse(sources[module]), LINE_OF[module]
        for imported in imports(tree):
            name = imported.removeprefix("tgsent.")
            if imported.startswith("tgsent") and LINE_OF.get(name, len(LAYERS)) >= line:
                found.append(f"{module} imports {name}")
        if LAYERS[line][0] in LIGHT_LAYERS:
            heavy = {name.split(".")[0] for name in imports_at_module_level(tree)} & HEAVY
            found += [f"{module} imports {name} at module level" for name in sorted(heavy)]
    return sorted(found)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules imported anywhere in `tree`."""
    for node in ast.walk(tree):
        yield from names(node)


def imports_at_module_level(tree: ast.Module) -> Iterator[str]:
    """Full names of the modules that importing this one imports."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        yield from names(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level:  # not our style, so in no layer
        yield f"tgsent.{'.' * node.level}{node.module or ''}"
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full.removeprefix("tgsent.") in LINE_OF else str(node.module)


def sources() -> dict[str, str]:
    root = Path(tgsent.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts).removesuffix("__init__").rstrip(".") or "tgsent"
        found[module] = path.read_text(encoding="utf-8")
    return found


def test_every_module_keeps_to_the_layers() -> None:
    assert violations(sources()) == []


def test_every_layer_is_there() -> None:
    assert LINE_OF.keys() <= sources().keys()


@pytest.mark.parametrize(
    ("module", "source", "violation"),
    [
        ("config", "from tgsent.store import RunFolder", "config imports store"),
        ("config", "from tgsent import store", "config imports store"),
        ("config", "import tgsent.store", "config imports store"),
        ("metrics", "def f():\n  from tgsent.models import load", "metrics imports models"),
        ("finetune.loop", "from tgsent.finetune import causal",
         "finetune.loop imports finetune.causal"),
        ("plan", "from tgsent.cli import main", "plan imports cli"),
        ("report", "from tgsent import metrics", "report imports metrics"),
        ("plan", "from tgsent import execute", "plan imports execute"),
        ("data", "from tgsent.nowhere import x", "data imports nowhere"),
        ("config", "from .store import RunFolder", "config imports .store"),
        ("helpers", "", "helpers is in no layer"),
        ("store", "import pandas as pd", "store imports pandas at module level"),
        ("cli", "from torch.nn import functional", "cli imports torch at module level"),
        ("cli", "try:\n  import ray\nexcept ImportError: pass", "cli imports ray at module level"),
        ("cli", "class A:\n  import scipy.stats", "cli imports scipy at module level"),
    ],
)  # fmt: skip
def test_the_checker_sees_violations(module: str, source: str, violation: str) -> None:
    assert violations({module: source}) == [violation]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli", "def f():\n  import torch"),
        ("cli", "if TYPE_CHECKING:\n  import pandas"),
        ("data", "import pandas"),
        ("execute", "from tgsent import __version__, models"),
        ("store", "from tgsent.config import RunConfig"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations({module: source}) == []
