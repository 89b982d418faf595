"""What a load process counts, on the page that the conductor reads."""

from __future__ import annotations

from servescope.client import wire


class Counters:
    """Counts and the loop's lag."""

    __slots__ = (
        *("_lag", "_lag_max_ns", "_page", "_stamps"),
        *("clock_steps", "finished", "sent"),
    )

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self.sent = self.finished = 0
        self.clock_steps = 0
        self._stamps = 0
        self._lag = [0] * wire.LAG_BINS
        self._lag_max_ns = 0

    def note_lag(self, lag: int) -> None:
        """The loop read something so long after the kernel had it."""
        self._stamps += 1
        lag = max(lag, 0)
        self._lag[wire.lag_bin(lag)] += 1
        self._lag_max_ns = max(self._lag_max_ns, lag)

    def publish(self, in_flight: int) -> None:
        """Write them all to the page."""
        page = self._page
        page[wire.SENT], page[wire.FINISHED] = self.sent, self.finished
        page[wire.IN_FLIGHT] = in_flight
        page[wire.KERNEL_CLOCK] = int(self._stamps > 0)
        page[wire.CLOCK_STEPS] = self.clock_steps
        page[wire.LAG_MAX_NS] = self._lag_max_ns
        for index, count in enumerate(self._lag):
            if count:
                page[wire.LAG + index] = count
