"""Labelled texts: where they come from, what is wrong with them, the sample and the splits."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gc
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

from tgsent.config import DataConfig, RunConfig, SweepConfig, label_words_problem, shipped
from tgsent.data.sentiment140 import find_sentiment140
from tgsent.data.streaming import draw, has_sentiment140_layout
from tgsent.errors import DataError
from tgsent.records import Example, Progress, Split, SplitSummary

# What the imports have made stays for good. Else the garbage collection that 10,000 new texts set
# off looks through all of it, which takes as long as a fifth of the reading.
gc.freeze()

_MOST_COLUMNS = 10_000
_SENTIMENT140_COLUMNS = ("0", "5")
_SENTIMENT140_LABELS = {"0": "negative", "4": "positive"}


@dataclass(frozen=True)
class Dataset:
    """The texts of one experiment, sampled, with label words, and how they came about."""

    frame: pd.DataFrame
    """The sample, in the order drawn: `text`, `label` (label words), `row` (number in the file)."""
    labels: tuple[str, ...]
    """The label words, in the order of `data.labels`, else sorted."""
    sha256: str
    """Hash of the file."""
    source: str
    is_sentiment140: bool
    """Whether the file has Sentiment140's layout and is not the shipped sample."""
    rows: int
    """Rows in the file."""
    duplicates: int
    """Rows that repeat the text of an earlier one."""
    dropped: int
    """Rows dropped for that reason."""
    extra: pd.DataFrame | None = None
    """More test texts, from outside the sample; columns as in `frame`."""

    def notes(self, splits: Sequence[SplitSummary]) -> list[str]:
        """Say what a user should know of these data, in one line each."""
        notes = []
        if self.dropped:
            notes.append(f"{self.source}: {self.dropped} repeated texts were dropped")
        overlaps = [split.overlap for split in splits]
        if any(overlaps):
            counts = ", ".join(f"{split.overlap} in trial {split.trial}" for split in splits)
            notes.append(
                f"{self.source}: test texts that also stand in the training part: {counts};"
                " data.deduplicate: true avoids that"
            )
        return notes


def load_dataset(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Read, check, deduplicate and sample; `progress` shows a download, if there is one.

    The sample is `DataFrame.sample(sample_size, random_state=sample_seed)` of all rows that are
    left. Raises DataError for anything that is wrong with the file, UnavailableError for a data
    set that cannot be fetched.
    """
    file = _file(config.path, progress)
    words = config.labels or _SENTIMENT140_LABELS
    if (
        file
        and not config.extra_test_size  # which need all that is not drawn
        and _may_have_sentiment140_layout(file, config)
        and (drawn := draw(file, config, words))
    ):
        return Dataset(
            frame=drawn.frame,
            labels=tuple(words.values()),
            sha256=drawn.sha256,
            source=str(file),
            is_sentiment140=True,
            rows=drawn.rows,
            duplicates=drawn.duplicates,
            dropped=drawn.duplicates if config.deduplicate else 0,
        )
    return _load_carefully(file, config)


def _load_carefully(file: Path | None, config: DataConfig) -> Dataset:
    """Read the whole table: what any file may be, and what is wrong with it."""
    content, name = _content(file)
    table = _read_table(content, name, config)
    if table.empty:
        raise DataError(f"{name}: holds no texts")
    known_layout = table.attrs.get("sentiment140", False)
    words = config.labels or (_SENTIMENT140_LABELS if known_layout else None)
    frame, labels = _label_words(table, words, name)
    repeated = frame.duplicated("text")
    rows, duplicates = len(frame), int(repeated.sum())
    if config.deduplicate:
        frame = frame[~repeated].reset_index(drop=True)
    extra = None
    if config.sample_size is not None:
        if config.sample_size > len(frame):
            left = f" ({rows} before repeated texts were dropped)" if len(frame) < rows else ""
            raise DataError(
                f"{name}: data.sample_size is {config.sample_size}, but there are {len(frame)}"
                f" texts{left}; lower it, or take all with --set data.sample_size=null"
            )
        frame, everything = frame.sample(config.sample_size, random_state=config.sample_seed), frame
        extra = _extra(everything, frame, config, name)
    elif config.extra_test_size:
        raise DataError(
            "data.extra_test_size: with data.sample_size: null all texts are in the sample already"
        )
    return Dataset(
        frame=frame,
        extra=extra,
        labels=labels,
        sha256=hashlib.sha256(content).hexdigest(),
        source=name,
        is_sentiment140=known_layout and file is not None,
        rows=rows,
        duplicates=duplicates,
        dropped=duplicates if config.deduplicate else 0,
    )


def _extra(
    everything: pd.DataFrame, sample: pd.DataFrame, config: DataConfig, name: str
) -> pd.DataFrame | None:
    """Draw test texts, stratified by label, from those that are not in the sample."""
    size = config.extra_test_size
    if not size:
        return None
    rest = everything.drop(sample.index)
    rest = rest[~rest["text"].isin(sample["text"])].drop_duplicates("text")
    if size > len(rest):
        raise DataError(
            f"{name}: data.extra_test_size is {size}, but only {len(rest)} texts are not in the"
            " sample; lower it, or data.sample_size"
        )
    if size == len(rest):
        return rest
    try:
        extra, _ = train_test_split(
            rest, train_size=size, stratify=rest["label"], random_state=config.sample_seed
        )
    except ValueError as error:
        raise DataError(f"{name}: data.extra_test_size {size}: {error}") from None
    found: pd.DataFrame = extra
    return found


class TrialSplits:
    """One split per trial: each is described, and made anew whenever it is asked for.

    The texts of thousands of trials would fill the memory, and a machine that runs one trial needs
    one split.
    """

    def __init__(self, dataset: Dataset, config: RunConfig) -> None:
        self._dataset, self._test_fraction = dataset, config.data.test_fraction
        self._seeds = range(config.seed, config.seed + config.trials)
        extra = () if dataset.extra is None else _examples(dataset.extra)
        self._shared: dict[str, Any] = {
            "extra": extra,
            "extra_sha256": _hash(extra) if extra else "",
            "origin": signature_part(config.data, dataset.sha256),
            "duplicates": dataset.duplicates,
            "dropped": dataset.dropped,
        }
        self.summaries = tuple(self._make(k).summary for k in range(len(self._seeds)))

    def __getitem__(self, index: int) -> Split:
        """Make the split of trial `index + 1`; raises DataError where it is not as described."""
        split = self._make(index)
        if split.summary != self.summaries[index]:  # by another version of scikit-learn
            raise DataError(
                f"trial {split.trial}: its split came out otherwise than where the run began;"
                " have the same versions of tgsent and scikit-learn on all machines"
            )
        return split

    def _make(self, index: int) -> Split:
        split = _split(self._dataset, self._test_fraction, index + 1, self._seeds[index])
        return replace(split, **self._shared)


def signature_part(config: DataConfig, sha256: str) -> str:
    """Return the part of a signature that names what the splits were made of."""
    size = "all" if config.sample_size is None else config.sample_size
    return (
        f"data:{sha256[:12]}|sample:{size}@{config.sample_seed}"
        f"|repeats:{'dropped' if config.deduplicate else 'kept'}|test:{config.test_fraction:g}"
        f"|extra:{config.extra_test_size}"
    )


def make_splits(dataset: Dataset, config: RunConfig) -> TrialSplits:
    """Split the sample once per trial, stratified by label; every model gets the same splits.

    Trial k is scikit-learn's `train_test_split` with `random_state = seed + k - 1`. Raises
    DataError where a label has no text in one of the parts.
    """
    return TrialSplits(dataset, config)


class ValidationSplits:
    """Splits of the texts that no trial tests, to choose settings by; they share one test part.

    Number k trains on the k-th of the given shares of what is left for training; as many of each
    label as there are in all. Raises DataError where too few texts are left.
    """

    def __init__(
        self,
        splits: TrialSplits,
        labels: Sequence[str],
        sweep: SweepConfig,
        shares: Sequence[float],
    ) -> None:
        first = splits[0]
        tested = {e.text for k in range(len(splits.summaries)) for e in splits[k].tested}
        # each text once, so that no validation text has been trained on
        distinct = {example.text: example for example in reversed(first.train)}
        left = [example for text, example in distinct.items() if text not in tested]
        train, validation = _cut_off(left, sweep.validation_fraction, sweep.seed)
        self._splits = []
        for number, share in enumerate(shares, start=1):
            part = train if share == 1 else _cut_off(train, 1 - share, sweep.seed)[0]
            for name, examples in (("training", part), ("validation", validation)):
                if missing := set(labels) - {example.label for example in examples}:
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

    @property
    def summaries(self) -> tuple[SplitSummary, ...]:
        """Describe all of them."""
        return tuple(split.summary for split in self._splits)

    def __getitem__(self, index: int) -> Split:
        """Give the split of round `index + 1`."""
        return self._splits[index]


def _cut_off(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Cut a fraction off, stratified by label."""
    labels = [example.label for example in examples]
    try:
        kept, cut = train_test_split(
            list(examples), test_size=fraction, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(
            f"sweep: {len(examples)} texts that no trial tests cannot be split: {error};"
            " have more texts, or fewer trials"
        ) from None
    return kept, cut


def _split(dataset: Dataset, test_fraction: float, trial: int, seed: int) -> Split:
    counts = Counter(dataset.frame["label"].tolist())
    advice = "add texts of it, drop it, or raise data.sample_size or data.test_fraction"
    for label in dataset.labels:
        if counts[label] < 2:
            raise DataError(
                f'{dataset.source}: the label "{label}" has {_texts(dataset, label)} of the'
                f" {len(dataset.frame)} sampled texts, and a split needs at least 2: {advice}"
            )
    try:
        train, test = train_test_split(
            dataset.frame,
            test_size=test_fraction,
            stratify=dataset.frame["label"],
            random_state=seed,
        )
    except ValueError as error:
        raise DataError(
            f"{dataset.source}: data.test_fraction {test_fraction} cannot split"
            f" {len(dataset.frame)} texts of {len(dataset.labels)} labels: {error}"
        ) from None
    parts = {"training": _examples(train), "test": _examples(test)}
    for part, examples in parts.items():
        for label in dataset.labels:
            if not any(example.label == label for example in examples):
                raise DataError(
                    f'{dataset.source}: the label "{label}" has {_texts(dataset, label)},'
                    f" but none in the {part} part of trial {trial}"
                    f" (data.test_fraction {test_fraction}): {advice}"
                )
    train_texts = {example.text for example in parts["training"]}
    return Split(
        trial=trial,
        seed=seed,
        train=parts["training"],
        test=parts["test"],
        sha256=_hash(parts["training"], parts["test"]),
        overlap=sum(example.text in train_texts for example in parts["test"]),
    )


def _texts(dataset: Dataset, label: str) -> str:
    """Say how many texts of the sample have a label, and in which rows of the file."""
    rows = dataset.frame["row"][dataset.frame["label"] == label].sort_values()
    return f"{len(rows)} ({_rows(rows)})" if len(rows) else "none"


def _examples(frame: pd.DataFrame) -> tuple[Example, ...]:
    # lists, as going through pandas' strings one by one takes several times as long
    return tuple(map(Example, frame["text"].tolist(), frame["label"].tolist()))


def _hash(*parts: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        rows = [[example.text, example.label] for example in part]
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()


def _file(path: str, progress: Progress | None) -> Path | None:
    """Name the file with the texts, fetched where need be; None for the shipped sample."""
    if path == "sample":
        return None
    return find_sentiment140(progress) if path == "sentiment140" else Path(path).expanduser()


def _content(file: Path | None) -> tuple[bytes, str]:
    """Give the bytes of the file and what to call it."""
    if file is None:
        return shipped("data/sample_tweets.csv"), "sample_tweets.csv"
    try:
        return file.read_bytes(), str(file)
    except OSError as error:
        raise DataError(
            f"{file}: cannot read the data: {error.strerror}; data.path is a file, or one of"
            " sentiment140, sample"
        ) from None
    except ValueError as error:
        raise DataError(f"{str(file)!r}: cannot read the data: {error}") from None


def _may_have_sentiment140_layout(file: Path, config: DataConfig) -> bool:
    """Tell whether the settings leave the layout to be recognised, in its own encoding."""
    encoding = codecs.lookup(config.encoding or "iso-8859-1").name
    columns = (config.text_column, config.label_column)
    return file.suffix.lower() == ".csv" and encoding == "iso8859-1" and columns == (None, None)


def _read_table(content: bytes, name: str, config: DataConfig) -> pd.DataFrame:
    """Read all rows into the columns `text`, `label` (strings) and `row` (number in the file)."""
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        table = _read_parquet(content, name, config)
    elif suffix in {".jsonl", ".ndjson"}:
        table = _read_jsonl(_decode(content, name, config.encoding or "utf-8-sig"), name, config)
    elif suffix in {".csv", ".tsv"}:
        table = _read_csv(content, name, config, "\t" if suffix == ".tsv" else ",")
    else:
        raise DataError(f"{name}: cannot tell the format; use .csv, .tsv, .jsonl or .parquet")
    for column in ("text", "label"):
        missing = table["row"][table[column].isna() | (table[column] == "")]
        if len(missing):
            raise DataError(f"{name}: {_rows(missing)} without a {column}")
    blank = table["row"][table["text"].str.strip() == ""]
    if len(blank):
        raise DataError(f"{name}: {_rows(blank)} with nothing but white space as text")
    return table


def _read_csv(content: bytes, name: str, config: DataConfig, delimiter: str) -> pd.DataFrame:
    sentiment140 = (
        config.text_column is None
        and config.label_column is None
        and has_sentiment140_layout(content)
    )
    default_encoding = "iso-8859-1" if sentiment140 else "utf-8-sig"
    text = _decode(content, name, config.encoding or default_encoding)
    if sentiment140:
        label, column = _SENTIMENT140_COLUMNS
        header = None
    else:
        column, label = _column(config.text_column, "text"), _column(config.label_column, "label")
        positions = {
            isinstance(c, int) for c in (config.text_column, config.label_column) if c is not None
        }
        if positions == {True, False}:
            raise DataError(
                "data.text_column and data.label_column: give two names (the file has a header)"
                " or two positions (it has none)"
            )
        header = None if positions == {True} else 0
    _check_width(text, name, delimiter, has_header=header == 0)
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=header,
            dtype=str,
            keep_default_na=False,
            na_values=[],
            skip_blank_lines=True,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error, ValueError) as error:
        raise DataError(f"{name}: cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first column for an index
        raise DataError(f"{name}: row 1 has more fields than the header")
    frame.columns = frame.columns.map(str)
    table = _pick(frame, column, label, name)
    table["row"] = range(1, len(table) + 1)
    table.attrs["sentiment140"] = sentiment140
    return table


def _check_width(text: str, name: str, delimiter: str, *, has_header: bool) -> None:
    """Refuse what pandas would take for an index, or take forever for."""
    with contextlib.suppress(csv.Error):  # of a field that is very long: no reason to refuse it
        rows = filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        first, second = ([*islice(rows, 2), [], []])[:2]
        if has_header and len(second) > len(first):
            raise DataError(f"{name}: row 1 has more fields than the header")
        if len(first) > _MOST_COLUMNS:
            raise DataError(f"{name}: {len(first)} columns; is the delimiter right?")


def _read_jsonl(text: str, name: str, config: DataConfig) -> pd.DataFrame:
    column, label = _column(config.text_column, "text"), _column(config.label_column, "label")
    rows = list(_json_rows(text, name, column, label))
    return pd.DataFrame(rows, columns=["text", "label", "row"])


def _json_rows(
    text: str, name: str, column: str, label: str
) -> Iterator[tuple[str | None, str | None, int]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: must be a JSON object with named values")
        for key in (column, label):
            if key not in row:
                raise DataError(f"{name}, line {number}: {_no_column(key, list(row))}")
        if not isinstance(row[column], str | None):
            raise DataError(f'{name}, line {number}: "{column}" must be a text')
        text_and_label = row[column], _as_text(row[label])
        if any(re.search("[\ud800-\udfff]", value or "") for value in text_and_label):
            raise DataError(f"{name}, line {number}: a character is cut in half (lone surrogate)")
        yield *text_and_label, number


def _read_parquet(content: bytes, name: str, config: DataConfig) -> pd.DataFrame:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        column, label = _column(config.text_column, "text"), _column(config.label_column, "label")
        for key in (column, label):
            if key not in names:
                raise DataError(f"{name}: {_no_column(key, names)}")
        read = file.read(columns=[column, label])
        # plain Python values, as a column with gaps would make fractions of whole numbers in pandas
        texts, labels = read[column].to_pylist(), read[label].to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from None
    if any(not isinstance(text, str | None) for text in texts):
        raise DataError(f'{name}: the column "{column}" must hold texts')
    return pd.DataFrame(
        {
            "text": pd.Series(texts, dtype=object),
            "label": pd.Series(map(_as_text, labels), dtype=object),
            "row": range(1, len(texts) + 1),
        }
    )


def _column(column: str | int | None, known: str) -> str:
    return known if column is None else str(column)


def _as_text(value: object) -> str | None:
    """Write a label value as it stands in a text file: `1`, `true`, `spam`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return json.dumps(value)
    return str(value)


def _pick(frame: pd.DataFrame, column: str, label: str, name: str) -> pd.DataFrame:
    for key in (column, label):
        if key not in frame.columns:
            raise DataError(f"{name}: {_no_column(key, list(frame.columns))}")
    return pd.DataFrame({"text": frame[column], "label": frame[label]})


def _no_column(key: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:10])) + (", ..." if len(names) > 10 else "")
    return f'no column "{key}"; there are: {shown}; set data.text_column and data.label_column'


def _decode(content: bytes, name: str, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {line}: not {encoding.removesuffix('-sig')} text (byte"
            f" {content[error.start]:#04x}); name the encoding, for example"
            " --set data.encoding=iso-8859-1"
        ) from None
    except (UnicodeError, LookupError, TypeError) as error:
        raise DataError(f"{name}: cannot be decoded as {encoding}: {error}") from None


def _label_words(
    table: pd.DataFrame, words: dict[str, str] | None, name: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Replace label values by label words; give the frame and all the words."""
    if words is None:
        values = sorted(table["label"].unique())
        if len(values) > 100:
            raise DataError(f"{name}: {len(values)} different labels; is data.label_column right?")
        words = {value: value for value in values}
    unknown = ~table["label"].isin(list(words))
    if unknown.any():
        shown = ", ".join(f'"{value}"' for value in table["label"][unknown].unique()[:5])
        raise DataError(
            f"{name}: {_rows(table['row'][unknown])} with a label value that data.labels does not"
            f" name: {shown}"
        )
    labels = tuple(words.values())
    if len(labels) < 2:
        raise DataError(f"{name}: one label only: {', '.join(labels)}; classifying needs two")
    if problem := label_words_problem(labels):
        raise DataError(f"{name}: {problem}")
    frame = table.assign(label=table["label"].map(words))
    return frame.reset_index(drop=True), labels


def _rows(numbers: pd.Series[int]) -> str:
    """Name the rows, the first ones where there are many."""
    shown = ", ".join(map(str, numbers.iloc[:5]))
    if len(numbers) == 1:
        return f"row {shown}"
    more = f", ... ({len(numbers)} rows)" if len(numbers) > 5 else ""
    return f"rows {shown}{more}"
