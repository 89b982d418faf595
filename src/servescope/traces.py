"""Traces: when real users asked, and for how much, read from a file into columns.

A file is CSV with a header, or JSON lines. Which of the known formats it has is told by the names
of its columns alone. Rows with 0 tokens are requests that failed: left out, and counted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from servescope.errors import BadInput
from servescope.plugins import one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TOKENS = 10_000_000
"""No length may exceed this: beyond it lies a slip of the finger."""

_CHUNK = 1 << 10  # more rows at once are slower: the garbage collector looks at them all
_LONGEST_S = 9e9  # int64 nanoseconds hold no more

T = TypeVar("T")
Cells = Sequence[Any]
Chunks = Callable[[Sequence[str]], Iterator[tuple[list[int], list[Cells]]]]
"""From names of columns to chunks of rows: the rows' lines, and each column's cells."""


class Format(NamedTuple):
    """What the columns of one format are called."""

    time: str
    unit: str
    input_tokens: str
    output_tokens: str
    session: tuple[str, ...] = ()
    hash_ids: tuple[str, ...] = ()


FORMATS = {
    "servescope": Format(
        *("time_s", "s", "input_tokens", "output_tokens"),
        session=("session",),
        hash_ids=("hash_ids", "prefix_hash_ids"),
    ),
    "Azure": Format("TIMESTAMP", "utc", "ContextTokens", "GeneratedTokens"),
    "BurstGPT": Format("Timestamp", "s", "Request tokens", "Response tokens", ("Session ID",)),
    "Mooncake": Format("timestamp", "ms", "input_length", "output_length", hash_ids=("hash_ids",)),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """The requests of a trace as columns, sorted by time."""

    time_s: NDArray[np.float64]
    """Since the first request."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    session: NDArray[np.int64] | None = None
    """The first row of the session that a row belongs to; None where the file has none."""
    hash_ids: list[NDArray[np.uint64] | None] | None = None
    """Of the blocks that a row's prompt consists of; None where there are none."""
    left_out: int = 0
    """Rows with 0 tokens."""

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass(frozen=True, eq=False)
class Rows:
    """Lengths that were read; equal to itself alone, so that it can be a key."""

    tokens: NDArray[np.int64]
    """Shape (n,), or (n, 2) for pairs of input and output."""


def read(field: str, path: str) -> Trace:
    """The trace in a file; the same object until the file changes. Raises BadInput."""
    return _once(field, _trace, path)


def read_pairs(field: str, path: str) -> Rows:
    """Pairs of input and output lengths, from a trace or from a file like one without times.

    Raises BadInput naming `field`.
    """
    return _once(field, _pairs, path)


def read_lengths(field: str, path: str, column: str | None) -> Rows:
    """Lengths from a column, or from a file with one whole number a line.

    `column` may be None where there is only one. Raises BadInput naming `field`.
    """
    return _once(field, _lengths, path, column)


def _once(field: str, reader: Callable[..., T], path: str, *rest: str | None) -> T:
    try:
        place = Path(path).expanduser()
        found = place.stat()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(field, path, error) from None
    try:
        # when its time or size has changed it is another file
        return reader((str(place), found.st_mtime_ns, found.st_size), *rest)
    except BadInput as error:
        raise BadInput(field, error.value, error.want) from None


def _unreadable(field: str, path: str, error: Exception) -> BadInput:
    reason = error.strerror if isinstance(error, OSError) else error
    return BadInput(field, path, f"want a file that can be read: {reason}")


@lru_cache(maxsize=4)
def _trace(file: tuple[str, int, int]) -> Trace:
    path = file[0]
    table = _open(path)
    known = _format(path, table.names, timed=True)
    wanted: dict[str, Column] = {
        known.time: _CLOCKS[known.unit],
        known.input_tokens: WHOLE,
        known.output_tokens: WHOLE,
        **{name: SESSION for name in known.session if name in table.names or table.sparse},
        **{name: HASH_IDS for name in known.hash_ids if name in table.names or table.sparse},
    }
    found = _columns(path, table.chunks, wanted)
    times_ns, inputs, outputs = (np.concatenate(found[name]) for name in list(wanted)[:3])
    asked = (inputs > 0) & (outputs > 0)
    order = np.argsort(times_ns, kind="stable")
    rows = order[asked[order]]
    if not len(rows):
        raise BadInput("", path, "want at least one row with tokens asked and answered")
    sessions, blocks = (_any(found, names) for names in (known.session, known.hash_ids))
    return Trace(
        time_s=(times_ns[rows] - times_ns[rows[0]]) / 1e9,
        input_tokens=inputs[rows],
        output_tokens=outputs[rows],
        session=_first_rows([sessions[row] for row in rows.tolist()]) if sessions else None,
        hash_ids=[blocks[row] for row in rows.tolist()] if blocks else None,
        left_out=len(times_ns) - len(rows),
    )


@lru_cache(maxsize=4)
def _pairs(file: tuple[str, int, int]) -> Rows:
    path = file[0]
    table = _open(path)
    known = _format(path, table.names, timed=False)
    wanted = dict.fromkeys((known.input_tokens, known.output_tokens), WHOLE)
    found = [np.concatenate(column) for column in _columns(path, table.chunks, wanted).values()]
    return _positive(path, np.stack(found, axis=1))


@lru_cache(maxsize=8)
def _lengths(file: tuple[str, int, int], column: str | None) -> Rows:
    path = file[0]
    names, chunks, _ = _open(path)
    if column is None and len(names) == 1:
        column = names[0]
    if column not in names:
        raise BadInput("", path, f"want column=...: {one_of(column or '', names)}")
    return _positive(path, np.concatenate(_columns(path, chunks, {column: WHOLE})[column]))


def _positive(path: str, lengths: NDArray[np.int64]) -> Rows:
    """Those without a 0."""
    kept = lengths[(lengths > 0).reshape(len(lengths), -1).all(axis=1)]
    if not len(kept):
        raise BadInput("", path, "want at least one row with lengths of 1 token or more")
    return Rows(kept)


def _format(path: str, names: Sequence[str], *, timed: bool) -> Format:
    for known in FORMATS.values():
        needed = {known.input_tokens, known.output_tokens, *([known.time] if timed else ())}
        if needed <= set(names):
            return known
    forms = "; ".join(
        f"{', '.join([f.time] * timed + [f.input_tokens, f.output_tokens])} ({name})"
        for name, f in FORMATS.items()
    )
    raise BadInput("", path, f"want columns {forms}; there are {', '.join(names) or 'none'}")


def _any(found: dict[str, list[Any]], names: Sequence[str]) -> list[Any]:
    """The first of the optional columns that says anything; empty when none does."""
    columns = (list(chain.from_iterable(found.get(name, ()))) for name in names)
    return next((column for column in columns if any(cell is not None for cell in column)), [])


def _first_rows(sessions: list[str | int | None]) -> NDArray[np.int64]:
    first: dict[str | int, int] = {}
    rows = (
        row if key in (None, "") else first.setdefault(key, row) for row, key in enumerate(sessions)
    )
    return np.fromiter(rows, np.int64, len(sessions))


# --- cells to columns -----------------------------------------------------------------------------


class Column(NamedTuple):
    """How the cells of a column are read."""

    want: str
    convert: Callable[[Cells], Any]
    """Raises ValueError, TypeError or OverflowError when any cell is not what it should be."""


def _of(cells: Cells, *kinds: type) -> Cells:
    if not set(map(type, cells)) <= set(kinds):  # not isinstance: True is no number here
        raise ValueError
    return cells


def _whole(cells: Cells) -> NDArray[np.int64]:
    found = np.fromiter(map(int, _of(cells, int, str)), np.int64, len(cells))
    if found.min() < 0 or found.max() > MOST_TOKENS:
        raise ValueError
    return found


def _seconds_to_ns(unit_s: float, cells: Cells) -> NDArray[np.int64]:
    found = np.fromiter(map(float, _of(cells, int, float, str)), np.float64, len(cells))
    if not (np.abs(found) * unit_s < _LONGEST_S).all():
        raise ValueError
    return np.rint(found * (unit_s * 1e9)).astype(np.int64)


def _utc_to_ns(cells: Cells) -> NDArray[np.int64]:
    plain = [cell.removesuffix("+00:00").removesuffix("Z") for cell in _of(cells, str)]
    if any("+" in cell or "-" in cell[10:] for cell in plain):  # another time zone
        raise ValueError
    found = np.array(plain, "datetime64[ns]")
    if np.isnat(found).any():
        raise ValueError
    return found.astype(np.int64)


def _keys(cells: Cells) -> Cells:
    return _of(cells, str, int, type(None))


def _blocks(cells: Cells) -> list[NDArray[np.uint64] | None]:
    lists = [cell for cell in _of(cells, list, type(None)) if cell is not None]
    if min(_of(list(chain.from_iterable(lists)), int), default=0) < 0:
        raise ValueError
    return [None if cell is None else np.array(cell, np.uint64) for cell in cells]


WHOLE = Column(f"a whole number from 0 to {MOST_TOKENS}", _whole)
SESSION = Column("a word or a whole number", _keys)
HASH_IDS = Column("a list of whole numbers from 0 up", _blocks)
_CLOCKS = {
    "s": Column("a time in seconds", partial(_seconds_to_ns, 1.0)),
    "ms": Column("a time in milliseconds", partial(_seconds_to_ns, 1e-3)),
    "utc": Column("a time in UTC such as 2023-11-16 18:17:03.98", _utc_to_ns),
}


def _columns(path: str, chunks: Chunks, wanted: dict[str, Column]) -> dict[str, list[Any]]:
    """Each column as a list of converted chunks; there is at least one."""
    found: dict[str, list[Any]] = {name: [] for name in wanted}
    for lines, columns in chunks(list(wanted)):
        for (name, column), cells in zip(wanted.items(), columns, strict=True):
            try:
                found[name].append(column.convert(cells))
            except (ValueError, TypeError, OverflowError):
                raise _first_fault(path, name, column, lines, cells) from None
    if not all(found.values()):
        raise BadInput("", path, "want at least one row")
    return found


def _first_fault(path: str, name: str, column: Column, lines: list[int], cells: Cells) -> BadInput:
    for line, cell in zip(lines, cells, strict=True):
        try:
            column.convert([cell])
        except (ValueError, TypeError, OverflowError):
            what = "nothing" if cell is None or cell == "" else repr(cell)
            return BadInput("", f"{path}:{line}", f"want {name} to be {column.want}, not {what}")
    return BadInput("", path, f"want {name} to be {column.want} in all rows")


# --- a file to cells ------------------------------------------------------------------------------


class Table(NamedTuple):
    """A file that has been opened."""

    names: list[str]
    """Of its columns; [''] where a number stands on each line."""
    chunks: Chunks
    sparse: bool
    """Any line may have more columns, or fewer."""


def _open(path: str) -> Table:
    if Path(path).exists() and not Path(path).is_file():
        raise BadInput("", path, "want a plain file that can be read")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("", path, f"want UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise _unreadable("", path, error) from None
    if text.lstrip()[:1] in ("{", "["):
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        (first,) = _decode(path, lines[:1], msgspec.json.Decoder(dict[str, Any]))
        return Table(list(first), partial(_json_chunks, path, lines), sparse=True)
    try:
        header = [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
    except csv.Error as error:
        raise BadInput("", f"{path}:1", f"want CSV: {error}") from None
    names = [""] if len(header) == 1 and header[0].isdecimal() else header
    return Table(names, partial(_csv_chunks, path, text, names), sparse=False)


def _csv_chunks(
    path: str, text: str, names: list[str], wanted: Sequence[str]
) -> Iterator[tuple[list[int], list[Cells]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    rows = ((reader.line_num, row) for row in reader if row)
    places = [names.index(name) for name in wanted]
    try:
        if names != [""]:
            next(rows, None)
        while chunk := list(islice(rows, _CHUNK)):
            odd = next((line for line, row in chunk if len(row) != len(names)), None)
            if odd is not None:
                want = f"want {len(names)} cells, as many as the first line has"
                raise BadInput("", f"{path}:{odd}", want)
            columns = list(zip(*(row for _, row in chunk), strict=True))
            yield [line for line, _ in chunk], [columns[place] for place in places]
    except csv.Error as error:
        raise BadInput("", f"{path}:{reader.line_num}", f"want CSV: {error}") from None


def _json_chunks(
    path: str, lines: list[tuple[int, str]], wanted: Sequence[str]
) -> Iterator[tuple[list[int], list[Cells]]]:
    keys = [(f"c{k}", Any, msgspec.field(name=name, default=None)) for k, name in enumerate(wanted)]
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(msgspec.defstruct("Row", keys))
    for begin in range(0, len(lines), _CHUNK):
        chunk = lines[begin : begin + _CHUNK]
        rows = _decode(path, chunk, decoder)
        cells: list[Cells] = [[getattr(row, key) for row in rows] for key, *_ in keys]
        yield [line for line, _ in chunk], cells


def _decode(path: str, lines: list[tuple[int, str]], decoder: msgspec.json.Decoder[T]) -> list[T]:
    try:
        return decoder.decode_lines("\n".join(text for _, text in lines))
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        if len(lines) > 1:
            for line in lines:
                _decode(path, [line], decoder)
        want = f"want a JSON object on each line: {error}"
        raise BadInput("", f"{path}:{lines[0][0]}", want) from None
