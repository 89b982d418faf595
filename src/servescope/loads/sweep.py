"""From one request at a time to saturation, with rates in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.loads import demand_arrivals
from servescope.loads.constant import Constant
from servescope.loads.poisson import Poisson
from servescope.loads.users import Sync, Users

if TYPE_CHECKING:
    from servescope.load import Later, Load

MOST_STAGES = 100

UNKNOWN_RATE = 1.0
"""Requests per second where no request came to its end before."""


class Sweep(msgspec.Struct, frozen=True, tag="sweep"):
    """Stage 1 is `sync`, stage 2 saturates the server, then come `n` rates up to what that gave."""

    n: int = 8
    """How many rates, at equal distances; the last is the saturation's own throughput."""
    users: int = 512
    """How many requests are in flight in the stage that saturates."""
    arrivals: str = "constant"
    """Of the rates: 'constant' or 'poisson'."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST_STAGES:
            raise ValueError(f"want n from 1 to {MOST_STAGES}")
        Users(self.users)
        demand_arrivals(self.arrivals)

    def stages(self) -> list[Load | Later]:
        """The two that can be said now, and those that wait for what these two measure."""
        rates = [Rate(k, self.n, self.arrivals) for k in range(1, self.n + 1)]
        return [Sync(), Users(self.users), *rates]


class Rate(msgspec.Struct, frozen=True):
    """Rate number `k` of `n`, settled when the stages before it have been measured."""

    k: int
    n: int
    arrivals: str

    def __str__(self) -> str:
        return f"sweep:{self.k}/{self.n}"

    def settle(self, requests_per_s: list[float]) -> Load:
        """The load at this rate, from the throughput of every stage of the run before it.

        Where saturation gives no more than one request at a time, the rates rise from 0. Where
        neither served anything the stages go on at 1 request/s: they show the failures of each.
        """
        sync, saturation = requests_per_s[-self.k - 1], requests_per_s[-self.k]
        low = sync if sync < saturation else 0.0
        rate = low + (max(sync, saturation) - low) * self.k / self.n
        rate = float(f"{rate:.4g}") or UNKNOWN_RATE  # as it is shown
        return Poisson(rate) if self.arrivals == "poisson" else Constant(rate)
