"""The file that finished exchanges go to, after the requests that they made way for are sent."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from servescope.client import wire

if TYPE_CHECKING:
    from servescope.client.counters import Counters
    from servescope.client.feed import Pending
    from servescope.client.http import Connection


AT_ONCE = 8
"""Exchanges written between two turns of the loop, each in some 30 us; more, where many wait."""


class Heard(NamedTuple):
    """What came of a request."""

    reads: array[int]
    """Pairs (time, bytes received so far)."""
    raw: bytes
    closed: bool
    """The server closed the connection."""


class Spool:
    """Exchanges that have ended, written a little later than they ended."""

    def __init__(self, fd: int, counters: Counters) -> None:
        self._fd, self._counters = fd, counters
        self._ended: list[tuple[tuple[int, ...], str, array[int], Sequence[bytes]]] = []
        self._size = 0

    def add(
        self, asked: Pending, fate: str, detail: str, at: int, heard: Connection | None = None
    ) -> None:
        """An exchange ended at `at`; `heard` holds what came of it, if it was sent."""
        sent_ns = -1 if heard is None else heard.sent_ns
        numbers = (
            *(asked.request, wire.FATES.index(fate), asked.attempts, asked.due_ns),
            *(sent_ns, asked.connect_ns, asked.held_ns, at),
        )
        reads, pieces = (array("q"), ()) if heard is None else (heard.reads, heard.pieces)
        self._ended.append((numbers, detail, reads, pieces))
        self._counters.finished += 1

    def write(self, *, everything: bool = False) -> None:
        """Write some of what has ended to the file: when many end at once, reading must go on."""
        waiting = len(self._ended)
        count = waiting if everything else min(waiting, AT_ONCE + waiting // 32)
        for exchange in self._ended[:count]:
            self._write(wire.pack_exchange(*exchange))
        del self._ended[:count]

    def part(self, request: int, reads: array[int], raw: bytes) -> tuple[int, int]:
        """Write a part of an exchange that goes on; where it lies: position and length."""
        numbers = (request, wire.PART, 0, 0, 0, 0, 0, 0)
        return self._write(wire.pack_exchange(numbers, "", reads, [raw]))

    def _write(self, frame: bytes) -> tuple[int, int]:
        at, rest = self._size, memoryview(frame)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._size += len(frame)
        return at, len(frame)

    def read(self, place: tuple[int, int]) -> wire.Exchange:
        """A part that was written before."""
        return wire.unpack_exchange(os.pread(self._fd, place[1], place[0]))
