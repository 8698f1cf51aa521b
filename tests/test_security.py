"""What the source must not hold: pickles, remote code, shells, unsafe YAML."""

import re
from pathlib import Path

import pytest

import tgsent

SOURCES = {
    path.name: path.read_text("utf-8") for path in Path(tgsent.__file__).parent.rglob("*.py")
}
FORBIDDEN = {
    "pickles": r"\b(?:pickle|joblib|dill|shelve)\b|torch\.(?:load|save)\(|read_pickle|np\.load",
    "remote code": r"trust_remote_code\s*=\s*True",
    "a shell": r"shell\s*=\s*True|os\.(?:system|popen)\(|getoutput|create_subprocess_shell",
    "unsafe YAML": r"yaml\.(?:load|unsafe_load|full_load)\(|yaml\.(?:Unsafe|Full)?Loader\b",
    "code from text": r"(?<![\w.])(?:eval|exec)\(",
    "temporary files with a name that others can guess": r"mktemp\(",
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_source_is_free_of(what: str) -> None:
    code = {name: re.sub(r'"""[\s\S]*?"""|#.*', "", text) for name, text in SOURCES.items()}
    found = {name: re.findall(FORBIDDEN[what], text) for name, text in code.items()}
    assert not {name: hits for name, hits in found.items() if hits}


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("pickles", "torch.load(path)"), ("pickles", "import pickle"),
        ("remote code", "f(trust_remote_code = True)"), ("a shell", "run(x, shell=True)"),
        ("unsafe YAML", "yaml.load(text)"), ("code from text", "x = eval(text)"),
    ],
)  # fmt: skip
def test_the_search_finds(what: str, code: str) -> None:
    assert re.search(FORBIDDEN[what], code)
