"""Sentiment140's layout read as a stream: places and fingerprints of all texts, the sample's texts.

The result is the one that `data` works out from the whole table, in a fraction of its time and
memory. Only regular files are read here: six quoted fields in every row, a known label, a text
that is not blank. `draw` gives None for any other, and `data` then reads it the careful way, which
takes whatever pandas takes and has the words for what is wrong.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import stat
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from tgsent.config import DataConfig
from tgsent.files import atomic_writer, cache_folder

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BLOCK = 1 << 20  # large enough that little time is lost between two blocks
_BUFFERS = 4
_LONGEST_ROW = 1 << 20
_SHORTEST_ROW = len('"0","","","","","x"')
_SPARE = 8
_QUOTE, _COMMA, _NEWLINE, _RETURN = b'",\n\r'
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_WHITE = np.array([chr(byte).isspace() for byte in range(256)])

# A file must be worth it, and so must the sample be small beside it.
_LEAST_CACHED_FILE = 32 << 20
_MOST_CACHED_TEXTS = 100_000
_CACHE_FORMAT = 1


@dataclass(frozen=True)
class Drawn:
    """The sample of a file and what was counted on the way; the frame is as in `Dataset`."""

    frame: pd.DataFrame
    sha256: str
    rows: int
    duplicates: int


class _IrregularError(Exception):
    """The file is for the careful way."""


def has_sentiment140_layout(content: bytes) -> bool:
    """Recognise six columns without a header: label 0, 2 or 4, id, date, query, user, text."""
    first_line = re.split("[\r\n]", content[:10_000].decode("iso-8859-1"), maxsplit=1)[0]
    fields = next(csv.reader([first_line]), [])
    return len(fields) == 6 and fields[0] in {"0", "2", "4"} and fields[1].isdecimal()


def draw(file: Path, config: DataConfig, words: dict[str, str]) -> Drawn | None:
    """Draw the sample of a regular file in Sentiment140's layout; None for any other file.

    `words` are the label words by value in the file. The sample of a large file is kept in the
    cache folder and found again by the file's content.
    """
    try:
        before = file.stat()
        if not stat.S_ISREG(before.st_mode):  # a pipe can be read only once
            return None
        with file.open("rb", buffering=0) as raw:
            if not has_sentiment140_layout(raw.read(10_000)):
                return None
            entry = _entry(before.st_size, config, words)
            if entry and (kept := _kept(entry)) and kept.sha256 == _sha256(raw):
                return kept
            drawn = _draw(raw, config, words)
            after = os.fstat(raw.fileno())
    except (_IrregularError, OSError, ValueError):
        return None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return None  # written to meanwhile, and the sample's texts were read after the counting
    if entry:
        _keep(entry, drawn)
    return drawn


def _draw(raw: FileIO, config: DataConfig, words: dict[str, str]) -> Drawn:
    table = _scan(raw)
    values = {value: words.get(chr(value)) for value in np.flatnonzero(np.bincount(table.labels))}
    with ThreadPoolExecutor(1) as worker:  # drawing need not wait for what is only counted
        marking = worker.submit(_repeated, raw, table)
        kept = np.flatnonzero(~marking.result()) if config.deduplicate else None
        chosen = pd.DataFrame(index=pd.RangeIndex(len(table) if kept is None else len(kept)))
        if None in values.values() or len(chosen) < (config.sample_size or 1):
            raise _IrregularError
        if config.sample_size is not None:
            chosen = chosen.sample(config.sample_size, random_state=config.sample_seed)
        rows = chosen.index.to_numpy() if kept is None else kept[chosen.index]
        frame = pd.DataFrame(
            {
                "text": [_plain(text) for text in _texts(raw, table, rows)],
                "label": [values[value] for value in table.labels[rows]],
                "row": rows + 1,
            },
            index=chosen.index,
        )
        duplicates = int(marking.result().sum())
    return Drawn(frame, table.sha256, len(table), duplicates)


def _plain(text: bytes) -> str:
    return text.replace(b'""', b'"').decode("iso-8859-1")


# ------------------------------------------------------------------------------- the whole file


@dataclass(frozen=True)
class _Table:
    """Every row of the file, without its text: for a million and a half of them, 40 MB."""

    starts: _Array
    lengths: _Array
    labels: _Array
    """Labels, each the one byte that it is in the file."""
    signatures: _Array
    """Equal for equal texts, and nearly always different for different ones."""
    sha256: str

    def __len__(self) -> int:
        return len(self.starts)


def _scan(raw: FileIO) -> _Table:
    """Find all texts; a second thread reads ahead and hashes the file."""
    digest = hashlib.sha256()

    def read(buffer: bytearray) -> int:
        room = memoryview(buffer)[_LONGEST_ROW : _LONGEST_ROW + _BLOCK]
        count = raw.readinto(room) or 0
        digest.update(room[:count])
        return count

    # rather too long than put together in the end: memory that is not written to costs nothing
    most = os.fstat(raw.fileno()).st_size // _SHORTEST_ROW + 1
    table = [np.empty(most, kind) for kind in (np.int64, np.int32, np.uint8, np.uint64)]
    rest, place, total, more = b"", 0, 0, True
    raw.seek(0)
    with ThreadPoolExecutor(1) as worker:
        # what is read has room before it, for the begun row of the block before
        buffers = [bytearray(_LONGEST_ROW + _BLOCK + _SPARE) for _ in range(_BUFFERS)]
        reading = deque((buffer, worker.submit(read, buffer)) for buffer in buffers)
        while more:
            buffer, count = reading[0][0], reading.popleft()[1].result()
            begin, end, more = _LONGEST_ROW - len(rest), _LONGEST_ROW + count, count > 0
            if begin < 0:
                raise _IrregularError  # a row that is longer than the room for it
            buffer[begin:_LONGEST_ROW] = rest
            if not more:  # a line end and the quote of a row that does not come
                mark = b'"' if rest.endswith(b"\n") else b'\n"'
                buffer[end : end + len(mark)] = mark
                end += len(mark)
            block = _rows_of(buffer, begin, end)
            _refuse_blank(buffer, begin, block)
            signatures = _sign(buffer, block.starts + begin, block.lengths)
            new = (block.starts + place, block.lengths, block.labels, signatures)
            for column, values in zip(table, new, strict=True):
                column[total : total + len(values)] = values
            rest, place = bytes(buffer[begin + block.next_row : end]), place + block.next_row
            total += len(signatures)
            reading.append((buffer, worker.submit(read, buffer)))
    if rest != b'"':  # the one that ended the last row
        raise _IrregularError
    starts, lengths, labels, signatures = (column[:total] for column in table)
    return _Table(starts, lengths, labels, signatures, digest.hexdigest())


class _Block(NamedTuple):
    """The whole rows of a block, by their places in it."""

    starts: _Array
    lengths: _Array
    labels: _Array
    next_row: int


def _rows_of(buffer: bytearray, begin: int, end: int) -> _Block:
    """Find the texts of all whole rows, of which one begins the block.

    Outside of quotes there may be nothing but one comma or one line end, so that quotes open and
    close by turns; two that touch are one within a text.
    """
    view = np.frombuffer(buffer, np.uint8)[begin:end]
    quotes = np.flatnonzero(view == _QUOTE)
    if quotes[:1].tolist() != [0] or buffer.find(0, begin, end) >= 0:
        raise _IrregularError
    opening = quotes[2::2]
    closing = quotes[1::2][: len(opening)]
    between = opening - closing
    if between.min(initial=2) == 1:
        apart = between != 1
        opening, closing, between = opening[apart], closing[apart], between[apart]
    fields = len(opening) // 6 * 6
    opening, closing, between = opening[:fields], closing[:fields], between[:fields]
    _check_separators(view, closing, between)
    row_starts = np.concatenate((quotes[:1], opening[5::6]))
    if (closing[0::6] - row_starts[:-1] != 2).any():  # a label of more than one character
        raise _IrregularError
    starts = opening[4::6] + 1
    lengths = closing[5::6] - starts
    return _Block(starts, lengths, view[row_starts[:-1] + 1], int(row_starts[-1]))


def _check_separators(view: _Array, closing: _Array, between: _Array) -> None:
    """Raise where fields are not five times a comma apart and then a line end."""
    separators = view[closing + 1].reshape(-1, 6)
    if separators.tobytes() == b",,,,,\n" * len(separators) and (between == 2).all():
        return
    width = between.reshape(-1, 6)
    ends = separators[:, 5] == _NEWLINE
    ends |= (separators[:, 5] == _RETURN) & (view[closing[5::6] + 2] == _NEWLINE)
    wide = width[:, 5] == 2 + (separators[:, 5] == _RETURN)
    if not ((separators[:, :5] == _COMMA) & (width[:, :5] == 2)).all() or not (ends & wide).all():
        raise _IrregularError


def _refuse_blank(buffer: bytearray, begin: int, block: _Block) -> None:
    if not block.lengths.all():
        raise _IrregularError
    starts = block.starts + begin
    for index in np.flatnonzero(_WHITE[np.frombuffer(buffer, np.uint8)[starts]]).tolist():
        text = buffer[starts[index] : starts[index] + block.lengths[index]]
        if not text.decode("iso-8859-1").strip():
            raise _IrregularError


def _sign(buffer: bytearray, starts: _Array, lengths: _Array) -> _Array:
    """Mix the length and eight bytes from three places of each text into one number."""
    # a view of the eight bytes from every place on; numpy takes them unaligned
    words = np.ndarray((len(buffer) - 7,), "<u8", buffer, strides=(1,))
    room = np.maximum(lengths - 8, 0)
    too_many = (8 * np.maximum(8 - lengths, 0)).astype(np.uint64)  # bits past a short text's end
    signatures = lengths.astype(np.uint64)
    for offset in (0, room >> 1, room):
        signatures ^= words[starts + offset] << too_many
        signatures *= _MULTIPLIER
        signatures ^= signatures >> np.uint64(29)
    return signatures


# ------------------------------------------------------------------------------------ some texts


def _repeated(raw: FileIO, table: _Table) -> _Array:
    """Mark the rows whose text stands in an earlier row: equal signatures, then equal bytes."""
    ordered = np.sort(table.signatures)
    ordered = ordered[1:][ordered[1:] == ordered[:-1]]
    marks = np.zeros(1 << 22, bool)  # by the last bits, as looking up whole numbers is slow
    last_bits = np.uint32(len(marks) - 1)
    marks[ordered.astype(np.uint32) & last_bits] = True
    suspects = np.flatnonzero(marks[table.signatures.astype(np.uint32) & last_bits])
    repeated = np.zeros(len(table), bool)
    seen: set[bytes] = set()
    for row, text in zip(suspects.tolist(), _texts(raw, table, suspects), strict=True):
        repeated[row] = text in seen
        seen.add(text)
    return repeated


def _texts(raw: FileIO, table: _Table, rows: _Array) -> list[bytes]:
    """Read the texts of some rows, in the order given, as they stand between their quotes."""
    texts = [b""] * len(rows)
    order = np.argsort(rows, kind="stable")
    starts, lengths = table.starts[rows[order]].tolist(), table.lengths[rows[order]].tolist()
    file = raw.fileno()
    for index, start, length in zip(order.tolist(), starts, lengths, strict=True):
        texts[index] = os.pread(file, length, start)  # two threads may do so at once
    return texts


# ------------------------------------------------------------------------------------- the cache


def _entry(size: int, config: DataConfig, words: dict[str, str]) -> Path | None:
    """Name the cache's file for such a sample of a file of this size, if it is worth one."""
    if size < _LEAST_CACHED_FILE or (config.sample_size or size) > _MOST_CACHED_TEXTS:
        return None
    recipe = [_CACHE_FORMAT, size, config.deduplicate, config.sample_size, config.sample_seed]
    key = hashlib.sha256(json.dumps([*recipe, list(words.items())]).encode()).hexdigest()
    return cache_folder() / "samples" / f"{key[:32]}.json"


def _kept(entry: Path) -> Drawn | None:
    """Read a sample that an earlier run has drawn; None where there is none or it is damaged."""
    try:
        seal, content = entry.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(content).hexdigest().encode() != seal:
        return None
    values = json.loads(content)
    return Drawn(pd.DataFrame(values.pop("frame"), index=values.pop("index")), **values)


def _keep(entry: Path, drawn: Drawn) -> None:
    values = {
        "frame": {name: column.tolist() for name, column in drawn.frame.items()},
        "index": drawn.frame.index.to_list(),
        "sha256": drawn.sha256,
        "rows": drawn.rows,
        "duplicates": drawn.duplicates,
    }
    content = json.dumps(values).encode()
    seal = hashlib.sha256(content).hexdigest().encode()
    # the sample is drawn: that it cannot be kept only costs the next start its time
    with contextlib.suppress(OSError), atomic_writer(entry, durable=False) as file:
        file.write(seal + b"\n" + content)


def _sha256(raw: FileIO) -> str:
    raw.seek(0)
    return hashlib.file_digest(raw, "sha256").hexdigest()
