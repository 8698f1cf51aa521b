"""Splits of a sample: one per trial, and those that a sweep chooses settings by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from sklearn.model_selection import train_test_split

from tgsent.config import DataConfig, RunConfig, SweepConfig
from tgsent.data.dataset import Dataset
from tgsent.data.readers import show_rows
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
        self._dataset, self._test_fraction = dataset, config.data.test_fraction
        self._sample = tuple(map(Example, dataset.texts, dataset.text_labels))
        self._seeds = range(config.seed, config.seed + config.trials)
        self._extra_sha256 = _hash(dataset.extra) if dataset.extra else ""
        self._origin = signature_part(config.data, dataset.sha256)
        self.summaries = tuple(self._make(k).summary for k in range(config.trials))

    def __getitem__(self, index: int) -> Split:
        """Make the split of trial `index + 1`; raises DataError where it is not as described."""
        split = self._make(index)
        if split.summary != self.summaries[index]:  # by another version of scikit-learn
            raise DataError(
                f"trial {split.trial}: its split differs from the one that the run began with;"
                " use the same versions of tgsent and scikit-learn on all machines"
            )
        return split

    def _make(self, index: int) -> Split:
        trial, seed = index + 1, self._seeds[index]
        train, test = self._split(trial, seed)
        train_texts = {example.text for example in train}
        return Split(
            trial=trial,
            seed=seed,
            train=tuple(train),
            test=tuple(test),
            sha256=_hash(train, test),
            overlap=sum(example.text in train_texts for example in test),
            duplicates=self._dataset.duplicates,
            dropped=self._dataset.dropped,
            extra=self._dataset.extra,
            extra_sha256=self._extra_sha256,
            origin=self._origin,
        )

    def _split(self, trial: int, seed: int) -> tuple[list[Example], list[Example]]:
        dataset, fraction = self._dataset, self._test_fraction
        rows: dict[str, list[int]] = {label: [] for label in dataset.labels}
        for label, number in zip(dataset.text_labels, dataset.row_numbers, strict=True):
            rows[label].append(number)
        advice = "add texts of it, drop it, or raise data.sample_size or data.test_fraction"
        for label, numbers in rows.items():
            if len(numbers) < 2:
                raise DataError(
                    f'{dataset.source}: the label "{label}" has {_count(numbers)} of the'
                    f" {len(self._sample)} sampled texts, and a split needs at least 2: {advice}"
                )
        try:
            train, test = _stratified(self._sample, fraction, seed)
        except ValueError as error:
            raise DataError(
                f"{dataset.source}: data.test_fraction {fraction} cannot split"
                f" {len(self._sample)} texts of {len(dataset.labels)} labels: {error}"
            ) from None
        for part, examples in (("training", train), ("test", test)):
            for label in _missing(dataset.labels, examples):
                raise DataError(
                    f'{dataset.source}: the label "{label}" has {_count(rows[label])},'
                    f" but none in the {part} part of trial {trial}"
                    f" (data.test_fraction {fraction}): {advice}"
                )
        return train, test


def _count(numbers: list[int]) -> str:
    """Return how many rows there are, and which."""
    return f"{len(numbers)} ({show_rows(sorted(numbers))})" if numbers else "none"


def signature_part(config: DataConfig, sha256: str) -> str:
    """Return the part of a signature that names what the splits were made of."""
    size = "all" if config.sample_size is None else config.sample_size
    return (
        f"data:{sha256[:12]}|sample:{size}@{config.sample_seed}"
        f"|repeats:{'dropped' if config.deduplicate else 'kept'}|test:{config.test_fraction:g}"
        f"|extra:{config.extra_test_size}"
    )


class ValidationSplits:
    """Splits of the texts that no trial tests, to choose settings by; they share one test part.

    Number k trains on the k-th of the given shares of what is left for training, stratified by
    label. Raises DataError where too few texts are left.
    """

    def __init__(
        self, splits: Splits, labels: Sequence[str], sweep: SweepConfig, shares: Sequence[float]
    ) -> None:
        first = splits[0]
        tested = {e.text for k in range(len(splits.summaries)) for e in splits[k].tested}
        # each text once, so that no validation text has been trained on
        distinct = {example.text: example for example in reversed(first.train)}
        left = [example for text, example in distinct.items() if text not in tested]
        try:
            train, validation = _stratified(left, sweep.validation_fraction, sweep.seed)
            parts = [
                train if share == 1 else _stratified(train, 1 - share, sweep.seed)[0]
                for share in shares
            ]
        except ValueError as error:
            raise DataError(
                f"sweep: {len(left)} texts that no trial tests cannot be split: {error};"
                " use more texts, or fewer trials"
            ) from None
        self._splits = []
        for number, part in enumerate(parts, start=1):
            for name, examples in (("training", part), ("validation", validation)):
                if missing := _missing(labels, examples):
                    raise DataError(
                        f"sweep: of {len(left)} texts that no trial tests, the {name} part"
                        f" ({len(examples)}) has none labelled {', '.join(sorted(missing))};"
                        " fewer trials, sweep.validation_fraction or sweep.halving may help"
                    )
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
    examples: Sequence[Example], test_fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    labels = [example.label for example in examples]
    train, test = train_test_split(
        list(examples), test_size=test_fraction, stratify=labels, random_state=seed
    )
    return train, test


def _missing(labels: Sequence[str], examples: Sequence[Example]) -> list[str]:
    """Return the labels that no example has."""
    present = {example.label for example in examples}
    return [label for label in labels if label not in present]


def _hash(*parts: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        rows = [[example.text, example.label] for example in part]
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()
