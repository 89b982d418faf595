"""Items whose prompts are read from files: reading, order and repeats, in one place for all."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import msgspec

from servescope.datasets import Item, Message, Setting, Turn
from servescope.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

MOST_OUTPUT_TOKENS = 256
"""How long an answer may be when neither the data nor the user says."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as it was read."""

    prompt: str | tuple[Message, ...]
    output_tokens: int | None = None
    """The answer's length, or the most it may have, where the data says so."""
    pinned: bool = False
    """The answer is to have exactly `output_tokens`."""


def read_text(path: str) -> str:
    """The file's text, without a byte order mark; raises BadInput naming `--data`."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("--data", path, f"want UTF-8 text: {error.reason}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput("--data", path, f"want a file that can be read: {reason}") from None


def decode_json(text: str, place: str) -> object:
    """The JSON value in `text`; raises BadInput naming `--data` and the `place` it stands at."""
    try:
        decoded: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadInput("--data", place, f"want JSON: {error}") from None
    return decoded


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

    A record of which `read` makes no entry is left out. Which item has which number depends on
    the records alone: they are read in order, whatever is asked first. With `unique` the prompts
    of later passes are numbered. Raises `nothing` when no record makes an entry.
    """

    def __init__(
        self,
        records: Sequence[T],
        read: Callable[[T], Entry | None],
        setting: Setting,
        *,
        unique: bool,
        nothing: BadInput,
    ) -> None:
        self._entries = (entry for record in records if (entry := read(record)) is not None)
        self._known: list[Entry] = []
        self._lock = Lock()  # each load process is fed by a thread of its own
        self._setting, self._unique = setting, unique
        if not self._reach(0):
            raise nothing

    def __call__(self, i: int) -> Item:
        again, place = (0, i) if self._reach(i) else divmod(i, len(self._known))
        entry = self._known[place]
        prompt = _numbered(entry.prompt, again + 1) if again and self._unique else entry.prompt
        tokens, pinned = self._answer(entry, i)
        return Item(prompt=prompt, output_tokens=tokens, pinned=pinned)

    def turn(self, i: int) -> Turn:
        """Each stands alone."""
        return Turn(i)

    def _reach(self, i: int) -> bool:
        with self._lock:
            while len(self._known) <= i:
                entry = next(self._entries, None)
                if entry is None:
                    return False
                self._known.append(entry)
        return True

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
