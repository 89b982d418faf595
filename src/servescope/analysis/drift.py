"""Whether a series rises or falls: Theil and Sen's slope, Mann and Kendall's test.

The values are medians of batches, so that one odd request moves nothing. What is near in time is
alike (a busy spell lasts), and the test would take that for a trend; its variance is therefore
enlarged by the correlation of neighbours once the trend is taken out (Yue and Wang, Water Resources
Management 18, 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BATCHES = 24
FEWEST_IN_BATCH = 5
P_MOST = 0.001
"""A trend is believed below this: a run is asked about several, and most runs have none."""
_Z = 1.959963984540054


@dataclass(frozen=True)
class Trend:
    """A straight line through a series, in the series' own unit."""

    start: float
    """The line's value at the beginning."""
    end: float
    low: float
    """95 % interval of `end - start`."""
    high: float
    p: float
    """How often a series without a trend looks so."""

    @property
    def ratio(self) -> float:
        """The change relative to the beginning; 0 where the beginning is none."""
        return self.end / self.start - 1 if self.start > 0 else 0.0


def batched(values: Floats, span_s: float, together_s: float) -> Floats:
    """Medians of consecutive batches of what lasted `span_s`; () where it is too little.

    Requests within `together_s` of each other, the time of an answer, share what befalls them: a
    batch is no shorter than that.
    """
    most = math.floor(span_s / together_s) if together_s > 0 else BATCHES
    count = min(BATCHES, len(values) // FEWEST_IN_BATCH, most)
    if count < BATCHES // 2:
        return np.empty(0)
    return np.array([np.median(part) for part in np.array_split(values, count)])


def trend(series: Floats) -> Trend | None:
    """The trend of equally spaced values, shape (n,); None for fewer than `BATCHES` / 2."""
    n = len(series)
    if n < BATCHES // 2:
        return None
    i, j = np.triu_indices(n, 1)
    slopes = np.sort((series[j] - series[i]) / (j - i))
    slope = float(np.median(slopes))
    at = np.arange(n)
    middle = float(np.median(series - slope * at))
    # Mann and Kendall: pairs in order less pairs out of order; ties count as neither.
    score = float(np.sign(slopes).sum())
    variance = _variance(series) * _correlation(series - slope * at)
    z = max(0.0, abs(score) - 1) / math.sqrt(variance) if variance else 0.0
    reach = _Z * math.sqrt(variance)
    first = max(0, math.floor((len(slopes) - reach) / 2))
    last = min(len(slopes) - 1, math.ceil((len(slopes) + reach) / 2))
    span = n - 1
    return Trend(
        start=middle,
        end=middle + slope * span,
        low=float(slopes[first]) * span,
        high=float(slopes[last]) * span,
        p=math.erfc(z / math.sqrt(2)),
    )


def _variance(series: Floats) -> float:
    """Of the score of a series in random order."""
    n = len(series)
    _, ties = np.unique(series, return_counts=True)
    tied = float((ties * (ties - 1) * (2 * ties + 5)).sum())
    return (n * (n - 1) * (2 * n + 5) - tied) / 18


def _correlation(rest: Floats) -> float:
    """By how much the likeness of neighbours enlarges that variance; 1 or more."""
    rest = rest - rest.mean()
    total = float(rest @ rest)
    if not total:
        return 1.0
    n = len(rest)
    found = float(rest[1:] @ rest[:-1]) / total
    # In a short series it comes out too low by about (1 + 4r) / n (Kendall, 1954).
    r = min(0.95, max(0.0, (n * found + 1) / (n - 4)))
    return (1 + r) / (1 - r)
