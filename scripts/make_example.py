#!/usr/bin/env python
"""Make docs/example anew: a run on the shipped made-up tweets, its report, and a picture of it.

Takes a minute or so, and Chromium for the picture.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import browser

ROOT = Path(__file__).parents[1]
MODELS = ("majority", "tfidf", "gpt2", "gpt-neo", "t5")
WIDTH, HEIGHT = 900, 1080


def main() -> None:
    """Run, report, and take the picture."""
    folder = ROOT / "docs/example"
    shutil.rmtree(folder, ignore_errors=True)
    chosen = [part for model in MODELS for part in ("-m", model)]
    command = ["-m", "tgsent", "run", "-c", "smoke", *chosen, "-o", "docs", "--set", "name=example"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    (ROOT / "docs/.example.lock").unlink()
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as shown:
        shown.show(folder / "report.html", WIDTH)
        shown.screenshot(folder / "report.png", HEIGHT)


if __name__ == "__main__":
    main()
