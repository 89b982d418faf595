"""What a stage has come to so far, while it runs."""

from __future__ import annotations

from servescope.records import ABSENT, ANSWERED, Record


class Tally:
    """Counts of a stage's records as they come."""

    def __init__(self) -> None:
        self.requests = self.answered = self.failed = 0
        self._first_ns, self.last_ns = 1 << 62, 0
        """First sending, last end."""

    def note(self, record: Record) -> None:
        """A request came back."""
        self.requests += 1
        self.answered += record.outcome in ANSWERED
        self.failed += record.outcome.startswith("failed")
        if record.sent_ns != ABSENT:
            self._first_ns = min(self._first_ns, record.sent_ns)
            self.last_ns = max(self.last_ns, record.end_ns)

    def add(self, other: Tally) -> None:
        """The requests of another tally came back, too."""
        self.requests += other.requests
        self.answered += other.answered
        self.failed += other.failed
        self._first_ns = min(self._first_ns, other._first_ns)
        self.last_ns = max(self.last_ns, other.last_ns)

    @property
    def requests_per_s(self) -> float:
        """Answered requests per second, from the first sending to the last end."""
        span_ns = self.last_ns - self._first_ns
        return self.answered / span_ns * 1e9 if span_ns > 0 else 0.0
