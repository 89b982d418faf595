"""A sample summed up: percentiles from all values, each with the interval that it deserves.

Percentiles interpolate linearly between order statistics (numpy's default). Their 95 % intervals
are order statistics too: the number of values below the true quantile q is Binomial(n, q), whatever
the distribution, so two ranks enclose the quantile with known probability (David and Nagaraja,
Order Statistics, 7.1). Values that come in groups, such as the gaps of one answer, are alike within
a group; n is then first reduced to the number of independent values that would tell as much
(Woodruff, JASA 1952; Kish, Survey Sampling, 8.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
TAIL = 0.025
"""Probability on either side of an interval: 95 % lie inside."""
FEWEST = 6
"""Values or groups below which no interval is given: not even the median's exists (2^-6 < TAIL)."""
_BOOTSTRAP_BELOW = 200
_RESAMPLES = 2000
_Z = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A sample summed up, in the sample's own unit."""

    n: int
    """Samples. Of token gaps: the tokens that they stand for, rounded."""
    mean: float
    std: float
    """Sample standard deviation (n - 1); 0 for a single value."""
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    ci95: dict[str, tuple[float, float] | None]
    """95 % intervals of mean, p50, p90, p95 and p99; None where n is too small for one."""
    estimated: bool = False
    """The samples rest on an estimate, such as an even spread of tokens over chunks."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """Values without absent ones, and where there are any their weights and groups."""

    values: Floats
    weights: Floats | None
    groups: NDArray[np.int64] | None
    ordered: Floats
    """The values sorted."""
    edges: Floats | None
    """Cumulated weights of `ordered`: sample k is the first one whose edge lies above k."""
    total: float
    """Sum of the weights."""
    n_units: int
    """How many independent ones there are: groups, or else values."""

    def at(self, position: float) -> float:
        """The value at a position among the sorted samples, counted from 0, interpolated."""
        whole = math.floor(position)
        low, high = self._nth(whole), self._nth(whole + 1)
        return low + (high - low) * (position - whole)

    def _nth(self, k: int) -> float:
        index = k if self.edges is None else int(np.searchsorted(self.edges, k, side="right"))
        return float(self.ordered[min(index, len(self.ordered) - 1)])

    def units(self) -> tuple[Floats, Floats]:
        """Sum and weight of each independent unit: a group, or else a value."""
        weights = np.ones_like(self.values) if self.weights is None else self.weights
        if self.groups is None:
            return self.values * weights, weights
        size = np.bincount(self.groups, weights).astype(np.float64)
        summed = np.bincount(self.groups, weights * self.values).astype(np.float64)
        return summed[size > 0], size[size > 0]

    def effective_n(self, value: float) -> int:
        """How many independent samples would place `value` among them as surely as these do."""
        if self.n_units < FEWEST or (self.weights is None and self.groups is None):
            return self.n_units
        below = (self.values <= value).astype(np.float64)
        weights = np.ones_like(below) if self.weights is None else self.weights
        share = float(below @ weights) / self.total
        residual = weights * (below - share)
        if self.groups is not None:
            residual = np.bincount(self.groups, residual).astype(np.float64)
        variance = float(residual @ residual) * self.n_units / (self.n_units - 1) / self.total**2
        if variance == 0:
            return len(self.values)
        return min(len(self.values), int(share * (1 - share) / variance))


def distribution(
    samples: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    estimated: bool = False,
) -> Distribution | None:
    """Sum up `samples` (shape (n,), NaN where absent); None when there are none.

    `weights` (shape (n,)) say how many samples each value stands for and need not be whole; whole
    ones give exactly the percentiles of the values repeated so often. `groups` (shape (n,), small
    non-negative integers) name what each value belongs to: values of one group are not
    independent, so the intervals, and only they, become wider.
    """
    pool = _pool(samples, weights, groups)
    if pool is None:
        return None
    mean = _mean(pool)
    points = {name: pool.at(max(pool.total - 1, 0) * q) for name, q in PERCENTILES.items()}
    intervals = {name: _interval(pool, q, points[name]) for name, q in PERCENTILES.items()}
    return Distribution(
        n=max(1, round(pool.total)),
        mean=mean,
        std=_deviation(pool, mean),
        min=float(pool.ordered[0]),
        max=float(pool.ordered[-1]),
        ci95={"mean": _mean_interval(pool), **intervals},
        estimated=estimated,
        **points,
    )


def samples_needed(q: float) -> int:
    """The fewest samples that give quantile `q` (0.5 or more) an interval: P99 wants 368."""
    return math.ceil(math.log(TAIL) / math.log(q))


@lru_cache(maxsize=4096)
def interval_ranks(n: int, q: float) -> tuple[int, int] | None:
    """Ranks (from 1) of the order statistics that enclose quantile `q` of `n` samples.

    At least 95 % sure, at most 2.5 % on either side; None when n samples have no such ranks.
    """
    low, high = binomial_quantile(n, q, TAIL), binomial_quantile(n, q, 1 - TAIL) + 1
    return (low, high) if low >= 1 and high <= n else None


@lru_cache(maxsize=4096)
def lower_rank(n: int, q: float) -> int | None:
    """Rank (from 1) of an order statistic that quantile `q` of `n` samples is hardly below.

    The lower end of a 95 % interval whose upper end may not exist. Never the largest sample, and
    None for a single one: one is no evidence of a quantile.
    """
    return min(binomial_quantile(n, q, TAIL), n - 1) or None if n > 1 else None


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The least k with P(Binomial(n, p) <= k) >= level, for 0 < p < 1.

    Exact to rounding for any n: the probabilities follow from the ratio of neighbours, and beyond
    12 standard deviations (and 40 steps) there are none to speak of, so a million takes 10,000.
    """
    reach = 12 * math.sqrt(n * p * (1 - p)) + 40
    first, last = max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach))
    k = np.arange(first + 1, last + 1)
    log_ratio = np.log((n - k + 1) / k) + math.log(p / (1 - p))
    log_mass = np.concatenate(([0.0], np.cumsum(log_ratio)))
    mass = np.exp(log_mass - log_mass.max())
    cumulated = np.cumsum(mass) / mass.sum()
    return first + min(int(np.searchsorted(cumulated, level)), last - first)


def quantile_by_group(
    values: Floats, weights: Floats, groups: NDArray[np.int64], n_groups: int, q: float
) -> Floats:
    """Each group's own weighted quantile, shape (n_groups,); NaN for a group without values.

    `values`, `weights` and `groups` have shape (n,); every weight is above 0. Interpolates as
    `distribution` does.
    """
    order = np.lexsort((values, groups))
    values, weights = values[order], weights[order]
    edges = np.cumsum(weights)
    counts = np.bincount(groups, minlength=n_groups)
    there = counts > 0
    end = np.cumsum(counts)[there]
    base = np.concatenate(([0.0], edges))[end - counts[there]]
    position = np.maximum(edges[end - 1] - base - 1, 0) * q
    whole = np.floor(position)
    low = values[np.minimum(np.searchsorted(edges, base + whole, side="right"), end - 1)]
    high = values[np.minimum(np.searchsorted(edges, base + whole + 1, side="right"), end - 1)]
    result = np.full(n_groups, np.nan)
    result[there] = low + (high - low) * (position - whole)
    return result


def _pool(samples: ArrayLike, weights: ArrayLike | None, groups: ArrayLike | None) -> _Pool | None:
    values = np.asarray(samples, np.float64)
    mass = None if weights is None else np.asarray(weights, np.float64)
    there = ~np.isnan(values) if mass is None else ~np.isnan(values) & (mass > 0)
    if not there.any():
        return None
    values = values[there]
    kinds = None if groups is None else np.asarray(groups, np.int64)[there]
    units = len(values) if kinds is None else int(np.count_nonzero(np.bincount(kinds)))
    if mass is None:
        return _Pool(values, None, kinds, np.sort(values), None, float(len(values)), units)
    mass = mass[there]
    order = np.argsort(values)
    edges = np.cumsum(mass[order])
    return _Pool(values, mass, kinds, values[order], edges, float(edges[-1]), units)


def _mean(pool: _Pool) -> float:
    mean = float(np.average(pool.values, weights=pool.weights))
    # Rounding in the sum must not push the mean of equal values past them.
    return min(max(mean, float(pool.ordered[0])), float(pool.ordered[-1]))


def _deviation(pool: _Pool, mean: float) -> float:
    if pool.total <= 1:
        return 0.0
    squares: Any = (pool.values - mean) ** 2
    total = squares.sum() if pool.weights is None else squares @ pool.weights
    return math.sqrt(float(total) / (pool.total - 1))


def _interval(pool: _Pool, q: float, point: float) -> tuple[float, float] | None:
    n = pool.effective_n(point)
    ranks = interval_ranks(n, q) if n >= FEWEST else None
    if ranks is None:
        return None
    # Ranks among n independent samples, as positions among all that there are.
    stretch = (pool.total - 1) / (n - 1)
    low, high = (pool.at((rank - 1) * stretch) for rank in ranks)
    return min(low, point), max(high, point)


def _mean_interval(pool: _Pool) -> tuple[float, float] | None:
    """By bootstrap over units where they are few, else by the central limit theorem."""
    sums, sizes = pool.units()
    n = len(sums)
    if n < FEWEST:
        return None
    if n < _BOOTSTRAP_BELOW:
        drawn = np.random.default_rng(n).integers(0, n, (_RESAMPLES, n))
        means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        low, high = np.quantile(means, [TAIL, 1 - TAIL])
        return float(low), float(high)
    mean = sums.sum() / sizes.sum()
    residual = sums - mean * sizes
    error = math.sqrt(float(residual @ residual) * n / (n - 1)) / float(sizes.sum())
    return float(mean) - _Z * error, float(mean) + _Z * error
