"""The highest rate of requests that a deployment serves within an SLO, searched in simulation.

The load is a Poisson process. Rates are tried on one grid, upwards in coarse steps until the SLO is
missed and then by bisection between the last two, always with the same requests. So a rate counts
only if all coarse ones below it met the SLO (where a scheduler does better with more load, the
search does not trust it), and a looser SLO is never found to allow less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.engine.deployment import deploy
from servescope.plan.error_bars import ErrorBar, error_bar
from servescope.plan.workload import (
    Served,
    at_rate,
    requests_for,
    saturated,
    statistic,
    with_users,
)

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
SEEDS = 3
"""Independent searches that the noise is estimated from."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What a rate, or a number of users, comes to."""

    requests_per_s: float
    """Offered, or with users answered."""
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    output_tokens_per_s: float
    missed: str | None = None
    """The first bound of the SLO that is not met."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate of all replicas together."""

    requests_per_s: float
    """0: not even one request at a time is served within the SLO."""
    saturation_per_s: float
    """What is answered when there is always someone waiting."""
    noise: float
    """Half the range over independent draws of the requests, and the search's own step, as a share
    of the rate."""
    limited_by: str
    """The bound that is missed first beyond it; 'saturation' where none is."""
    curve: list[Point]
    """What coarse rates came to, up to the first that missed the SLO."""
    error: ErrorBar


def highest_rate(
    config: EngineConfig, workload: Workload, bounds: Sequence[Bound], seeds: int = SEEDS
) -> Rate:
    """Search for it. Raises BadInput where it does not fit, or a bound is on no figure here."""
    searches = [
        _Search(config, msgspec.structs.replace(workload, seed=workload.seed + k), bounds)
        for k in range(seeds)
    ]
    found = [search.highest() for search in searches]
    first, rates = searches[0], [one[0] for one in found]
    rate, spread = rates[0], (max(rates) - min(rates)) / 2
    return Rate(
        requests_per_s=rate,
        saturation_per_s=first.saturation_per_s,
        noise=spread / rate + 1 / _FINE if rate else 0.0,
        limited_by=found[0][1],
        curve=[point(first.served[k], k * first.unit, bounds) for k in first.coarse],
        error=error_bar(config, "throughput"),
    )


def point(served: Served, rate: float | None, bounds: Sequence[Bound]) -> Point:
    """What came of a load in figures."""
    missed = served.missed(bounds)
    return Point(
        requests_per_s=served.requests_per_s if rate is None else rate,
        ttft_p50_s=statistic(served.ttft_s, "p50"),
        ttft_p99_s=statistic(served.ttft_s, "p99"),
        tpot_p50_s=statistic(served.tpot_s, "p50"),
        tpot_p95_s=statistic(served.tpot_s, "p95"),
        e2e_p50_s=statistic(served.e2e_s, "p50"),
        e2e_p99_s=statistic(served.e2e_s, "p99"),
        output_tokens_per_s=served.output_tokens_per_s,
        missed=missed.text if missed else None,
    )


class _Search:
    """One search, on one draw of the requests."""

    def __init__(self, config: EngineConfig, workload: Workload, bounds: Sequence[Bound]) -> None:
        self._deployment, self._workload, self._bounds = deploy(config), workload, bounds
        full = saturated(self._deployment, workload)
        self.saturation_per_s = full.requests_per_s
        self.unit = full.requests_per_s / _STEPS
        in_flight = full.requests_per_s * statistic(full.e2e_s, "mean")
        self._requests = requests_for(in_flight)
        self.served: dict[int, Served] = {}
        self.coarse: list[int] = []

    def highest(self) -> tuple[float, str]:
        """The rate, and what is missed beyond it."""
        low, high = 0, None
        for k in _COARSE:
            self.coarse.append(k)
            if self._missed(k) is not None:
                high = k
                break
            low = k
        if high is None:
            return low * self.unit, "saturation"
        while high - low > max(1, low // _FINE):
            middle = (low + high) // 2
            low, high = (low, middle) if self._missed(middle) else (middle, high)
        missed = self._missed(high)
        return self._alone(low), missed.text if missed else "saturation"

    def _alone(self, low: int) -> float:
        """The rate; if it is below the grid, whether a request alone meets the SLO."""
        if low:
            return low * self.unit
        alone = with_users(self._deployment, self._workload, 1)
        return 0.0 if alone.missed(self._bounds) else self.unit / 2

    def _missed(self, k: int) -> Bound | None:
        if k not in self.served:
            rate = k * self.unit
            self.served[k] = at_rate(self._deployment, self._workload, rate, self._requests)
        return self.served[k].missed(self._bounds)
