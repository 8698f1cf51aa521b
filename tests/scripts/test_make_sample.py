"""The shipped made-up tweets are what their script writes, and neither trivial nor too hard."""

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_sample.py"
SAMPLE = ROOT / "data" / "sample_tweets.csv"


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    with SAMPLE.open(encoding="iso-8859-1", newline="") as file:
        return list(csv.reader(file, strict=True))


def test_regenerates_byte_for_byte(tmp_path: Path) -> None:
    result = make(tmp_path, "-o", "again.csv")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again.csv").read_bytes() == SAMPLE.read_bytes()


def test_rows_and_seed_are_options(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        result = make(tmp_path, "-o", f"{seed}.csv", "--rows", "20", "--seed", seed)
        assert result.returncode == 0, result.stderr
    one, two = ((tmp_path / f"{seed}.csv").read_bytes() for seed in ("1", "2"))
    assert one.count(b"\n") == two.count(b"\n") == 20
    assert one != two


@pytest.mark.parametrize("count", ["0", "7", "-2"])
def test_refuses_rows_that_do_not_halve(tmp_path: Path, count: str) -> None:
    result = make(tmp_path, "-o", "none.csv", "--rows", count)
    assert result.returncode == 2
    assert "even number" in result.stderr
    assert not (tmp_path / "none.csv").exists()


def test_every_cell_is_quoted_and_lines_end_in_newline() -> None:
    data = SAMPLE.read_bytes()
    assert data.endswith(b'"\n')
    assert b"\r" not in data
    lines = data.decode("iso-8859-1").removesuffix("\n").split("\n")
    for line in lines:
        assert line.startswith('"')
        assert line.endswith('"')
        assert line.count('","') == 5


def test_layout(rows: list[list[str]]) -> None:
    assert len(rows) >= 2000
    assert {len(row) for row in rows} == {6}
    assert [int(row[1]) for row in rows] == list(range(1, len(rows) + 1))
    assert {tuple(row[2:5]) for row in rows} == {("", "NO_QUERY", "")}


def test_halves_negatives_first(rows: list[list[str]]) -> None:
    labels = [row[0] for row in rows]
    half = len(rows) // 2
    assert Counter(labels) == {"0": half, "4": half}
    assert labels == sorted(labels)


def test_texts(rows: list[list[str]]) -> None:
    texts = [row[5] for row in rows]
    assert len(set(texts)) == len(texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 3
    assert max(lengths) <= 35
    assert 12 <= sum(lengths) / len(lengths) <= 16
    assert all(text == text.strip() and text.isprintable() for text in texts)
    assert not any(set(text) & set('{}"') for text in texts)
    assert any(not text.isascii() for text in texts)


def test_no_handle_can_be_a_real_one(rows: list[list[str]]) -> None:
    handles = {word for row in rows for word in row[5].split() if word.startswith("@")}
    assert handles
    assert all(len(handle.removeprefix("@")) > 15 for handle in handles)


def test_counting_words_does_well_but_not_perfectly(rows: list[list[str]]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline

    texts, labels = [row[5] for row in rows], [row[0] for row in rows]
    scores = []
    for seed in range(5):
        train, test, train_labels, test_labels = train_test_split(
            texts, labels, test_size=0.05, stratify=labels, random_state=seed
        )
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000)
        )
        predicted = model.fit(train, train_labels).predict(test)
        scores.append(f1_score(test_labels, predicted, average="macro"))
    assert 0.80 <= sum(scores) / len(scores) <= 0.93
