"""The file that finished exchanges go to, after the requests that they made way for are sent."""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING, NamedTuple

from servescope.client import wire

if TYPE_CHECKING:
    from servescope.client.counters import Counters
    from servescope.client.feed import Pending


class Heard(NamedTuple):
    """What came of a request."""

    sent_ns: int
    reads: array[int]
    raw: bytearray


NOTHING = Heard(-1, array("q"), bytearray())
"""Of one that was never sent."""


class Spool:
    """Exchanges that have ended, written a little later than they ended."""

    def __init__(self, fd: int, counters: Counters) -> None:
        self._fd, self._counters = fd, counters
        self._ended: list[tuple[tuple[int, ...], str, array[int], bytearray]] = []

    def add(self, asked: Pending, fate: str, detail: str, at: int, heard: Heard = NOTHING) -> None:
        """An exchange ended at `at`."""
        numbers = (
            *(asked.request, wire.FATES.index(fate), asked.attempts, asked.due_ns),
            *(heard.sent_ns, asked.connect_ns, asked.held_ns, at),
        )
        self._ended.append((numbers, detail, heard.reads, heard.raw))
        self._counters.finished += 1

    def write(self) -> None:
        """Write what has ended to the file."""
        for exchange in self._ended:
            frame = memoryview(wire.pack_exchange(*exchange))
            while frame:
                frame = frame[os.write(self._fd, frame) :]
        self._ended.clear()
