"""Which request is due next: by the clock in an open load, by a free user in a closed one."""

from __future__ import annotations

import heapq

from servescope.client.feed import Feed, Pending, Settings
from servescope.client.turns import Turns

NEVER = 1 << 62


class Schedule:
    """What the feed holds and what sessions go on with, in the order of due times."""

    def __init__(self, settings: Settings, feed: Feed, turns: Turns) -> None:
        self._settings, self._feed, self._turns = settings, feed, turns
        self._start_ns = 0
        self._free: list[tuple[int, int]] = []
        """Heap of (due, user): users who wait for their next request."""

    def start(self, at_ns: int) -> None:
        """The stage starts at this instant."""
        self._start_ns = self._turns.start_ns = at_ns
        self._free = [(at_ns, user) for user in range(self._settings.users)]

    def user_free(self, at_ns: int, user: int) -> None:
        """A user of a closed load wants the next request from then on."""
        heapq.heappush(self._free, (at_ns, user))

    def first(self) -> int:
        """When the next request is due; NEVER where that is not known."""
        ready = self._turns.ready
        return min(self._first_queued(), ready[0][0] if ready else NEVER)

    def _first_queued(self) -> int:
        if not self._feed.queue:
            return NEVER
        if self._settings.users:
            return self._free[0][0] if self._free else NEVER
        return self._start_ns + self._feed.queue[0].due_ns

    def take(self) -> Pending:
        """The request that is due next, with the time it is due."""
        ready, queued = self._turns.ready, self._first_queued()
        if ready and ready[0][0] < queued:
            due, _, pending = heapq.heappop(ready)
        else:
            due, pending = queued, self._feed.take()
            if self._settings.users:
                pending.user = heapq.heappop(self._free)[1]
        pending.due_ns = due
        return pending
