"""The file that finished exchanges go to, after the requests that they made way for are sent."""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING, NamedTuple

from servescope.client import wire

if TYPE_CHECKING:
    from servescope.client.counters import Counters
    from servescope.client.feed import Pending
    from servescope.client.http import Connection


class _Nothing(NamedTuple):
    """What a request that was never sent has of an exchange."""

    sent_ns: int
    reads: array[int]
    raw: bytearray


NOTHING = _Nothing(-1, array("q"), bytearray())


class Spool:
    """Exchanges that have ended, written a little later than they ended."""

    def __init__(self, fd: int, counters: Counters) -> None:
        self._fd, self._counters = fd, counters
        self._ended: list[tuple[tuple[int, ...], str, array[int], bytearray]] = []

    def add(
        self, asked: Pending, fate: str, detail: str, at: int, *, carried: Connection | None = None
    ) -> None:
        """An exchange ended at `at`; `carried` by a connection, if it was ever sent."""
        seen = NOTHING if carried is None else carried
        numbers = (
            *(asked.request, wire.FATES.index(fate), asked.attempts, asked.due_ns),
            *(seen.sent_ns, asked.connect_ns, asked.held_ns, at),
        )
        self._ended.append((numbers, detail, seen.reads, seen.raw))
        self._counters.finished += 1

    def write(self) -> None:
        """Write what has ended to the file."""
        for exchange in self._ended:
            frame = memoryview(wire.pack_exchange(*exchange))
            while frame:
                frame = frame[os.write(self._fd, frame) :]
        self._ended.clear()
