"""Requests from many independent clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.load import Limit, Open
from servescope.loads import cumulated, demand_rate, most_due, within

if TYPE_CHECKING:
    import numpy as np


class Poisson(msgspec.Struct, frozen=True, tag="poisson"):
    """A Poisson process: exponential gaps of mean 1/rate, the first request after one gap."""

    rate: float
    """Requests per second."""

    def __post_init__(self) -> None:
        demand_rate(self.rate)

    def __str__(self) -> str:
        return f"poisson:{self.rate:.15g}"

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open:
        """Cumulated gaps. Whatever the limit, the same `rng` gives a prefix of the same times."""
        expected, end = most_due(self, limit, self.rate), self.rate * (limit.duration_s or 0)
        due = cumulated(rng.standard_exponential, expected, limit, end)
        return Open(due_ns=within(due * 1e9 / self.rate, limit), rate=self.rate)
