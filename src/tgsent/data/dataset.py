"""The texts of an experiment: read, checked, deduplicated and sampled."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter
from sklearn.model_selection import train_test_split

from tgsent import __version__
from tgsent.config import DataConfig, label_words_problem, shipped
from tgsent.data.readers import read_table, show_rows
from tgsent.data.sentiment140 import find_sentiment140
from tgsent.errors import DataError
from tgsent.files import atomic_writer, cache_folder
from tgsent.records import Example, Progress, SplitSummary

_SENTIMENT140_LABELS = {"0": "negative", "4": "positive"}
_MOST_LABELS = 100
_LEAST_CACHED_FILE = 32 << 20
"""In bytes. A file of 1.6 million rows takes 8 s to read, and its sample 0.6 s."""
_MOST_CACHED_TEXTS = 100_000


@dataclass(frozen=True)
class Dataset:
    """The texts of one experiment, sampled, with label words, and where they come from."""

    texts: tuple[str, ...]
    """The sample, in the order drawn."""
    text_labels: tuple[str, ...]
    """The label word of each text."""
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
    name, content = _content(config.path, progress)
    sha256 = hashlib.sha256(content).hexdigest()
    entry = _cache_entry(len(content), sha256, config)
    dataset = _cached(entry) if entry else None
    if dataset is None:
        dataset = _sampled(content, name, config, sha256)
        if entry:
            # a sample that cannot be kept only costs the next start some time
            with contextlib.suppress(OSError), atomic_writer(entry) as file:
                file.write(gzip.compress(TypeAdapter(Dataset).dump_json(dataset), 1))
    return replace(dataset, source=name)


def _sampled(content: bytes, name: str, config: DataConfig, sha256: str) -> Dataset:
    frame, is_sentiment140 = read_table(content, name, config)
    words = config.labels or (_SENTIMENT140_LABELS if is_sentiment140 else None)
    frame, labels = _label_words(frame, words, name)
    repeated = frame.duplicated("text")
    rows = len(frame)
    if config.deduplicate:
        frame = frame[~repeated].reset_index(drop=True)
    sample = _draw(frame, config, name)
    return Dataset(
        texts=tuple(sample["text"].tolist()),
        text_labels=tuple(sample["label"].tolist()),
        labels=labels,
        sha256=sha256,
        source=name,
        is_sentiment140=is_sentiment140 and config.path != "sample",
        rows=rows,
        duplicates=int(repeated.sum()),
        dropped=rows - len(frame),
        extra=_draw_extra(frame, sample, config, name),
    )


def _cache_entry(size: int, sha256: str, config: DataConfig) -> Path | None:
    """Return where the sample of a large file is kept; None where reading it again is as fast."""
    if size < _LEAST_CACHED_FILE or (config.sample_size or size) > _MOST_CACHED_TEXTS:
        return None
    settings = config.model_dump_json(exclude={"test_fraction"})
    key = f"{__version__}|{pd.__version__}|{sha256}|{settings}"
    return cache_folder() / "samples" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json.gz"


def _cached(entry: Path) -> Dataset | None:
    try:
        return TypeAdapter(Dataset).validate_json(gzip.decompress(entry.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError):  # there is none, or it is damaged
        return None


def _content(path: str, progress: Progress | None) -> tuple[str, bytes]:
    """Return the name of the file that `data.path` stands for, and its content."""
    if path == "sample":
        return "sample_tweets.csv", shipped("data/sample_tweets.csv")
    is_fetched = path == "sentiment140"
    file = find_sentiment140(progress) if is_fetched else Path(path).expanduser()
    try:
        return str(file), file.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{file}: cannot read the data: {reason}; data.path is a file, or one of"
            " sentiment140, sample"
        ) from None


def _label_words(
    frame: pd.DataFrame, words: dict[str, str] | None, name: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Replace label values by label words; return the frame and all the words."""
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
        raise DataError(f"{name}: {problem}; set data.labels to other words")
    return frame.assign(label=frame["label"].map(words)), labels


def _draw(frame: pd.DataFrame, config: DataConfig, name: str) -> pd.DataFrame:
    """Draw the sample."""
    if config.sample_size is None:
        return frame
    if config.sample_size > len(frame):
        raise DataError(
            f"{name}: data.sample_size is {config.sample_size}, but only {len(frame)} texts are"
            " left; lower it, or take all with --set data.sample_size=null"
        )
    return frame.sample(config.sample_size, random_state=config.sample_seed)


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
    if size < len(rest):
        try:
            rest, _ = train_test_split(
                rest, train_size=size, stratify=rest["label"], random_state=config.sample_seed
            )
        except ValueError as error:
            raise DataError(f"{name}: data.extra_test_size {size}: {error}") from None
    return tuple(map(Example, rest["text"].tolist(), rest["label"].tolist()))
