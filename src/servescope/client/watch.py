"""When to look again at connections on which nothing may be happening."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servescope.client.http import Connection

_FEW = 64


class Watch:
    """Deadlines of connections, soonest first; an idle connection costs nothing."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Connection]] = []
        self._added = self._gone = 0

    def look(self, connection: Connection, at_ns: int) -> None:
        """Look at the connection at this time, its deadline."""
        connection.deadline_ns = at_ns
        if not connection.watched_ns or at_ns < connection.watched_ns:
            connection.watched_ns = at_ns
            self._added += 1
            heapq.heappush(self._heap, (at_ns, self._added, connection))

    def due(self, now_ns: int) -> Iterator[Connection]:
        """Connections whose deadline has passed. Those that go on need a new one."""
        while self._heap and self._heap[0][0] <= now_ns:
            at_ns, _, connection = heapq.heappop(self._heap)
            if at_ns != connection.watched_ns:
                continue  # it was looked at sooner
            connection.watched_ns = 0
            if connection.deadline_ns > now_ns:
                self.look(connection, connection.deadline_ns)
            else:
                yield connection

    def forget(self, connection: Connection) -> None:
        """The connection is closed; what waits for it here may not pile up."""
        connection.watched_ns = -1
        self._gone += 1
        if self._gone > _FEW + len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].watched_ns]
            heapq.heapify(self._heap)
            self._gone = 0
