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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from tgsent.cache import cache_folder, placing
from tgsent.config import DataConfig

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BLOCK = 1 << 20  # large enough that little time is lost between two blocks
_WINDOW = 1 << 10  # texts that are wanted lie far apart
_BUFFERS = 4
_LONGEST_ROW = 1 << 20
_QUOTE, _COMMA, _NEWLINE, _RETURN = b'",\n\r'
_ROW_ENDS = np.array([_COMMA] * 5 + [_NEWLINE], np.uint8)
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
        kept = np.flatnonzero(~marking.result()) if config.deduplicate else np.arange(len(table))
        if None in values.values() or len(kept) < (config.sample_size or 1):
            raise _IrregularError
        chosen = pd.Series(kept)
        if config.sample_size is not None:
            chosen = chosen.sample(config.sample_size, random_state=config.sample_seed)
        repeated = marking.result()
    rows = chosen.to_numpy()
    frame = pd.DataFrame(
        {
            "text": [_plain(text) for text in _texts(raw, table, rows)],
            "label": [values[value] for value in table.labels[rows]],
            "row": rows + 1,
        },
        index=chosen.index,
    )
    return Drawn(frame, table.sha256, len(table), int(repeated.sum()))


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
    """Find all texts; a second thread checks and hashes what the first has found."""
    digest = hashlib.sha256()
    found: list[tuple[_Array, ...]] = []
    buffers = [bytearray(_BLOCK + _LONGEST_ROW + 8) for _ in range(_BUFFERS)]
    hashing: deque[Future[_Array]] = deque()
    signatures: list[_Array] = []
    rest, place, more = b"", 0, True
    raw.seek(0)
    with ThreadPoolExecutor(1) as worker:
        while more:
            if len(hashing) == _BUFFERS:  # the first of them has the buffer that comes next
                signatures.append(hashing.popleft().result())
            buffers.append(buffer := buffers.pop(0))
            end, more = _fill(buffer, rest, raw)
            block = _rows_of(buffer, end)
            new = memoryview(buffer)[len(rest) : end if more else len(rest)]
            hashing.append(worker.submit(_check_and_hash, digest, new, buffer, block))
            found.append((block.starts + place, block.lengths.astype(np.int32), block.labels))
            rest, place = bytes(buffer[block.next_row : end]), place + block.next_row
        signatures += [future.result() for future in hashing]
    if rest != b'"':  # the one that ended the last row
        raise _IrregularError
    starts, lengths, labels = map(np.concatenate, zip(*found, strict=True))
    return _Table(starts, lengths, labels, np.concatenate(signatures), digest.hexdigest())


def _fill(buffer: bytearray, rest: bytes, raw: FileIO) -> tuple[int, bool]:
    """Put the next block behind the rest of the last one; give its end, and whether it is one.

    At the end of the file, a line end and the quote of a row that does not come are put there.
    """
    begin = len(rest)
    if begin > _LONGEST_ROW:
        raise _IrregularError
    buffer[:begin] = rest
    if count := raw.readinto(memoryview(buffer)[begin : begin + _BLOCK]):
        return begin + count, True
    mark = b'"' if rest.endswith(b"\n") else b'\n"'
    buffer[begin : begin + len(mark)] = mark
    return begin + len(mark), False


class _Block(NamedTuple):
    """The whole rows of a buffer."""

    starts: _Array
    lengths: _Array
    labels: _Array
    closing: _Array
    """The closing quotes of all fields."""
    between: _Array
    """How far from there the next opening quote is."""
    next_row: int


def _rows_of(buffer: bytearray, end: int) -> _Block:
    """Find the fields of all whole rows; whether they are regular is for the other thread to see.

    The buffer begins with a row. Outside of quotes there may be nothing but one comma or one line
    end, so that quotes open and close by turns; two that touch are one within a text.
    """
    view = np.frombuffer(buffer, np.uint8, end)
    quotes = np.flatnonzero(view == _QUOTE)
    if quotes[:1].tolist() != [0] or buffer.find(0, 0, end) >= 0:
        raise _IrregularError
    opening = quotes[2::2]
    closing = quotes[1::2][: len(opening)]
    between = opening - closing
    if between.min(initial=2) == 1:
        apart = between != 1
        opening, closing, between = opening[apart], closing[apart], between[apart]
    fields = len(opening) // 6 * 6
    opening, closing, between = opening[:fields], closing[:fields], between[:fields]
    row_starts = np.concatenate((quotes[:1], opening[5::6]))
    starts = opening[4::6] + 1
    lengths = closing[5::6] - starts
    labels = view[row_starts[:-1] + 1]
    if (closing[0::6] - row_starts[:-1] != 2).any():  # a label of more than one character
        raise _IrregularError
    return _Block(starts, lengths, labels, closing, between, int(row_starts[-1]))


def _check_separators(view: _Array, closing: _Array, between: _Array) -> None:
    """Raise where fields are not five times a comma apart and then a line end."""
    separators = view[closing + 1].reshape(-1, 6)
    if (separators == _ROW_ENDS).all() and (between == 2).all():
        return
    width = between.reshape(-1, 6)
    ends = separators[:, 5] == _NEWLINE
    ends |= (separators[:, 5] == _RETURN) & (view[closing[5::6] + 2] == _NEWLINE)
    wide = width[:, 5] == 2 + (separators[:, 5] == _RETURN)
    if not ((separators[:, :5] == _COMMA) & (width[:, :5] == 2)).all() or not (ends & wide).all():
        raise _IrregularError


def _check_and_hash(digest: Any, new: memoryview, buffer: bytearray, block: _Block) -> _Array:
    """Hash what is new in the buffer, refuse irregular rows and blank texts, sign the others."""
    digest.update(new)
    view = np.frombuffer(buffer, np.uint8)
    starts, lengths = block.starts, block.lengths
    _check_separators(view, block.closing, block.between)
    if not lengths.all():
        raise _IrregularError
    for index in np.flatnonzero(_WHITE[view[starts]]).tolist():
        text = buffer[starts[index] : starts[index] + lengths[index]]
        if not text.decode("iso-8859-1").strip():
            raise _IrregularError
    return _sign(buffer, starts, lengths)


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
    marks = np.zeros(1 << 22, bool)  # by the last bits, as looking up whole numbers is slow
    last_bits = np.uint64(len(marks) - 1)
    marks[ordered[1:][ordered[1:] == ordered[:-1]] & last_bits] = True
    suspects = np.flatnonzero(marks[table.signatures & last_bits])
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
    starts, lengths = table.starts[rows[order]], table.lengths[rows[order]]
    block, place = b"", 0
    places = zip(order.tolist(), starts.tolist(), lengths.tolist(), strict=True)
    for index, start, length in places:
        if start + length > place + len(block):
            raw.seek(start)
            block, place = raw.read(max(_WINDOW, length)), start
        texts[index] = block[start - place : start - place + length]
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
        "frame": drawn.frame.to_dict("list"),
        "index": drawn.frame.index.to_list(),
        "sha256": drawn.sha256,
        "rows": drawn.rows,
        "duplicates": drawn.duplicates,
    }
    content = json.dumps(values).encode()
    seal = hashlib.sha256(content).hexdigest().encode()
    # the sample is drawn: that it cannot be kept only costs the next start its time
    with contextlib.suppress(OSError), placing(entry, durable=False) as file:
        file.write(seal + b"\n" + content)


def _sha256(raw: FileIO) -> str:
    raw.seek(0)
    return hashlib.file_digest(raw, "sha256").hexdigest()
