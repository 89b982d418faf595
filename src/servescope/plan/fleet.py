"""How many replicas a given traffic needs, or groups of them where several are declared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from servescope.engine.deployment import deploy
from servescope.plan.error_bars import ErrorBar, error_bar
from servescope.plan.rate import Point, point
from servescope.plan.workload import Served, for_long, saturated, with_users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine.config import EngineConfig
    from servescope.goodput import Bound
    from servescope.plan.workload import Workload

MOST_REPLICAS = 512
"""Or groups: of more, a simulation serves too few requests each."""
MOST_USERS = 10_000
_HEADROOM = 0.95
"""Without an SLO, replicas are enough that are busy to this share of what they can."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that come at a rate, or users that each wait for an answer before they ask again."""

    rate: float | None = None
    """Requests per second."""
    users: int | None = None

    def __str__(self) -> str:
        return f"{self.users} users" if self.rate is None else f"{self.rate:g} requests/s"


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The fewest replicas that serve a traffic."""

    traffic: Traffic
    replicas: int
    """Or groups, where several are declared."""
    gpus: int
    found: Point
    """What they come to."""
    load: float
    """Of what they could answer, the share that they do."""
    one_fewer: Point | None
    """What one replica fewer comes to."""
    cautious_replicas: int | None
    """If each serves as little as the error bar allows: for as much more traffic. None where that
    is more than `MOST_REPLICAS`, and for users, who ask as fast as they are answered."""
    error: ErrorBar
    input_tokens_per_s: float
    output_tokens_per_s: float


def fleet(
    config: EngineConfig,
    workload: Workload,
    traffic: Traffic,
    bounds: Sequence[Bound],
    *,
    full_per_s: float | None = None,
    each_per_s: float | None = None,
) -> Fleet | None:
    """Search for the fewest replicas, in simulation. None where `MOST_REPLICAS` are not enough.

    What one answers, when full and within the SLO, is given where it has been asked for.
    """
    full_per_s = full_per_s or saturated(config, workload).requests_per_s
    each_per_s = each_per_s or full_per_s
    search = _Search(config, workload, traffic, bounds, full_per_s)
    count = search.fewest(each_per_s)
    if count is None:
        return None
    error = error_bar(config, "throughput")
    cautious = None
    if traffic.rate is not None:
        more = Traffic(rate=traffic.rate * (1 + error.p90))
        cautious = _Search(config, workload, more, bounds, full_per_s).fewest(each_per_s)
        # More traffic may by chance do with fewer.
        cautious = None if cautious is None else max(count, cautious)
    served = search.serve(count)
    before = point(search.serve(count - 1), None, bounds) if count > 1 else None
    return Fleet(
        traffic=traffic,
        replicas=count,
        gpus=count * config.gpus,
        found=point(served, None, bounds),
        load=(traffic.rate or served.requests_per_s) / (full_per_s * count),
        one_fewer=before,
        cautious_replicas=cautious,
        error=error,
        input_tokens_per_s=served.input_tokens_per_s,
        output_tokens_per_s=served.output_tokens_per_s,
    )


class _Search:
    def __init__(
        self,
        config: EngineConfig,
        workload: Workload,
        traffic: Traffic,
        bounds: Sequence[Bound],
        full_per_s: float,
    ) -> None:
        self._config, self._full_per_s = config, full_per_s
        self._workload, self._traffic, self._bounds = workload, traffic, bounds
        self._served: dict[int, Served] = {}

    def fewest(self, each_per_s: float) -> int | None:
        """From as many as `each_per_s` would need in growing steps up or down, then bisected."""
        rate = self._traffic.rate or 0.0
        low = max(1, math.ceil(rate / self._full_per_s)) - 1
        if low >= MOST_REPLICAS:
            return None
        high, step = min(max(low + 1, math.ceil(rate / each_per_s)), MOST_REPLICAS), 1
        while not self._enough(high):
            if high == MOST_REPLICAS:
                return None
            low, high, step = high, min(high + step, MOST_REPLICAS), 2 * step
        while high - low > 1:
            middle = max(high - step, (low + high) // 2)
            if self._enough(middle):
                high, step = middle, 2 * step
            else:
                low = middle
        return high

    def _enough(self, replicas: int) -> bool:
        if self._bounds:
            return self.serve(replicas).missed(self._bounds) is None
        rate = self._traffic.rate or self.serve(replicas).requests_per_s
        if rate > _HEADROOM * self._full_per_s * replicas:
            return False
        return self._config.max_waiting is None or not self.serve(replicas).refused

    def serve(self, replicas: int) -> Served:
        """What so many come to."""
        if replicas not in self._served:
            one = self._config
            router = one.router
            if router == "round_robin" and replicas > 1:
                router = "least_loaded"
            config = msgspec.structs.replace(
                one,
                replicas=replicas * one.replicas,
                prefill_replicas=replicas * one.prefill_replicas,
                router=router,
            )
            rate, users = self._traffic.rate, self._traffic.users
            deployment = deploy(config)
            if rate is not None:
                full_per_s = self._full_per_s * replicas
                found = for_long(deployment, self._workload, rate, full_per_s)
            else:
                found = with_users(deployment, self._workload, users or 1)
            self._served[replicas] = found
        return self._served[replicas]
