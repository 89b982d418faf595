"""The highest rate of requests that a deployment serves within an SLO, searched in simulation.

The load is a Poisson process; what is refused because the queue is full misses every bound, and is
not counted in the answer. Rates are tried on one grid, upwards in coarse steps until the SLO is
missed and then by bisection between the last two, always with the same requests. So a rate counts
only if all coarse ones below it met the SLO (where a scheduler does better with more load, the
search does not trust it), and a looser SLO is never found to allow less. How much of the answer is
chance is told by other draws of the requests, each searched near the first one's answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from servescope.engine.deployment import deploy
from servescope.plan.error_bars import ErrorBar, error_bar
from servescope.plan.workload import Served, for_long, saturated, statistic, with_users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine.config import EngineConfig
    from servescope.goodput import Bound
    from servescope.plan.workload import Workload

_STEPS = 1024
"""The grid: multiples of this part of the saturation rate."""
_COARSE = (32, 128, 256, 448, 640, 832, 928, 1024)
_FINE = 128
"""Bisection goes on to this part of the rate."""
_APART = 32
"""Other draws of the requests are searched from the first one's answer in steps of this part."""
SEEDS = 3
"""Independent draws of the requests that the noise is estimated from."""
FIGURES = ("ttft p50", "ttft p99", "tpot p50", "tpot p95", "e2e p50", "e2e p99")
"""What is told of every rate."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What a rate, or a number of users, comes to."""

    requests_per_s: float
    """Offered; of a fleet, answered."""
    times_s: dict[str, float | None]
    """By figure, such as 'ttft p99': those of `FIGURES`, and those that the SLO bounds. None: of a
    request that was refused; 0: no answer has one (TPOT of a single token)."""
    output_tokens_per_s: float
    refused: float = 0.0
    """The share of the requests that found the queue full."""
    missed: str | None = None
    """The first bound of the SLO that is not met."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate of all replicas together."""

    requests_per_s: float
    """Answered, at that rate; 0: not even one request at a time is served within the SLO."""
    saturation_per_s: float
    """What is answered when there is always someone waiting."""
    noise: float
    """Half the range over independent draws of the requests, and the search's own step, as a share
    of the rate."""
    limited_by: str
    """The bound that is missed first beyond it; 'saturation' where none is."""
    curve: list[Point]
    """What coarse rates came to, up to the first that missed the SLO, and the answer: the last that
    met it."""
    error: ErrorBar


def highest_rate(
    config: EngineConfig,
    workload: Workload,
    bounds: Sequence[Bound],
    seeds: int = SEEDS,
    *,
    known: Rate | None = None,
    full_per_s: float | None = None,
) -> Rate:
    """Search for it.

    Where they have been asked for, `known` is the answer of `seeds=1`, and `full_per_s` what is
    answered when there is always someone waiting.

    Raises BadInput where it does not fit, or a bound is on no figure here.
    """
    found = known or _Search(config, workload, bounds, full_per_s).highest()
    rate = found.requests_per_s
    if not rate:
        return found
    draws = (msgspec.structs.replace(workload, seed=workload.seed + k) for k in range(1, seeds))
    rates = [rate, *(_Search(config, draw, bounds).near(rate) for draw in draws)]
    noise = (max(rates) - min(rates)) / 2 / rate + 1 / _FINE
    return msgspec.structs.replace(found, noise=noise)


def point(served: Served, rate: float | None, bounds: Sequence[Bound]) -> Point:
    """What came of a load in figures."""
    missed = served.missed(bounds)
    return Point(
        requests_per_s=served.requests_per_s if rate is None else rate,
        times_s=_times(served, bounds),
        output_tokens_per_s=served.output_tokens_per_s,
        refused=served.refused,
        missed=missed.text if missed else None,
    )


def _times(served: Served, bounds: Sequence[Bound]) -> dict[str, float | None]:
    values = {name: getattr(served, f"{name}_s") for name in ("ttft", "tpot", "e2e")}
    each = (name.split() for name in FIGURES)
    found = {f"{metric} {which}": statistic(values[metric], which) for metric, which in each}
    bounded = {f"{one.metric} {one.statistic or 'max'}": served.value_s(one) for one in bounds}
    both = found | bounded
    metrics = list(dict.fromkeys(name.split()[0] for name in both))
    names = sorted(both, key=lambda name: metrics.index(name.split()[0]))
    return {name: both[name] if math.isfinite(both[name]) else None for name in names}


class _Search:
    """On one draw of the requests."""

    def __init__(
        self,
        config: EngineConfig,
        workload: Workload,
        bounds: Sequence[Bound],
        full_per_s: float | None = None,
    ) -> None:
        self._config, self._workload, self._bounds = config, workload, bounds
        self._deployment = deploy(config)
        self._saturation_per_s = full_per_s or saturated(config, workload).requests_per_s
        self._unit = self._saturation_per_s / _STEPS
        self._served: dict[int, Served] = {}

    def highest(self) -> Rate:
        """The answer, but for its noise."""
        low, high = 0, _STEPS + 1
        for k in _COARSE:
            if not self._meets(k):
                high = k
                break
            low = k
        coarse = set(self._served)
        low, high = self._bisect(low, high, _FINE)
        told = sorted(coarse | {low} - {0})
        missed = self._missed(high) if high <= _STEPS else None
        return Rate(
            requests_per_s=self._rate(low),
            saturation_per_s=self._saturation_per_s,
            noise=1 / _FINE,
            limited_by=missed.text if missed else "saturation",
            curve=[point(self._served[k], k * self._unit, self._bounds) for k in told],
            error=error_bar(self._config, "throughput"),
        )

    def near(self, rate: float) -> float:
        """The highest rate, looked for in growing steps up or down from another draw's."""
        k = min(max(1, round(rate / self._unit)), _STEPS)
        step, up = max(1, k // _APART), self._meets(k)
        while self._meets(following := k + step if up else k - step) is up:
            k, step = following, 2 * step
        low, high = sorted((max(0, k), max(0, following)))
        return self._rate(self._bisect(low, high, _FINE // 2)[0])

    def _bisect(self, low: int, high: int, part: int) -> tuple[int, int]:
        while high - low > max(1, low // part):
            middle = (low + high) // 2
            low, high = (middle, high) if self._meets(middle) else (low, middle)
        return low, high

    def _rate(self, low: int) -> float:
        """Answered; if it is below the grid, a request alone may still meet the SLO."""
        if low:
            return low * self._unit * (1 - self._served[low].refused)
        alone = with_users(self._deployment, self._workload, 1)
        return 0.0 if alone.missed(self._bounds) else self._unit / 2

    def _meets(self, k: int) -> bool:
        return k <= 0 or (k <= _STEPS and self._missed(k) is None)

    def _missed(self, k: int) -> Bound | None:
        if k not in self._served:
            full_per_s = _STEPS * self._unit
            self._served[k] = for_long(self._deployment, self._workload, k * self._unit, full_per_s)
        return self._served[k].missed(self._bounds)
