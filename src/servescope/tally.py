"""What a stage has come to so far, while it runs: counts, and times in buckets."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from servescope.records import ABSENT, ANSWERED, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

PER_OCTAVE, OCTAVES = 32, 45
"""Buckets are 2.2 % wide; above the last lie ten hours."""
MOST_GAPS = 32
"""Gaps of one answer that are looked at; each then stands for its neighbours."""
FULL = 1 << 16
"""Times that are kept before they are counted into their buckets."""


class Buckets:
    """Times in nanoseconds, as counts of a fixed number of buckets."""

    def __init__(self) -> None:
        self._counts = np.zeros(PER_OCTAVE * OCTAVES)
        self._times = array("q")
        self._tokens, self._copies = array("d"), array("d")
        """Not counted yet: many at a time cost a tenth of what one by one do."""

    def note(self, ns: int) -> None:
        """One time; below a nanosecond it counts as one."""
        self._times.append(ns)
        self._tokens.append(1.0)
        self._copies.append(1.0)
        if len(self._times) >= FULL:
            self._settle()

    def extend(self, times: list[int], tokens: Sequence[float], copies: int) -> None:
        """Many times, each of which stands for so many like it.

        What m tokens took together is m times of a length of time / m; of no token it is none.
        """
        self._times.extend(times)
        self._tokens.extend(tokens)
        self._copies.extend([copies] * len(times))
        if len(self._times) >= FULL:
            self._settle()

    def add(self, other: Buckets) -> None:
        """Those of another."""
        other._settle()
        self._counts += other._counts

    @property
    def n(self) -> float:
        """How many there are."""
        self._settle()
        return float(self._counts.sum())

    def quantile_s(self, q: float) -> float | None:
        """Quantile `q` in seconds, to 1.1 %; None where there are no times."""
        return self.nth_s(q * self.n)

    def nth_s(self, rank: float) -> float | None:
        """The time of this rank from below, in seconds; None where there is none."""
        self._settle()
        sums = np.cumsum(self._counts)
        if not sums[-1]:
            return None
        bucket = int(np.searchsorted(sums, min(max(rank, 1e-9), float(sums[-1]))))
        return float(2 ** ((bucket + 0.5) / PER_OCTAVE)) / 1e9

    def above(self, seconds: float) -> float:
        """How many are longer, beyond what buckets blur."""
        self._settle()
        bucket = math.ceil(math.log2(seconds * 1e9) * PER_OCTAVE)
        return float(self._counts[bucket:].sum())

    def _settle(self) -> None:
        if not self._times:
            return
        tokens = np.array(self._tokens)
        there = tokens > 0
        tokens = tokens[there]
        each = np.maximum(np.array(self._times)[there] / tokens, 1.0)
        bucket = np.minimum((np.log2(each) * PER_OCTAVE).astype(np.int64), len(self._counts) - 1)
        weights = tokens * np.array(self._copies)[there]
        # Not in place: what came from another process may not be written to.
        self._counts = self._counts + np.bincount(bucket, weights, len(self._counts))
        self._times, self._tokens, self._copies = array("q"), array("d"), array("d")


class Tally:
    """Counts of a stage's records as they come."""

    def __init__(self) -> None:
        self.requests = self.answered = self.output_tokens = 0
        self.failures: Counter[str] = Counter()
        """Requests that failed, by their outcome."""
        self.words: dict[str, str] = {}
        """Why the last of each of these did, the newest at the end."""
        self.ttft, self.itl = Buckets(), Buckets()
        """Of what was answered: to the first token, and between tokens."""
        self.late = Buckets()
        """How late the generator itself was with each request that was sent."""
        self.first_ns, self.last_ns = 1 << 62, 0
        """First sending, last end."""
        self.never_sent = 0

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return self.failures.total()

    def note(self, record: Record) -> None:
        """A request came back."""
        self.requests += 1
        outcome = record.outcome
        if outcome in ANSWERED:
            self.answered += 1
            self._note_times(record)
        elif outcome.startswith("failed"):
            self.failures[outcome] += 1
            self._note_words({outcome: record.reason})
        if record.sent_ns == ABSENT:
            self.never_sent += 1
        else:
            self.first_ns = min(self.first_ns, record.sent_ns)
            self.last_ns = max(self.last_ns, record.end_ns)
            late_ns = record.sent_ns - record.due_ns - record.connect_ns - record.held_ns
            self.late.note(late_ns)

    def _note_times(self, record: Record) -> None:
        tokens, chunks = record.output_tokens or 0, len(record.chunk_ns)
        self.output_tokens += tokens
        if chunks:
            self.ttft.note(record.chunk_ns[0] - record.sent_ns)
        if chunks > 1:
            # Of a long answer every so many, beginning elsewhere in each: a beat is not hidden.
            stride = -(-(chunks - 1) // MOST_GAPS)
            some = slice(1 + record.request % stride, None, stride)
            gaps, each = record.chunk_ns[some], record.chunk_tokens
            share = tokens / chunks if each is None else each
            counted = share[some] if isinstance(share, list) else [share] * len(gaps)
            self.itl.extend(gaps, counted, stride)

    def _note_words(self, words: dict[str, str]) -> None:
        for outcome, reason in words.items():
            self.words.pop(outcome, None)
            self.words[outcome] = reason

    def add(self, other: Tally) -> None:
        """The requests of another tally came back, too."""
        self.requests += other.requests
        self.answered += other.answered
        self.output_tokens += other.output_tokens
        self.failures += other.failures
        self._note_words(other.words)
        if other.requests:
            self.ttft.add(other.ttft)
            self.itl.add(other.itl)
            self.late.add(other.late)
        self.never_sent += other.never_sent
        self.first_ns = min(self.first_ns, other.first_ns)
        self.last_ns = max(self.last_ns, other.last_ns)

    @property
    def requests_per_s(self) -> float:
        """Answered requests per second, from the first sending to the last end."""
        return self.answered / self.span_s if self.span_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """Likewise their tokens."""
        return self.output_tokens / self.span_s if self.span_s else 0.0

    @property
    def span_s(self) -> float:
        """From the first sending to the last end."""
        return max(0, self.last_ns - self.first_ns) / 1e9
