"""Who may import whom, where heavy libraries are at home, and how long code may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tgsent

# In the order of the data's way: a package, or a module beside the packages, imports only those
# before it. Within a package, imports make no circle.
ORDER = (
    "tgsent", "errors", "records", "terminal", "files", "progress", "config", "data", "modeling",
    "training", "evaluation", "backends", "runs", "report", "experiment", "cli", "__main__",
)  # fmt: skip
LONGEST_MODULE, LONGEST_FUNCTION = 450, 60  # lines
# What is imported before a command is known, so that `--help` and config errors are instant.
LIGHT = {"tgsent", "errors", "records", "terminal", "files", "progress", "config", "runs", "cli"}
HEAVY = {
    "accelerate", "gguf", "matplotlib", "optuna", "pandas", "peft", "pooch", "pyarrow", "ray",
    "requests", "scipy", "sklearn", "tokenizers", "torch", "transformers",
}  # fmt: skip


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the rules in `{module: source}`; the modules are named without `tgsent.`."""
    found = []
    for module, source in sources.items():
        tree, package = ast.parse(source), module.split(".")[0]
        if package not in ORDER:
            found.append(f"{package} is not in the order")
            continue
        for imported in imports(tree):
            other = imported.removeprefix("tgsent.").split(".")[0]
            later = other not in ORDER or ORDER.index(other) > ORDER.index(package)
            if imported.startswith("tgsent") and later:
                found.append(f"{module} imports {imported.removeprefix('tgsent.')}")
        if package in LIGHT:
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
    elif isinstance(node, ast.ImportFrom) and node.level:  # not our style, so in no order
        yield f"tgsent.{'.' * node.level}{node.module or ''}"
    elif isinstance(node, ast.ImportFrom) and node.module == "tgsent":
        dunder = {"__version__"}
        yield from (f"tgsent.{a.name}" if a.name not in dunder else "tgsent" for a in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> dict[str, str]:
    root = Path(tgsent.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts).removesuffix("__init__").rstrip(".") or "tgsent"
        found[module] = path.read_text(encoding="utf-8")
    return found


def circles(sources: Mapping[str, str]) -> list[str]:
    """Return the modules that import each other when they are imported."""
    graph = {
        module: [
            name
            for imported in imports_at_module_level(ast.parse(source))
            for name in (imported.removeprefix("tgsent."), imported[7:].rpartition(".")[0])
            if imported.startswith("tgsent.") and name in sources
            if name != module and not module.startswith(f"{name}.")
        ]
        for module, source in sources.items()
    }
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_keeps_to_the_order() -> None:
    assert violations(sources()) == []


def test_no_imports_go_in_a_circle() -> None:
    assert circles(sources()) == []
    two = {"data.a": "from tgsent.data import b", "data.b": "from tgsent.data.a import x"}
    assert circles(two)


def test_every_package_is_there() -> None:
    assert set(ORDER) == {module.split(".")[0] for module in sources()}


def test_modules_and_functions_are_short() -> None:
    for module, source in sources().items():
        lines = source.count("\n")
        assert lines <= LONGEST_MODULE, f"{module}: {lines} lines"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= LONGEST_FUNCTION, f"{module}.{node.name}: {lines} lines"


@pytest.mark.parametrize(
    ("module", "source", "violation"),
    [
        ("config.load", "from tgsent.runs.folder import RunFolder",
         "config.load imports runs.folder.RunFolder"),
        ("config", "from tgsent import runs", "config imports runs"),
        ("config", "import tgsent.runs", "config imports runs"),
        ("data.dataset", "def f():\n  from tgsent.modeling import hub",
         "data.dataset imports modeling.hub"),
        ("report.tables", "from tgsent.cli import main", "report.tables imports cli.main"),
        ("data.dataset", "from tgsent.nowhere import x", "data.dataset imports nowhere.x"),
        ("config", "from .load import load", "config imports .load"),
        ("helpers", "", "helpers is not in the order"),
        ("runs.folder", "import pandas as pd", "runs.folder imports pandas at module level"),
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
        ("data.dataset", "import pandas"),
        ("experiment.execute", "from tgsent import __version__, config"),
        ("runs.folder", "from tgsent.config import RunConfig"),
        ("runs.folder", "from tgsent.runs import signature"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations({module: source}) == []
