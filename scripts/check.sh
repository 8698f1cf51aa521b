#!/bin/sh
# Set up a virtual environment and run every check: lint, types, tests with coverage.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
.venv/bin/tgsent setup-simplet5 # made once, in the user's cache folder
export TGSENT_TESTS_NEED_SIMPLET5=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python scripts/make_reference.py --check
# alone, as the one is timed and the other takes all cores
.venv/bin/python -m pytest tests/test_smoke.py tests/test_pretrained.py
.venv/bin/python -m pytest -n 2 --dist worksteal --cov \
  --ignore tests/test_smoke.py --ignore tests/test_pretrained.py
