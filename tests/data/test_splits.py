from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.config import DataConfig, RunConfig
from tgsent.data import splits
from tgsent.data.dataset import Dataset
from tgsent.data.splits import TrialSplits
from tgsent.errors import DataError
from tgsent.records import Split


def made(texts: Sequence[str], labels: Sequence[str], words: Sequence[str]) -> Dataset:
    return Dataset(
        texts=tuple(texts),
        text_labels=tuple(labels),
        labels=tuple(words),
        sha256="",
        source="made up",
        is_sentiment140=False,
        rows=len(labels),
        duplicates=0,
        dropped=0,
    )


def split_of(counts: dict[str, int], test_fraction: float, *, seed: int = 1) -> Split:
    """Trial 1 of made-up texts, as many of each label as `counts` says."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    dataset = made([f"text {i}" for i in range(len(labels))], labels, list(counts))
    data = DataConfig(sample_size=None, test_fraction=test_fraction)
    (split,) = TrialSplits(dataset, RunConfig(seed=seed, trials=1, data=data))
    return split


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        ({"x": 50, "y": 1}, 0.5, "51 texts of 2 labels cannot be split: The least populated"),
        ({"x": 50, "y": 0}, 0.5, 'no training text has the label "y"; add texts of that label'),
        ({"x": 97, "y": 3}, 0.05, 'no test text has the label "y"; add texts of that label'),
        ({"x": 2, "y": 2}, 0.05, "4 texts of 2 labels cannot be split: The test_size = 1 should"),
    ],
)
def test_every_label_must_be_in_both_parts(
    counts: dict[str, int], fraction: float, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        split_of(counts, fraction)
    where = f"made up, trial 1, data.test_fraction {fraction}"
    assert str(caught.value).startswith(f"{where}: {message}")


@given(
    st.lists(st.integers(2, 40), min_size=2, max_size=5),
    st.floats(0.05, 0.95),
    st.integers(0, 1000),
)
def test_a_split_shares_out_every_text_once(sizes: list[int], fraction: float, seed: int) -> None:
    counts = {f"{index} label": size for index, size in enumerate(sizes)}
    try:
        split = split_of(counts, fraction, seed=seed)
    except DataError:  # a label is too small for one of the parts
        assert min(sizes) * min(fraction, 1 - fraction) < 2
        return
    texts = [example.text for example in (*split.train, *split.test)]
    assert sorted(texts) == sorted(f"text {i}" for i in range(sum(sizes)))
    assert Counter(e.label for e in (*split.train, *split.test)) == counts
    assert {e.label for e in split.train} == {e.label for e in split.test} == set(counts)
    assert abs(len(split.test) - fraction * sum(sizes)) < 1


def test_the_hash_of_a_split_is_stable() -> None:
    assert split_of({"x": 6, "y": 6}, 0.5).sha256 == (
        "fff2755b2776f9ee4f3fdfa06eba7f9e5898ed4c74aa295e1f10c2bf59a7145f"
    )


def test_the_hash_of_a_split_tells_trials_texts_and_labels_apart() -> None:
    def hashes(texts: str, labels: str) -> list[str]:
        config = RunConfig(data=DataConfig(sample_size=None, test_fraction=0.5))
        splits = TrialSplits(made(texts, labels, sorted(set(labels))), config)
        return [split.sha256 for split in splits]

    all_hashes = hashes("abcdefg", "xxxyyyy")
    assert hashes("abcdefg", "xxxyyyy") == all_hashes
    all_hashes += hashes("Abcdefg", "xxxyyyy")
    all_hashes += hashes("abcdefg", "zzzyyyy")
    assert len(set(all_hashes)) == 9


def test_a_split_that_is_not_as_described_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(data=DataConfig(sample_size=None, test_fraction=0.5))
    made_splits = TrialSplits(made("abcdefg", "xxxyyyy", "xy"), config)
    monkeypatch.setattr(splits, "_hash", lambda *_: "of another version")
    with pytest.raises(DataError, match="trial 2: its split differs"):
        made_splits[1]
