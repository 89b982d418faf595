"""What a load process counts, on the page that the conductor reads."""

from __future__ import annotations

import contextlib
import os
import time

from servescope.client import wire

SWEEP_NS, HELD_UP_NS = 20_000_000, 50_000_000
"""The counters are published this often, and if not for longer than the second the loop did not
run: it sleeps for 20 ms at most."""
LATE_NS = 1_000_000
"""Lag above which the loop is behind."""

_MOST_LAGS = 64
"""Of those of one interval, so many that are spread evenly enter the histogram."""


class Counters:
    """Counts, the loop's lag, and how long the process waited for a core."""

    __slots__ = (
        *("_behind_ns", "_lag", "_lag_max_ns", "_page", "_published_ns", "_schedule"),
        *("_stamped", "_waited_ns"),
        *("clock_steps", "finished", "lags", "sent", "unstamped"),
    )

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self.sent = self.finished = 0
        self.clock_steps = 0
        self.lags: list[int] = []
        """How long after the kernel had it something was read, of each turn of the loop; ns."""
        self.unstamped: list[int] = []
        """How long after the loop woke something was read that the kernel had not stamped; ns."""
        self._stamped = False
        self._lag = [0] * wire.LAG_BINS
        self._lag_max_ns = 0
        self._behind_ns = self._published_ns = 0
        self._schedule = -1
        with contextlib.suppress(OSError):  # a kernel that does not count this
            self._schedule = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._waited_ns: int | None = None

    def publish(self, in_flight: int) -> None:
        """Write them all to the page."""
        page = self._page
        page[wire.SENT], page[wire.FINISHED] = self.sent, self.finished
        page[wire.IN_FLIGHT] = in_flight
        page[wire.CLOCK_STEPS] = self.clock_steps
        page[wire.WAITING_NS] = self._waiting_ns()
        self._publish_lag()
        page[wire.BEHIND_NS] = self._note_behind()

    def _publish_lag(self) -> None:
        page, counts = self._page, self._lag
        self._stamped |= bool(self.lags)
        # An end of file has no stamp either: only where nothing has one do the others count.
        lags = self.lags if self._stamped else self.unstamped
        for lag in lags[:: 1 + len(lags) // _MOST_LAGS]:
            index = wire.lag_bin(max(lag, 0))
            counts[index] += 1
            page[wire.LAG + index] = counts[index]
        most = max(lags, default=0)
        self._lag_max_ns = max(self._lag_max_ns, most)
        if most > LATE_NS:
            self._behind_ns += sum(lag for lag in lags if lag > LATE_NS)
        self.lags.clear()
        self.unstamped.clear()
        page[wire.KERNEL_CLOCK] = int(self._stamped)
        page[wire.LAG_MAX_NS] = self._lag_max_ns

    def _note_behind(self) -> int:
        """Time that the loop was late, or did not run at all.

        Its lag alone does not show that: of chunks that were merged meanwhile it is the last one's.
        """
        now = time.monotonic_ns()
        since = now - (self._published_ns or now)
        self._published_ns = now
        if since > HELD_UP_NS:
            self._behind_ns += since - SWEEP_NS
        return self._behind_ns

    def _waiting_ns(self) -> int:
        """Time since the first call that the process was ready to run while others ran."""
        if self._schedule < 0:
            return 0
        waited = int(os.pread(self._schedule, 64, 0).split()[1])
        if self._waited_ns is None:
            self._waited_ns = waited
        return waited - self._waited_ns
