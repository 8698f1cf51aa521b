"""The texts of an experiment: read, checked, deduplicated and sampled."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

from tgsent import __version__
from tgsent.config import DataConfig, label_words_problem, shipped
from tgsent.data.readers import Table, read_table, show_rows
from tgsent.data.sentiment140 import find_sentiment140
from tgsent.errors import DataError
from tgsent.files import atomic_writer, cache_folder
from tgsent.records import Example, Progress, SplitSummary

_SENTIMENT140_LABELS = {"0": "negative", "4": "positive"}
_MOST_LABELS = 100
# Only the sample of a large file is kept, and only if it is small.
_LEAST_CACHED_FILE = 32 << 20
_MOST_CACHED_TEXTS = 100_000


@dataclass(frozen=True)
class Dataset:
    """The texts of one experiment, sampled, with label words, and where they come from."""

    texts: tuple[str, ...]
    """The sample, in the order drawn."""
    text_labels: tuple[str, ...]
    """The label word of each text."""
    row_numbers: tuple[int, ...]
    """The row of each text in the file, from 1."""
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
    extra: tuple[Example, ...] = ()
    """More test texts, from outside the sample."""

    def notes(self, splits: Sequence[SplitSummary]) -> list[str]:
        """Return what a user should know about these data, one line each."""
        notes = []
        if self.dropped:
            notes.append(f"{self.source}: {self.dropped} repeated texts were dropped")
        if any(split.overlap for split in splits):
            counts = ", ".join(f"{split.overlap} in trial {split.trial}" for split in splits)
            notes.append(
                f"{self.source}: test texts that are also in the training part: {counts};"
                " data.deduplicate: true avoids that"
            )
        return notes


def load_dataset(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Read, check, deduplicate and sample; `progress` shows a download, if there is one.

    The sample is `DataFrame.sample(sample_size, random_state=sample_seed)` of all rows that are
    left. Raises DataError for anything that is wrong with the file, UnavailableError for a data
    set that cannot be fetched.
    """
    if config.path == "sample":
        content = shipped("data/sample_tweets.csv")
        return replace(_load(content, "sample_tweets.csv", config), is_sentiment140=False)
    is_fetched = config.path == "sentiment140"
    file = find_sentiment140(progress) if is_fetched else Path(config.path).expanduser()
    if kept := _kept(file, config):
        return kept
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: cannot read the data: {error.strerror}; data.path is a file, or one of"
            " sentiment140, sample"
        ) from None
    except ValueError as error:
        raise DataError(f"{str(file)!r}: cannot read the data: {error}") from None
    dataset = _load(content, str(file), config)
    if entry := _entry(file, len(content), config):
        _keep(entry, dataset)
    return dataset


def _load(content: bytes, name: str, config: DataConfig) -> Dataset:
    table = read_table(content, name, config)
    frame, labels = _label_words(table, config.labels, name)
    repeated = frame.duplicated("text")
    rows, duplicates = len(frame), int(repeated.sum())
    if config.deduplicate:
        frame = frame[~repeated].reset_index(drop=True)
    sample, extra = _draw(frame, config, name, rows)
    return Dataset(
        texts=tuple(sample["text"].tolist()),
        text_labels=tuple(sample["label"].tolist()),
        row_numbers=tuple(sample["row"].tolist()),
        labels=labels,
        sha256=hashlib.sha256(content).hexdigest(),
        source=name,
        is_sentiment140=table.is_sentiment140,
        rows=rows,
        duplicates=duplicates,
        dropped=rows - len(frame),
        extra=extra,
    )


def _label_words(
    table: Table, words: dict[str, str] | None, name: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Replace label values by label words; return the frame and all the words."""
    frame = table.frame
    if words is None and table.is_sentiment140:
        words = _SENTIMENT140_LABELS
    if words is None:
        values = sorted(frame["label"].unique())
        if len(values) > _MOST_LABELS:
            raise DataError(f"{name}: {len(values)} different labels; is data.label_column right?")
        words = {value: value for value in values}
    unknown = ~frame["label"].isin(list(words))
    if unknown.any():
        shown = ", ".join(f'"{value}"' for value in frame["label"][unknown].unique()[:5])
        raise DataError(
            f"{name}: {show_rows(frame['row'][unknown].tolist())} with a label value that"
            f" data.labels does not name: {shown}"
        )
    labels = tuple(words.values())
    if len(labels) < 2:
        raise DataError(f"{name}: one label only: {', '.join(labels)}; classifying needs two")
    if problem := label_words_problem(labels):
        raise DataError(f"{name}: {problem}")
    return frame.assign(label=frame["label"].map(words)), labels


def _draw(
    frame: pd.DataFrame, config: DataConfig, name: str, rows: int
) -> tuple[pd.DataFrame, tuple[Example, ...]]:
    """Draw the sample and the extra test texts from what is left of so many `rows`."""
    if config.sample_size is None:
        if config.extra_test_size:
            raise DataError(
                "data.extra_test_size: with data.sample_size: null all texts are in the sample"
                " already"
            )
        return frame, ()
    if config.sample_size > len(frame):
        left = f" ({rows} before repeated texts were dropped)" if len(frame) < rows else ""
        raise DataError(
            f"{name}: data.sample_size is {config.sample_size}, but there are {len(frame)}"
            f" texts{left}; lower it, or take all with --set data.sample_size=null"
        )
    sample = frame.sample(config.sample_size, random_state=config.sample_seed)
    return sample, _draw_extra(frame, sample, config, name)


def _draw_extra(
    frame: pd.DataFrame, sample: pd.DataFrame, config: DataConfig, name: str
) -> tuple[Example, ...]:
    """Draw test texts, stratified by label, from those that are not in the sample."""
    size = config.extra_test_size
    if not size:
        return ()
    rest = frame.drop(sample.index)
    rest = rest[~rest["text"].isin(sample["text"])].drop_duplicates("text")
    if size > len(rest):
        raise DataError(
            f"{name}: data.extra_test_size is {size}, but only {len(rest)} texts are not in the"
            " sample; lower it, or data.sample_size"
        )
    if size == len(rest):
        return _examples(rest)
    try:
        extra, _ = train_test_split(
            rest, train_size=size, stratify=rest["label"], random_state=config.sample_seed
        )
    except ValueError as error:
        raise DataError(f"{name}: data.extra_test_size {size}: {error}") from None
    return _examples(extra)


def _examples(frame: pd.DataFrame) -> tuple[Example, ...]:
    return tuple(map(Example, frame["text"].tolist(), frame["label"].tolist()))


# ------------------------------------------------------------------------------------- the cache


def _entry(file: Path, size: int, config: DataConfig) -> Path | None:
    """Return where a sample of a file of this size is kept, or None if it is not worth keeping."""
    few = (config.sample_size or size) <= _MOST_CACHED_TEXTS and not config.extra_test_size
    if size < _LEAST_CACHED_FILE or not few:
        return None
    settings = config.model_dump_json(exclude={"path", "test_fraction"})
    recipe = [__version__, pd.__version__, size, file.suffix.lower(), settings]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    return cache_folder() / "samples" / f"{key[:32]}.json.gz"


def _kept(file: Path, config: DataConfig) -> Dataset | None:
    """Return the sample that an earlier run drew from the same content, or None.

    The entry is found by the size of the file and holds the hash of its content.
    """
    try:
        about = file.stat()
        entry = _entry(file, about.st_size, config) if stat.S_ISREG(about.st_mode) else None
        if entry is None:
            return None
        values = json.loads(gzip.decompress(entry.read_bytes()))  # which checks its checksum
        with file.open("rb", buffering=0) as raw:
            if hashlib.file_digest(raw, "sha256").hexdigest() != values["sha256"]:
                return None
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return Dataset(**{**values, "source": str(file)})
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError):
        return None  # damaged, or of another version


def _keep(entry: Path, dataset: Dataset) -> None:
    content = gzip.compress(json.dumps(vars(dataset)).encode(), 1)
    # a sample that cannot be kept only costs the next start some time
    with contextlib.suppress(OSError), atomic_writer(entry) as file:
        file.write(content)
