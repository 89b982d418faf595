"""Many values to the few points that a plot shows: aggregate first, whatever the run's size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

POINTS = 300
"""Of one curve, at most."""
BINS = 240
"""Of one time series or histogram, at most."""
_DIGITS = 5


def rounded(values: Floats) -> list[float | None]:
    """Values in five significant digits, None for NaN: what a plot can show, and short."""
    return [float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None for x in values.tolist()]


def quantiles(values: Floats, shares: Floats, weights: Floats | None = None) -> Floats:
    """The values (shape (n,), no NaN, n > 0) that `shares` of all lie at or below."""
    order = np.argsort(values)
    ordered = values[order]
    edges = np.arange(1.0, len(values) + 1) if weights is None else np.cumsum(weights[order])
    found = np.searchsorted(edges, shares * edges[-1] * (1 - 1e-12))
    at: Floats = ordered[np.minimum(found, len(ordered) - 1)]
    return at


def cumulative(values: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Values and the share at or below each; dense in the upper tail, where SLOs are."""
    n = len(values)
    if n <= POINTS and weights is None:
        return np.sort(values), np.arange(1, n + 1) / n
    tail = 1 - np.geomspace(0.01, max(1 / n, 1e-5), POINTS // 3)
    shares = np.concatenate((np.linspace(0, 0.99, POINTS - len(tail) - 1), tail, [1.0]))
    return quantiles(values, shares, weights), shares


def thinned(values: Floats) -> Floats:
    """At most `POINTS` values with the distribution of all, both ends included."""
    if len(values) <= POINTS:
        return values
    return np.quantile(values, np.linspace(0, 1, POINTS))


def histogram(values: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """The share of all in each bin (shape (len(edges) - 1,)); what lies outside is in the ends."""
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], 0))
    counts, _ = np.histogram(inside, edges, weights=weights)
    return counts / max(float(counts.sum()), 1e-300)


def round_step(span: float, most: int = BINS) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts `span` into at most `most`."""
    least = max(span / most, 1e-6)
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= least * (1 - 1e-9))


def amounts(t_ns: Ints, weight: Floats, edges_s: Floats) -> Floats:
    """What of `weight` came in each bin, per second, shape (len(edges_s) - 1,)."""
    counts, _ = np.histogram(t_ns / 1e9, edges_s, weights=weight)
    return counts / np.diff(edges_s)


def in_flight(start_ns: Ints, end_ns: Ints, edges_s: Floats) -> Floats:
    """Time-weighted mean of what is between its start and its end, in each bin."""
    held = _passed(end_ns, edges_s) - _passed(start_ns, edges_s)
    return -np.diff(held) / np.diff(edges_s)


def _passed(t_ns: Ints, edges_s: Floats) -> Floats:
    """The time that has passed since each of `t_ns`, summed, at each edge."""
    t_s = np.sort(t_ns / 1e9)
    sums = np.concatenate(([0.0], np.cumsum(t_s)))
    before = np.searchsorted(t_s, edges_s)
    return before * edges_s - sums[before]


def averaged(t_s: Floats, value: Floats, edges_s: Floats) -> tuple[Floats, Floats]:
    """A series of readings (shape (n,) each) in few points: the mean of those of each bin."""
    if len(t_s) <= len(edges_s):
        return t_s, value
    at = np.digitize(t_s, edges_s)
    count = np.bincount(at)
    there = count > 0
    return (
        np.bincount(at, t_s)[there] / count[there],
        np.bincount(at, value)[there] / count[there],
    )
