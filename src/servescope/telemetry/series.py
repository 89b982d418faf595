"""Readings over time: gauges, counters and histograms, and what they come to over a window.

A window is a stage's, in seconds since the run began. Of a gauge, each reading inside the window
stands for the time that is nearer to it than to any other; the time of a reading that failed is
nobody's, so that nothing is made up. Of a counter, the reading before the window is subtracted from
the one after it; its rate is told over no less than half of what usually lies between readings, for
some are made out of rhythm and close to others, and what a server counts in lumps would be a spike.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Kind = Literal["gauge", "counter"]

REACH = 1.5
"""For how many usual distances between readings the first and the last stand, outwards."""
CLOSE = 0.5
"""Readings are too close for a rate below this part of the usual distance between them."""
MISSED = 0.01
"""What share of a window a counter's first or last reading may miss."""
LEAST_COVERED = 0.5
"""A mean is given where readings stand for at least this share of the window."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One quantity of one source: a point for each of the source's readings that succeeded."""

    name: str
    source: str
    labels: Mapping[str, str]
    kind: Kind
    t_s: Floats
    """Shape (n,), rising; seconds since the run began."""
    value: Floats
    """Shape (n,). A counter's never falls: what it lost in a restart is added again."""
    failed_s: Floats = field(default_factory=lambda: np.empty(0))
    """When a reading failed; shape (m,), rising."""
    lag_s: float = 0.0
    """How long after something happened the source has surely counted it."""

    def rate(self) -> Series:
        """A counter's increase per second from one reading to the next, at the middle of both.

        Readings close to the one before are passed over; that before the last, if it is the last.
        """
        kept = _spread(self.t_s)
        t_s, span_s = self.t_s[kept], np.diff(self.t_s[kept])
        return replace(
            self,
            kind="gauge",
            t_s=t_s[:-1] + span_s / 2,
            value=np.diff(self.value[kept]) / span_s,
            failed_s=np.empty(0),  # what was counted meanwhile is known afterwards
        )

    def coverage(self, start_s: float, end_s: float) -> float:
        """The share of the window for which readings stand."""
        _, weight_s = self._inside(start_s, end_s)
        span_s = end_s - start_s
        return float(weight_s.sum()) / span_s if span_s > 0 else float(len(weight_s) > 0)

    def readings(self, start_s: float, end_s: float) -> int:
        """How many readings are inside the window."""
        return len(self._inside(start_s, end_s)[0])

    def mean(self, start_s: float, end_s: float) -> float | None:
        """A gauge's time-weighted mean; None where readings stand for less than half of the time.

        A counter's is that of its rate.
        """
        if self.kind == "counter":
            return self.rate().mean(start_s, end_s)
        value, weight_s = self._inside(start_s, end_s)
        if not len(value) or self.coverage(start_s, end_s) < LEAST_COVERED:
            return None
        return float(np.average(value, weights=weight_s if weight_s.any() else None))

    def max(self, start_s: float, end_s: float) -> float | None:
        """A gauge's largest reading inside the window; a counter's largest rate."""
        if self.kind == "counter":
            return self.rate().max(start_s, end_s)
        value, _ = self._inside(start_s, end_s)
        return float(value.max()) if len(value) else None

    def min(self, start_s: float, end_s: float) -> float | None:
        """A gauge's smallest reading inside the window; a counter's smallest rate."""
        if self.kind == "counter":
            return self.rate().min(start_s, end_s)
        value, _ = self._inside(start_s, end_s)
        return float(value.min()) if len(value) else None

    def increase(self, start_s: float, end_s: float) -> float | None:
        """From the last reading before the window to the first after it; None where one lacks.

        So all that was counted inside is in it, and with it what was counted between these readings
        and the window. The run's first or last reading will do if it misses less than 1 % of it.
        """
        span = bracket(self.t_s, start_s, end_s, self.lag_s)
        return None if span is None else float(self.value[span[1]] - self.value[span[0]])

    def _inside(self, start_s: float, end_s: float) -> tuple[Floats, Floats]:
        """Readings inside the window, and the time in s for which each stands."""
        tried_s = np.concatenate((self.t_s, self.failed_s))
        order = np.argsort(tried_s, kind="stable")
        order = order[(tried_s[order] >= start_s) & (tried_s[order] <= end_s)]
        t_s = tried_s[order]
        if not len(t_s):
            return t_s, t_s
        middle, reach_s = (t_s[1:] + t_s[:-1]) / 2, _reach_s(self.t_s)
        first = start_s if tried_s.min() < start_s else max(start_s, t_s[0] - reach_s)
        last = end_s if tried_s.max() > end_s else min(end_s, t_s[-1] + reach_s)
        weight_s = np.diff(np.concatenate(([first], middle, [last])))
        good = order < len(self.t_s)
        return self.value[order[good]], weight_s[good]


class HistogramFigures(msgspec.Struct, frozen=True):
    """What a histogram comes to over a window; in seconds, or in what its name says."""

    count: float
    rate_per_s: float | None
    """Values counted per second of the window."""
    mean: float | None
    p50: float | None
    """By interpolation inside a bucket; None where it falls into the lowest, which says only how
    much it is at most, or into the highest, which says only how much it is at least."""
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values by upper bound, and their sum, at each reading that succeeded."""

    name: str
    source: str
    labels: Mapping[str, str]
    t_s: Floats
    """Shape (n,), rising; seconds since the run began."""
    bounds: Floats
    """Shape (k,), rising, without infinity. Empty where the source gives count and sum alone."""
    below: Floats
    """Shape (n, k): values so far that are at most the bound."""
    count: Floats
    """Shape (n,): values so far."""
    sum: Floats
    """Shape (n,): their sum so far."""
    lag_s: float = 0.0
    """As a series'."""

    def over(self, start_s: float, end_s: float) -> HistogramFigures | None:
        """What was counted in the window, as `Series.increase` has it; None where that is None."""
        span = bracket(self.t_s, start_s, end_s, self.lag_s)
        if span is None:
            return None
        first, last = span
        count = float(self.count[last] - self.count[first])
        total = float(self.sum[last] - self.sum[first])
        below = self.below[last] - self.below[first]
        return HistogramFigures(
            count=count,
            rate_per_s=count / (end_s - start_s) if end_s > start_s else None,
            mean=total / count if count else None,
            p50=self._quantile(below, count, 0.50),
            p95=self._quantile(below, count, 0.95),
            p99=self._quantile(below, count, 0.99),
        )

    def _quantile(self, below: Floats, count: float, q: float) -> float | None:
        if not count:
            return None
        rank = q * count
        k = int(np.searchsorted(np.maximum.accumulate(below), rank))
        if k == len(below):
            return None
        if k == 0:  # from where it reaches down nobody knows, unless to nothing
            return 0.0 if self.bounds[0] == 0 else None
        low, high = self.bounds[k - 1], self.bounds[k]
        share = (rank - below[k - 1]) / (below[k] - below[k - 1])
        return float(low + share * (high - low))


def bracket(t_s: Floats, start_s: float, end_s: float, lag_s: float) -> tuple[int, int] | None:
    """The last reading at or before the start and the first that knows all until the end.

    Where there is none, the first or last of all, if that misses next to nothing of the window.
    None where there are no two.
    """
    if len(t_s) < 2:
        return None
    first = max(0, int(np.searchsorted(t_s, start_s, side="right")) - 1)
    last = min(len(t_s) - 1, int(np.searchsorted(t_s, end_s + lag_s, side="left")))
    late = max(float(t_s[first]) - start_s, end_s - float(t_s[last]))
    return None if late > MISSED * (end_s - start_s) or last <= first else (first, last)


def _reach_s(t_s: Floats) -> float:
    """Without end where there is but one reading."""
    return REACH * float(np.median(np.diff(t_s))) if len(t_s) > 1 else np.inf


def _spread(t_s: Floats) -> list[int]:
    """The readings far enough apart for a rate; the first and the last are always of them."""
    if len(t_s) < 3:
        return list(range(len(t_s)))
    least_s, kept = CLOSE * float(np.median(np.diff(t_s))), [0]
    for k, at_s in enumerate(t_s.tolist()):
        if at_s - t_s[kept[-1]] >= least_s:
            kept.append(k)
    last = len(t_s) - 1
    if kept[-1] != last:
        # What was counted until the end stays in it.
        kept[len(kept) - 1 if len(kept) > 1 else 1 :] = [last]
    return kept


def rising(value: Floats, fell: NDArray[np.bool_] | None = None) -> Floats:
    """A counter as if it had never begun anew: shape (n,), or (n, k) for k that begin together.

    It began anew where it is less than before, or where `fell`, shape (n - 1,), says so: then all
    that it shows has been counted since.
    """
    step = np.diff(value, axis=0)
    if fell is None:
        fell = step < 0
    if not fell.any():
        return value
    anew = fell if value.ndim == 1 else fell[:, np.newaxis]
    step = np.where(anew, value[1:], step)
    return np.concatenate((value[:1], value[:1] + np.cumsum(step, axis=0)))
