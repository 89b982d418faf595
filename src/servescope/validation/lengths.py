"""Lengths for workloads of which a source tells the means alone."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 20_231_107
"""One for all: any day will do."""
SPREAD = 1.2
"""The standard deviation of the logarithm of a conversation's lengths: requests of ShareGPT are
about log-normal, with a median of half the mean."""


def log_normal(mean: float, count: int, most: int, *, stream: int = 0) -> NDArray[np.int64]:
    """Whole numbers from 4 to `most` about log-normally spread, with this mean.

    Their quantiles, evenly spaced, in random order: so the mean is met without luck. `stream` tells
    columns of one workload apart.
    """
    rng = np.random.default_rng([SEED, stream])
    normal = np.array([NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)])

    def made(log_median: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.clip(np.exp(log_median + SPREAD * normal), 4, most)
        return found

    low, high = math.log(2), math.log(most) + 3 * SPREAD
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if made(middle).mean() < mean else (low, middle)
    found: NDArray[np.int64] = rng.permutation(np.rint(made(low)).astype(np.int64))
    return found


def often_cut(mean: float, most: int, count: int, *, stream: int = 0) -> NDArray[np.int64]:
    """Answers of which most are cut at `most` tokens and the others end anywhere before."""
    rng = np.random.default_rng([SEED, stream])
    early = round(count * (most - mean) / (most - most / 2))
    lengths = np.full(count, most)
    lengths[:early] = rng.integers(1, most, early)
    found: NDArray[np.int64] = rng.permutation(lengths)
    return found
