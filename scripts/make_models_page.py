"""Write `docs/models.md` from the table of architectures that the tests go through.

    python scripts/make_models_page.py [--check]

With `--check` nothing is written, and the exit code is 1 where the page is not up to date.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from architectures import ARCHITECTURES, Architecture, make_folder
from tgsent.config.aliases import ALIASES
from tgsent.errors import ConfigError
from tiny_models import check, tiny_spec

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
INTRODUCTION = """\
# Models

Written by `scripts/make_models_page.py` from `tests/architectures.py`.

tgsent accepts any causal or seq2seq language model that the installed transformers supports, by
short name, Hub id, folder or GGUF file. These types are tested one by one, with small
random weights and tokenizers of their kind (`tests/modeling/test_architectures.py`): loss and
gradients equal the library's own; `free`, `constrained` and `score` give what uncached decoding of
one text at a time gives; prompts decode to exactly what was rendered (T5's and umT5's tokenizers
drop line breaks and runs of spaces); whole training and LoRA change the weights; and the saved
folder loads with plain `from_pretrained` and answers as before.

| type | such as | tokenizer in the test |
|---|---|---|
"""
REFUSED = """
These are refused before anything is trained:

| type | such as | the error |
|---|---|---|
"""
NAMES = """
## Short names

| name | Hub id | type |
|---|---|---|
"""


def page() -> str:
    """Return the whole page."""
    working = [
        f"| `{one.model_type}` | {one.examples} | {one.tokenizer.replace('<s>', '`<s>`')} |\n"
        for one in ARCHITECTURES
        if not one.refused
    ]
    refused = [
        f"| `{one.model_type}` | {one.examples} | {error(one)} |\n"
        for one in ARCHITECTURES
        if one.refused
    ]
    names = [f"| `{name}` | {a.hub_id} | `{a.model_type}` |\n" for name, a in ALIASES.items()]
    return "".join([INTRODUCTION, *working, REFUSED, *refused, NAMES, *names])


def error(architecture: Architecture) -> str:
    """Return the error with which a type is refused."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(architecture, Path(folder))
        try:
            check(tiny_spec(folder, training={"init": "random"}))
        except ConfigError as refused:
            return str(refused).replace(folder, "MODEL")
    raise AssertionError(f"{architecture.model_type} is not refused")


def main() -> int:
    """Write the page, or check it."""
    content = page()
    if PAGE.is_file() and PAGE.read_text("utf-8") == content:
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/models.md is not up to date: run python scripts/make_models_page.py")
        return 1
    PAGE.write_text(content, "utf-8")
    print("wrote docs/models.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
