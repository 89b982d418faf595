"""Items whose prompts are read from files: reading, order and repeats, in one place for all."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from servescope.datasets import Item, Message, Setting, Turn
from servescope.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MOST_OUTPUT_TOKENS = 256
"""How long an answer may be when neither the data nor the user says."""

_LONGEST_CELL = 1 << 30


class _Rows(Protocol[T_co]):
    """A reader of the module csv."""

    @property
    def line_num(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as it was read."""

    prompt: str | tuple[Message, ...]
    output_tokens: int | None = None
    """The answer's length, or the most it may have, where the data says so."""
    pinned: bool = False
    """The answer is to have exactly `output_tokens`."""
    think_s: float | None = None
    """The pause before a later turn."""


def read_text(path: str) -> str:
    """The file's text, without a byte order mark; raises BadInput naming `--data`."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("--data", path, f"want UTF-8 text: {error.reason}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput("--data", path, f"want a file that can be read: {reason}") from None


def decode_json(text: str, place: str, what: str = "JSON") -> object:
    """The JSON value in `text`; raises BadInput naming `--data` and the `place` it stands at."""
    try:
        decoded: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadInput("--data", place, f"want {what}: {error}") from None
    return decoded


def json_lines(path: str, text: str) -> Iterator[tuple[dict[str, object], str]]:
    """The objects of a JSON lines file, each with its place; raises BadInput naming `--data`."""
    # not splitlines(): a JSON string may hold U+2028 and its like as they are
    for number, line in enumerate(text.split("\n"), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        record = decode_json(line, place)
        if not isinstance(record, dict):
            raise BadInput("--data", place, "want a JSON object on each line")
        yield record, place


def csv_header(path: str, text: str) -> list[str]:
    """The cells of the first line of a CSV file."""
    return next(_csv(path, csv.reader(io.StringIO(text, newline=""))), ([], ""))[0]


def csv_rows(
    path: str, text: str, header: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, object], str]]:
    """The rows of a CSV file by column, each with its place; raises BadInput naming `--data`.

    The first line names the columns, unless the file has no `header` and is given one here.
    """
    for row, place in _csv(path, csv.DictReader(io.StringIO(text, newline=""), header)):
        # cells beyond the header's have the key None
        yield {key: cell for key, cell in row.items() if key is not None}, place


def _csv(path: str, rows: _Rows[T]) -> Iterator[tuple[T, str]]:
    csv.field_size_limit(_LONGEST_CELL)  # the default of 128 KiB is short for a prompt
    try:
        for row in rows:
            yield row, f"{path}:{rows.line_num}"
    except csv.Error as error:
        raise BadInput("--data", f"{path}:{rows.line_num}", f"want CSV: {error}") from None


def refuse_input_tokens(setting: Setting, name: str) -> None:
    """Raise BadInput when the user wants a length for prompts that are taken as they are."""
    if setting.input_tokens is not None:
        want = f"want no length with --data {name}: its prompts are taken as they are"
        raise BadInput("--input-tokens", setting.input_tokens, want)


def in_order(records: Sequence[T], seed: int, *, shuffle: bool) -> list[T]:
    """The records, shuffled by the seed if so asked."""
    from servescope.seeds import generator  # noqa: PLC0415 - numpy; listing must stay quick

    if not shuffle:
        return list(records)
    return [records[i] for i in generator(seed, "shuffle").permutation(len(records)).tolist()]


class Passes:
    """A source that goes through records again and again, reading each when it is first reached.

    Of a record `read` makes the turns of a session, one or more; or none, when it is left out; and
    says why it is not used in full, or ''. Which item has which number depends on the records
    alone: they are read in order, whatever is asked first. With `unique` the prompts of later
    passes are numbered. `alone` says that `read` makes one turn at most. Raises `nothing` when no
    record makes an entry.
    """

    def __init__(
        self,
        records: Sequence[T],
        read: Callable[[T], tuple[Sequence[Entry], str]],
        setting: Setting,
        *,
        unique: bool,
        nothing: BadInput,
        alone: bool = True,
    ) -> None:
        self.alone = alone
        self._unread = (read(record) for record in records)
        self._read = self._sessions = 0
        self._known: list[tuple[Entry, Turn]] = []
        self._why: Counter[str] = Counter()
        self._lock = Lock()  # each load process is fed by a thread of its own
        self._setting, self._unique = setting, unique
        if not self._reach(0):
            raise nothing

    def __call__(self, i: int) -> Item:
        again, place = self._find(i)
        entry, _ = self._known[place]
        prompt = _numbered(entry.prompt, again + 1) if again and self._unique else entry.prompt
        tokens, pinned = self._answer(entry, i)
        return Item(prompt=prompt, output_tokens=tokens, pinned=pinned, think_s=entry.think_s)

    def turn(self, i: int) -> Turn:
        """Where item i stands; a record is a session of its own in each pass."""
        again, place = self._find(i)
        _, (session, number, last) = self._known[place]
        return Turn(again * self._sessions + session, number, last)

    @property
    def notes(self) -> list[str]:
        """How many of the records read so far are not used in full, and why."""
        with self._lock:
            common = self._why.most_common()
            return [f"{n:,} of the first {self._read:,} {why}" for why, n in common]

    def _find(self, i: int) -> tuple[int, int]:
        """How many passes lie before item i, and its place among the entries."""
        return (0, i) if self._reach(i) else divmod(i, len(self._known))

    def _reach(self, i: int) -> bool:
        with self._lock:
            while len(self._known) <= i:
                found = next(self._unread, None)
                if found is None:
                    return False
                self._keep(*found)
        return True

    def _keep(self, entries: Sequence[Entry], why: str) -> None:
        self._read += 1
        self._known += (
            (entry, Turn(self._sessions, number, number == len(entries) - 1))
            for number, entry in enumerate(entries)
        )
        self._sessions += bool(entries)
        if why:
            self._why[why] += 1

    def _answer(self, entry: Entry, i: int) -> tuple[int, bool]:
        from servescope.lengths import at  # noqa: PLC0415 - numpy; listing must stay quick

        wanted = self._setting.output_tokens
        if entry.output_tokens is not None:
            return entry.output_tokens, entry.pinned
        if wanted is not None:
            return at(wanted, self._setting.seed, "output", i), True
        return MOST_OUTPUT_TOKENS, False


def _numbered(prompt: str | tuple[Message, ...], number: int) -> str | tuple[Message, ...]:
    """The prompt asked for the n-th time: its first words differ, so that no cache knows them."""
    if isinstance(prompt, str):
        return f"({number}) {prompt}"
    first, *rest = prompt
    return (Message(first.role, f"({number}) {first.content}"), *rest)
