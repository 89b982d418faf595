"""How far apart two figures are, and how far apart they would be by chance alone.

Requests of one run are alike: they share the server's state. So a figure's noise is estimated from
overlapping blocks in time order, each some rounds of the server long (overlapping batch means;
Meketon and Schmeiser, 1984), and never taken smaller than for independent requests. A percentile's
noise is found in its probability and read back through the sample (Woodruff, 1952). The interval of
a change joins those of both sides, each with its own lower and upper arm (MOVER; Zou and Donner,
2008). All intervals of a pair are wide enough to hold together: the critical value is the 95 %
quantile of the largest of all figures' t statistics, correlated as their blocks are.

What two runs differ by beyond that (the machine, a warm cache, the order of things) one run a side
cannot tell. A floor stands for it; repeats correct it, the more so the more there are, as in a
moderated t test (Smyth, 2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
POWER_Z = 0.8416
"""The normal's 80 % quantile: what is seen with that probability lies so much further out."""
GRID = np.linspace(-12.0, 12.0, 193)
"""Standard errors from the figure at which a ladder has its values."""
BLOCKS = 10
FEWEST_BLOCKS = 4
ROUNDS = 2.0
"""A block holds so many times the requests in flight."""
FEWEST = 20
"""Requests below which a run says nothing of its own noise."""
FLOOR_DOF = 8.0
"""How much the floor is trusted against repeats: as much as so many of them."""
_LEAST = 2.0
"""No critical value is smaller."""
_STARTS = 2000
_DRAWS = 20_000


@dataclass(frozen=True)
class Estimate:
    """A figure of one run, on a scale where differences are compared: the logarithm of what is
    above 0, a share as it is."""

    value: float
    """As people read it."""
    at: float
    """On the scale."""
    ladder: Floats | None = None
    """On the scale: the value at each of `GRID` standard errors from it; NaN beyond the sample.
    None where the run says nothing of its noise."""
    blocks: Floats | None = None
    """Deviations of its blocks, in units of their root mean square: for correlations."""
    axis: str = ""
    """What the blocks follow: figures of one axis have the same blocks."""
    dof: float = math.inf
    """Degrees of freedom of the standard error."""
    reach: tuple[float, float] = (math.inf, math.inf)
    """Standard errors from it to the nearer end of the sample, beyond which it has no limit: those
    that shrink with the root of the requests, and those of the load's ends, with the requests."""

    def arm(self, errors: float) -> float:
        """How far `errors` standard errors (negative: below) reach on the scale; inf: unknown."""
        assert self.ladder is not None  # noqa: S101 (asked only of those that have one)
        there = float(np.interp(errors, GRID, self.ladder, left=np.nan, right=np.nan))
        return abs(there - self.at) if math.isfinite(there) else math.inf

    def error(self) -> float:
        """One standard error on the scale; nan where none can be read."""
        arms = [arm for arm in (self.arm(-1.0), self.arm(1.0)) if math.isfinite(arm)]
        return sum(arms) / len(arms) if arms else math.nan


@dataclass(frozen=True)
class Change:
    """From A to B on the scale; arms are inf where there is no limit."""

    size: float
    below: float
    above: float
    seen: float
    """The smallest that would have been seen with 80 % probability."""
    floor: float
    """The part of an arm that the floor makes."""
    more: tuple[float, float] = (1.0, 1.0)
    """How many times as many requests of A, and of B, would give it both limits."""


class Blocks:
    """Overlapping blocks of `length` among `n` places in time order, `edge` at either end left out.

    At the ends a load fills and drains the server: those places are unlike the others by design,
    not by chance. `order` (shape (n,)) says which place is the first, the second, ...; None: they
    are in order.
    """

    def __init__(
        self,
        n: int,
        length: int,
        axis: str,
        *,
        in_flight: float,
        edge: int,
        order: NDArray[np.int64] | None,
    ) -> None:
        self.n, self.length, self.axis, self._edge, self._order = n, length, axis, edge, order
        self._inner = n - 2 * edge
        many = min(self._inner - length + 1, _STARTS)
        self._starts = np.unique(np.linspace(0, self._inner - length, many).astype(np.int64))
        self.dof = 1.5 * (self._inner / length - 1)
        # Those in flight together share the server's state: the part of it that blocks hold.
        self._held = 1 - min(in_flight / (3 * length), 0.5)

    @classmethod
    def of(
        cls, n: int, in_flight: float, axis: str, order: NDArray[np.int64] | None = None
    ) -> Blocks | None:
        """Blocks long enough that neighbours share little; None where there is too little."""
        if n < FEWEST:
            return None
        # Of too few rounds the ends are most: then what they do counts as noise, which is too much.
        edge = math.ceil(in_flight) if n > in_flight * ROUNDS * FEWEST_BLOCKS else 0
        inner = n - 2 * edge
        length = min(max(inner / BLOCKS, ROUNDS * in_flight), inner / FEWEST_BLOCKS)
        return cls(n, max(1, round(length)), axis, in_flight=in_flight, edge=edge, order=order)

    def error(self, influence: Floats, *, alike: bool = True) -> tuple[float, Floats]:
        """Standard error of the mean of `influence` (shape (n,), mean 0), and the blocks' sums.

        `alike`: neighbours can only be alike, so that it is no smaller than were they independent.
        """
        ordered = influence if self._order is None else influence[self._order]
        inner = ordered[self._edge : self.n - self._edge]
        sums = self._sums(inner - inner.mean(), self._starts)
        variance = self._variance(sums, len(inner)) * len(inner) / self.n
        if alike:
            variance = max(variance, float(influence @ influence) / (self.n * self.n))
        scale = math.sqrt(float(np.mean(sums * sums)))
        return math.sqrt(variance), sums / scale if scale else sums

    def error_with_ends(self, influence: Floats) -> float:
        """The same of all places: a tail is often made of what both ends do."""
        ordered = influence if self._order is None else influence[self._order]
        whole = self._sums(ordered, np.arange(self.n - self.length + 1))
        return math.sqrt(self._variance(whole, self.n))

    def _sums(self, values: Floats, starts: NDArray[np.int64]) -> Floats:
        summed = np.concatenate(([0.0], np.cumsum(values)))
        found: Floats = summed[starts + self.length] - summed[starts]
        return found

    def _variance(self, sums: Floats, n: int) -> float:
        return float(np.mean(sums * sums)) / (self.length * (n - self.length) * self._held)


def apart(
    a: Sequence[Sequence[Estimate]],
    b: Sequence[Sequence[Estimate]],
    floor: Sequence[float],
    *,
    drift: float = 1.0,
    level: float = LEVEL,
) -> list[Change | None]:
    """The change of each figure from A to B.

    `a[j]` and `b[j]` are figure j's estimates, one a run; `floor[j]` the standard deviation on the
    scale that runs are assumed to have beyond their own noise; `drift` how much larger their own
    noise is than their blocks tell, because of what is slower than a run; `level` the confidence
    with which all intervals hold together. None where neither the runs' own noise nor repeats tell
    what chance would do.
    """
    figures = [_Figure(*each, drift) for each in zip(a, b, floor, strict=True)]
    known = [figure for figure in figures if math.isfinite(figure.error)]
    judged = [figure for figure in known if figure.can_be_judged()]
    critical = _critical(judged or known, level)
    return [
        figure.change(critical, limited=figure in judged) if figure in known else None
        for figure in figures
    ]


class _Figure:
    """One figure of both sides."""

    def __init__(
        self, a: Sequence[Estimate], b: Sequence[Estimate], floor: float, drift: float
    ) -> None:
        self.sides, self._drift = (list(a), list(b)), drift
        self.size = _mean(b) - _mean(a)
        within = all(one.ladder is not None for side in self.sides for one in side)
        repeats = sum(len(side) - 1 for side in self.sides)
        around = sum((one.at - _mean(side)) ** 2 for side in self.sides for one in side)
        if within:
            self.floor = floor
            self.own = [[one.error() * drift for one in side] for side in self.sides]
            excess = sum(
                (one.at - _mean(side)) ** 2 / (own**2 + floor**2)
                for side, owns in zip(self.sides, self.own, strict=True)
                for one, own in zip(side, owns, strict=True)
                if own or floor
            )
            trusted = (FLOOR_DOF + excess) / (FLOOR_DOF + repeats)
            self.dispersion = max(trusted, excess / repeats) if repeats else 1.0
            self.dof = min(sum(one.dof for side in self.sides for one in side), 1e6)
        else:  # the runs' spread is all there is to go by
            spread = math.sqrt(around / repeats) if repeats > 1 else math.nan
            self.floor = math.hypot(spread, floor)
            self.own = [[0.0 for _ in side] for side in self.sides]
            self.dispersion, self.dof = 1.0, float(max(repeats, 1))
        self.within = within
        self.error = math.sqrt(
            sum(self.dispersion * (_square(own) + self.floor**2) / len(own) for own in self.own)
        )

    def can_be_judged(self) -> bool:
        """Whether any difference, however large, could be shown."""
        arms = (self._arms(side, _LEAST) for side in (0, 1))
        (a_low, a_high), (b_low, b_high) = arms
        both = (math.hypot(a_low, b_high), math.hypot(a_high, b_low))
        return math.isfinite(self.error) and min(both) < math.inf

    def shared(self, other: _Figure) -> float:
        """The covariance of the two figures' changes, as far as their blocks tell it."""
        total = 0.0
        for mine, theirs, owns, others in zip(
            self.sides, other.sides, self.own, other.own, strict=True
        ):
            for one, two, own, its in zip(mine, theirs, owns, others, strict=False):
                if one.blocks is not None and two.blocks is not None and one.axis == two.axis:
                    alike = float(np.mean(one.blocks * two.blocks))
                    total += alike * own * its / len(owns) ** 2
        return total * math.sqrt(self.dispersion * other.dispersion)

    def change(self, critical: float, *, limited: bool) -> Change:
        """With arms of `critical` standard errors; or without limits."""
        more = self._more(critical, 0), self._more(critical, 1)
        if not limited:
            return Change(self.size, math.inf, math.inf, math.inf, math.inf, more)
        (a_low, a_high), (b_low, b_high) = (self._arms(k, critical) for k in (0, 1))
        floor = (
            critical
            * self.floor
            * math.sqrt(self.dispersion * sum(1 / len(side) for side in self.sides))
        )
        below, above = math.hypot(b_low, a_high), math.hypot(b_high, a_low)
        wide = (below + above) / 2
        return Change(
            size=self.size,
            below=below,
            above=above,
            seen=wide * (1 + POWER_Z / critical),
            floor=floor,
            more=more,
        )

    def _more(self, critical: float, k: int) -> float:
        runs = self.sides[k]
        errors = critical * math.sqrt(self.dispersion / len(runs)) * self._drift
        usual, ends = (min(one.reach[k] for one in runs) for k in (0, 1))
        return max(1.0, (errors / usual) ** 2, errors / ends)

    def _arms(self, k: int, critical: float) -> tuple[float, float]:
        runs = self.sides[k]
        errors = critical * math.sqrt(self.dispersion / len(runs))
        floor = errors * self.floor
        if not self.within:
            return floor, floor
        low, high = (
            math.sqrt(sum(one.arm(way * errors * self._drift) ** 2 for one in runs) / len(runs))
            for way in (-1, 1)
        )
        return math.hypot(low, floor), math.hypot(high, floor)


def _critical(figures: Sequence[_Figure], level: float) -> float:
    """The quantile `level` of the largest of all t statistics, were there no difference."""
    if not figures:
        return math.nan
    n = len(figures)
    alike = np.eye(n)
    for i, one in enumerate(figures):
        for j, two in enumerate(figures[:i]):
            errors = one.error * two.error
            alike[i, j] = alike[j, i] = one.shared(two) / errors if errors else 0.0
    size, turn = np.linalg.eigh(alike)
    root = turn * np.sqrt(np.maximum(size, 0))
    rng = np.random.default_rng(n)  # the same comparison always says the same
    normal = rng.standard_normal((_DRAWS, n)) @ root.T
    dof = np.array([figure.dof for figure in figures])
    largest = np.abs(normal / np.sqrt(rng.chisquare(dof, (_DRAWS, n)) / dof)).max(axis=1)
    return float(np.quantile(largest, level))


def _mean(side: Sequence[Estimate]) -> float:
    return sum(one.at for one in side) / len(side)


def _square(values: Sequence[float]) -> float:
    return sum(value * value for value in values) / len(values)
