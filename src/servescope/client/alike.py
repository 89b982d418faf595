"""Events of a stream that are alike but for a few places, read many at a time.

Nearly all events of a stream are the same bytes with other texts in the same place. A `Form` is
what they share. It is learned from two events that follow one another: the strings and numbers of
JSON in which they differ are its holes, and what a hole means is found out by asking the protocol's
own decoder about events with other values there. Where that is not plain (the text is exactly the
hole's string, the count so far exactly its number, on any other number nothing depends), there is
no form, and every event is decoded by itself.

Why the result is the same: bytes are taken for events of a form only if the form makes the very
same bytes of the values found in them, the size line of each chunk included; and a value counts
only if it is one string, or one number, of JSON from end to end. That an event means the same
wherever it stands, the decoder must say itself (`EventDecoder.fresh`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate, chain
from operator import eq
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec.structs import replace

from servescope.protocols import Event, ProtocolFault, WireProtocol
from servescope.protocols._events import UNREADABLE
from servescope.protocols.http1 import LOWER, UPPER, chunk_line

WINDOW_BYTES = 1 << 16
"""So much is looked at at a time: where a form soon ends, little was looked at in vain."""
_NUMBER = re.compile(rb"(-?\d[\d.eE+-]*)")
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "string": msgspec.json.Decoder(list[str]),
    "total": msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]]),
    "integer": msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]]),
    "fraction": msgspec.json.Decoder(list[float]),
}
"""Kinds of holes, and what decodes the values of one."""
_STRING, _TEXT, _FIRST = rb"\u00e9\n \"}[", 'é\n "}[', 501
"""What is put into holes to learn what they mean: a string, which says a text, and numbers."""


class Run(NamedTuple):
    """What events that follow one another say."""

    texts: list[str]
    totals: list[int] | None
    """Tokens so far with each; None where no hole counts them."""
    ends: list[int]
    """Where in the response each of them ends, its framing included."""


class Meaning(NamedTuple):
    """What the events of a form mean."""

    content: str
    """What the string is: text, reasoning or tool."""
    rest: Event
    """Everything else."""
    total: int | None
    """Which hole counts the tokens so far."""


class Form:
    """What events have in common: bytes around holes."""

    def __init__(
        self, parts: list[bytes], kinds: list[str], meaning: Meaning, line: bytes | None
    ) -> None:
        """`parts` stand around the holes; `line` is how a chunk says its size, if there are any."""
        self._head, *self._between, tail = parts
        self._tail = tail if line is None else tail + b"\r\n"
        self._kinds, self._line = kinds, line
        self.meaning = meaning
        self.after = len(self._tail) - len(tail)
        """How many bytes of an event's framing follow it."""

    def run(self, raw: bytes, at: int) -> Run | None:
        """The events at `at` up to the first that is not alike; None where there are none."""
        tail = len(self._tail)
        pieces = raw[at : at + WINDOW_BYTES].split(self._tail)
        del pieces[-1]
        sizes = list(map(len, pieces))
        openings = {size: self._opening(size + tail) for size in set(sizes)}
        left = {size: size - len(opening) for size, opening in openings.items()}
        values = list(map(bytes.removeprefix, pieces, map(openings.__getitem__, sizes)))
        if sum(map(len, values)) != sum(map(left.__getitem__, sizes)):  # some have another opening
            del values[_agreeing(map(len, values), map(left.__getitem__, sizes)) :]
        columns = self._columns(values) if self._between else [values]
        found = list(map(_decoded, self._kinds, columns))
        if not all(found):
            return None
        texts: list[str] = found[self._kinds.index("string")]
        totals = None if self.meaning.total is None else found[self.meaning.total]
        ends = accumulate([size + tail for size in sizes[: len(texts)]], initial=at)
        return Run(texts, totals, list(ends)[1:])

    def _opening(self, size: int) -> bytes:
        """An event of `size` bytes, its framing included, up to its first hole."""
        return self._head if self._line is None else chunk_line(size, self._line) + self._head

    def _columns(self, values: list[bytes]) -> list[list[bytes]]:
        """The values of each hole, from events without what is before the first and after the last.

        What is between the holes is taken out wherever it stands; putting it back where it belongs
        shows for how many events that was right.
        """
        flat = b"\n".join(values)
        for part in sorted(set(self._between), key=len, reverse=True):
            flat = flat.replace(part, b"\n")
        fields, holes = flat.split(b"\n"), len(self._kinds)
        rows = len(fields) // holes
        again = [b"\n"] * (2 * holes * rows)
        again[::2] = fields[: holes * rows]
        for number, part in enumerate(self._between):
            again[2 * number + 1 :: 2 * holes] = [part] * rows
        rows = _agreeing(values, b"".join(again).split(b"\n"))
        return [fields[number : holes * rows : holes] for number in range(holes)]


def learn(protocol: WireProtocol, raw: bytes, at: int, *, chunked: bool) -> Form | None:
    """The form of the event that ends at `at` and the one after it; None where they have none."""
    mark, line = b"\n\r\n" if chunked else b"\n\n", None
    start = raw.rfind(mark, 0, at - len(mark)) + len(mark)
    one, other = raw[start:at], raw[at : raw.find(mark, at) + len(mark)]
    if chunked:
        line = LOWER if one.startswith(chunk_line(len(one), LOWER)) else UPPER
        one, other = _content(one, line), _content(other, line)
    found = _common(one, other)
    if found is None:
        return None
    parts, kinds = found
    meaning = _meaning(protocol, parts, kinds)
    if meaning is None:
        return None
    if meaning.total is not None:
        kinds[meaning.total] = "total"
    return Form(parts, kinds, meaning, line)


def _content(chunk: bytes, line: bytes) -> bytes:
    """What is in a chunk; nothing where its size line is not as it should be."""
    opening = chunk_line(len(chunk), line)
    return chunk[len(opening) : -2] if chunk.startswith(opening) else b""


def _common(one: bytes, other: bytes) -> tuple[list[bytes], list[str]] | None:
    """The bytes around the holes of two events, and the kinds of the holes: one is a string."""
    pieces, others = one.split(b'"'), other.split(b'"')
    if len(pieces) != len(others) or b"\0" in one:
        return None
    kinds: list[str] = []
    for place in [place for place, same in enumerate(map(eq, pieces, others)) if not same]:
        if place % 2:
            pieces[place] = b"\0"
            kinds.append("string")
            continue
        numbers, theirs = _NUMBER.split(pieces[place]), _NUMBER.split(others[place])
        if numbers[::2] != theirs[::2]:
            return None
        for n in range(1, len(numbers), 2):
            if numbers[n] != theirs[n]:
                kinds.append("integer" if (numbers[n] + theirs[n]).isdigit() else "fraction")
                numbers[n] = b"\0"
        pieces[place] = b"".join(numbers)
    return (b'"'.join(pieces).split(b"\0"), kinds) if kinds.count("string") == 1 else None


def _meaning(protocol: WireProtocol, parts: list[bytes], kinds: list[str]) -> Meaning | None:
    """What events with these parts and holes mean; None where that is not plain."""
    bare, full = _filled(parts, kinds, b"", 0), _filled(parts, kinds, _STRING, _FIRST)
    if bare.find(b"\n\n") != len(bare) - 2 or b"\r" in bare:
        return None  # it would be whole before its end
    decoder = protocol.decoder()
    try:
        events = [*decoder.feed(bare), *decoder.feed(full)]
    except ProtocolFault:
        return None
    if len(events) != 2 or getattr(decoder, "stray", None):
        return None
    rest, said = events
    content = next((n for n in ("text", "reasoning", "tool") if getattr(said, n) == _TEXT), "")
    if not content or rest.has_content or rest.end:
        return None
    total: int | None = None
    tokens = rest.output_tokens
    if said.output_tokens != tokens and tokens is not None:
        total, tokens = tokens, tokens + _FIRST
        if not 0 <= total < len(kinds) or kinds[total] != "integer":
            return None
    same = said == replace(rest, **{content: _TEXT}, output_tokens=tokens)
    return Meaning(content, rest, total) if same else None


def _filled(parts: list[bytes], kinds: list[str], string: bytes, number: int) -> bytes:
    """An event with a string in its hole, and with numbers that count on from one."""
    numbers = {"integer": b"%d", "fraction": b"%d.5"}
    values = [
        string if kind == "string" else numbers[kind] % (number + hole)
        for hole, kind in enumerate(kinds)
    ]
    return b"".join(chain.from_iterable(zip(parts, [*values, b""], strict=True)))


def _decoded(kind: str, column: list[bytes]) -> list[Any]:
    """The values of a hole; none where one of them is not a single one from end to end.

    A string that holds the quote of another's end would swallow the newline before the next, which
    none may hold, so that no two can pass for two others.
    """
    if not column:
        return []
    values = b'"%b"' % b'"\n,"'.join(column) if kind == "string" else b",".join(column)
    if kind == "fraction" and values.count(b".") != len(column):
        return []
    try:
        found: list[Any] = _DECODERS[kind].decode(b"[%b]" % values)
    except UNREADABLE:
        return []
    return found if len(found) == len(column) else []


def _agreeing(some: Iterable[object], others: Iterable[object]) -> int:
    """How many of both are the same, from the first on."""
    same = list(map(eq, some, others))
    return len(same) if all(same) else same.index(False)
