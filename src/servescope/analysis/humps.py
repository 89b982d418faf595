"""Whether times gather around two values: Hartigan's dip test, and where the two part.

Times are looked at as logarithms, blurred by 5 %: what differs by less is no hump for a user, and
steps of an engine, which make all times multiples of one, are none either. The dip is the largest
distance between the sample's distribution and the nearest one with a single hump; how large it
becomes by chance is known for the flattest of those, the uniform one (Hartigan and Hartigan, *The
dip test of unimodality*, Annals of Statistics 13, 1985), so that the test errs to the safe side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEWEST, MOST = 100, 2000
"""Values that a verdict wants, and those that it looks at: a sample of them beyond."""
DIP_MOST = 0.735
"""A sample of one hump has a dip above this / sqrt(n) once in 1000 (of 8,000 uniform samples of
2,000 values each; it is 0.69 at 100)."""
BLUR = 0.05
RATIO, SHARE, VALLEY = 2.0, 0.05, 0.5
"""The slower hump is at least twice as slow, each has 5 % of the values, and between them the
density is below half of the lower one's."""
_BIN = 0.02
_WIDTHS = tuple(0.1 * 1.25**k for k in range(12))


@dataclass(frozen=True)
class Humps:
    """Two humps, in the values' unit."""

    fast: float
    """Median of the values of the lower hump."""
    slow: float
    parting: float
    """Where the density between them is least."""
    slow_share: float
    dip: float


def humps(values: Floats) -> Humps | None:
    """The two humps of times above 0, shape (n,); None for one hump, or where it is unsure."""
    values = values[values > 0]
    if len(values) < FEWEST:
        return None
    parting = _parting(np.log(values))
    if parting is None:
        return None
    is_slow = values > parting
    share = float(is_slow.mean())
    fast, slow = float(np.median(values[~is_slow])), float(np.median(values[is_slow]))
    if slow < RATIO * fast or not SHARE <= share <= 1 - SHARE:
        return None
    rng = np.random.default_rng(len(values))
    few = values if len(values) <= MOST else rng.choice(values, MOST, replace=False)
    found = dip(np.log(few) + BLUR * rng.standard_normal(len(few)))
    if found * math.sqrt(len(few)) < DIP_MOST:
        return None
    return Humps(fast, slow, parting, share, found)


def _parting(logs: Floats) -> float | None:
    """The value between the two highest humps of the density that has no more than two."""
    low, high = float(logs.min()) - 1, float(logs.max()) + 1
    counts, edges = np.histogram(logs, max(3, math.ceil((high - low) / _BIN)), (low, high))
    for width in _WIDTHS:
        reach = np.arange(-math.ceil(4 * width / _BIN), math.ceil(4 * width / _BIN) + 1)
        density = np.convolve(counts, np.exp(-0.5 * (reach * _BIN / width) ** 2), "same")
        rising = np.sign(np.diff(density))
        rising = np.where(np.abs(np.diff(density)) < 1e-9 * density.max(), 0, rising)
        at = np.flatnonzero(rising)
        peaks = [int(b) for a, b in pairwise(at) if rising[a] > 0 > rising[b]]
        if len(peaks) <= 2:
            break
    if len(peaks) != 2:
        return None
    first, last = peaks
    least = first + int(np.argmin(density[first : last + 1]))
    if density[least] > VALLEY * min(density[first], density[last]):
        return None
    return math.exp(float(edges[least] + edges[least + 1]) / 2)


def dip(values: Floats) -> float:
    """Hartigan's dip of a sample, shape (n,): from 1 / 2n (one hump) to 1/4 (two points).

    Algorithm AS 217 (P. M. Hartigan, Applied Statistics 34, 1985), with the corrections of Maechler
    (R package diptest).
    """
    x = np.sort(values).tolist()
    n = len(x)
    if n < 2 or x[0] == x[-1]:
        return 0.5 / n if n else 0.0
    down, up = _hull(x, range(n), 0), _hull(x, range(n - 1, -1, -1), n - 1)
    low, high, largest = 0, n - 1, 1.0
    while True:
        convex, concave = _follow(down, high, low), _follow(up, low, high)
        apart, left, right = _farthest(x, convex, concave)
        if apart < largest:
            break
        bends = [_bend(x, b, a, 1) for a, b in pairwise(convex[left:])]
        bends += [_bend(x, a, b, -1) for a, b in pairwise(concave[right:])]
        largest = max([largest, *bends])
        if (low, high) == (convex[left], concave[right]):
            break
        low, high = convex[left], concave[right]
    return largest / (2 * n)


def _hull(x: list[float], order: range, first: int) -> list[int]:
    """For each point, the point before it on the hull of those up to it, in that order."""
    before = [first] * len(x)
    for j in order[1:]:
        k = j - order.step
        while k != first:
            far = before[k]
            if (x[j] - x[k]) * (k - far) < (x[k] - x[far]) * (j - k):
                break
            k = far
        before[j] = k
    return before


def _follow(before: list[int], start: int, end: int) -> list[int]:
    """The points of a hull from `start` to `end`."""
    found = [start]
    while found[-1] != end:
        found.append(before[found[-1]])
    return found


def _farthest(x: list[float], convex: list[int], concave: list[int]) -> tuple[float, int, int]:
    """The largest distance between the two hulls, and where in each it is.

    `convex` goes down from the highest point, `concave` up from the lowest.
    """
    if len(convex) == len(concave) == 2:
        return 1.0, 1, 1
    apart, left, right = 0.0, len(convex) - 1, len(concave) - 1
    i, k = len(convex) - 2, 1
    while True:
        at, above = convex[i], concave[k]
        if at > above:
            base = convex[i + 1]
            here = above - base + 1 - _slope(x, base, at) * (x[above] - x[base])
            found = here, i + 1, k
            k = min(k + 1, len(concave) - 1)
        else:
            base = concave[k - 1]
            here = _slope(x, base, above) * (x[at] - x[base]) - (at - base - 1)
            found = here, i, k
            i = max(i - 1, 0)
        if here >= apart:
            apart, left, right = found
        if convex[i] == concave[k]:
            return apart, left, right


def _bend(x: list[float], start: int, end: int, side: int) -> float:
    """How far the points between two of a hull are from the straight line; side 1: above it."""
    if end - start < 2 or x[start] == x[end]:
        return 1.0
    slope = _slope(x, start, end)
    line = (slope * (x[k] - x[start]) - (k - start) for k in range(start, end + 1))
    return max(1.0, *(1 - side * beyond for beyond in line))


def _slope(x: list[float], start: int, end: int) -> float:
    """Points a unit between two; NaN, which is larger than nothing, where they are one."""
    return (end - start) / (x[end] - x[start]) if x[end] != x[start] else math.nan
