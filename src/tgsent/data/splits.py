"""Splits of a sample: one per trial, and those on which a sweep compares settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from sklearn.model_selection import train_test_split

from tgsent.config import RunConfig, SweepConfig
from tgsent.data.dataset import Dataset
from tgsent.errors import DataError
from tgsent.records import Example, Split, Splits


class TrialSplits:
    """One split per trial, stratified by label; every model gets the same splits.

    Trial k is scikit-learn's `train_test_split` with `random_state = seed + k - 1`. Every split is
    described at once and made again whenever it is asked for: the texts of thousands of trials
    would fill the memory, and a machine that runs one trial needs one split. Raises DataError
    where a label has no text in one of the parts.
    """

    def __init__(self, dataset: Dataset, config: RunConfig) -> None:
        self._dataset, self._config, data = dataset, config, config.data
        self._sample = tuple(map(Example, dataset.texts, dataset.text_labels))
        self._extra_sha256 = _hash(dataset.extra) if dataset.extra else ""
        self._origin = (
            f"data:{dataset.sha256[:12]}|sample:{data.sample_size or 'all'}@{data.sample_seed}"
            f"|repeats:{'dropped' if data.deduplicate else 'kept'}|test:{data.test_fraction:g}"
            f"|extra:{data.extra_test_size}"
        )
        self.summaries = tuple(self._make(k).summary for k in range(config.trials))

    def __getitem__(self, index: int) -> Split:
        """Make the split of trial `index + 1`; raises DataError where it is not as described."""
        summary, split = self.summaries[index], self._make(index)
        if split.summary != summary:  # by another version of scikit-learn
            raise DataError(
                f"trial {split.trial}: its split differs from the one that the run began with;"
                " use the same versions of tgsent and scikit-learn on all machines"
            )
        return split

    def _make(self, index: int) -> Split:
        dataset, trial, fraction = self._dataset, index + 1, self._config.data.test_fraction
        seed = self._config.seed + index
        where = f"{dataset.source}, trial {trial}, data.test_fraction {fraction}"
        advice = "add texts of that label, drop it, or raise data.sample_size or data.test_fraction"
        train, test = _stratified(self._sample, dataset.labels, fraction, seed, where, advice)
        train_texts = {example.text for example in train}
        return Split(
            trial=trial,
            seed=seed,
            train=tuple(train),
            test=tuple(test),
            sha256=_hash(train, test),
            overlap=sum(example.text in train_texts for example in test),
            duplicates=dataset.duplicates,
            dropped=dataset.dropped,
            extra=dataset.extra,
            extra_sha256=self._extra_sha256,
            origin=self._origin,
        )


class ValidationSplits:
    """Splits of the texts that no trial tests, for comparing settings; they share one test part.

    Split k trains on the k-th of the given shares of the remaining texts, stratified by label.
    Raises DataError where too few texts are left.
    """

    def __init__(
        self, splits: Splits, labels: Sequence[str], sweep: SweepConfig, shares: Sequence[float]
    ) -> None:
        first = splits[0]
        tested = {e.text for k in range(len(splits.summaries)) for e in splits[k].tested}
        # each text once, so that no validation text has been trained on
        distinct = {example.text: example for example in reversed(first.train)}
        left = [example for text, example in distinct.items() if text not in tested]
        where, advice = "sweep, texts that no trial tests", "use more texts, or fewer trials"
        train, validation = _stratified(
            left, labels, sweep.validation_fraction, sweep.seed, where, advice
        )
        self._splits = []
        for number, share in enumerate(shares, start=1):
            part = train
            if share < 1:
                part, _ = _stratified(train, labels, 1 - share, sweep.seed, where, advice)
            self._splits.append(
                Split(
                    trial=number,
                    seed=sweep.seed,
                    train=tuple(part),
                    test=tuple(validation),
                    sha256=_hash(part, validation),
                    overlap=0,
                    duplicates=first.duplicates,
                    dropped=first.dropped,
                    origin=first.origin,
                )
            )
        self.summaries = tuple(split.summary for split in self._splits)

    def __getitem__(self, index: int) -> Split:
        """Return the split of round `index + 1`."""
        return self._splits[index]


def _stratified(
    examples: Sequence[Example],
    labels: Sequence[str],
    test_fraction: float,
    seed: int,
    where: str,
    advice: str,
) -> tuple[list[Example], list[Example]]:
    """Split by label; raise DataError where a label has no text in one of the parts."""
    stratify = [example.label for example in examples]
    train: list[Example]
    test: list[Example]
    try:
        train, test = train_test_split(
            list(examples), test_size=test_fraction, stratify=stratify, random_state=seed
        )
    except ValueError as error:
        raise DataError(
            f"{where}: {len(examples)} texts of {len(labels)} labels cannot be split: {error};"
            f" {advice}"
        ) from None
    for name, part in (("training", train), ("test", test)):
        if missing := set(labels) - {example.label for example in part}:
            label = min(missing)
            raise DataError(f'{where}: no {name} text has the label "{label}"; {advice}')
    return train, test


def _hash(*parts: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        rows = [[example.text, example.label] for example in part]
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()
