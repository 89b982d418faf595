"""Requests from many independent clients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from servescope.load import Limit, Open
from servescope.loads import demand_rate, most_due, within

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
        import numpy as np  # noqa: PLC0415 - listing the plug-ins must stay quick

        expected = most_due(self, limit, self.rate)
        spare = 0 if expected == limit.requests else 6 * math.isqrt(expected) + 16
        gaps = rng.standard_exponential(expected + spare)
        due_ns = np.cumsum(gaps) * 1e9 / self.rate
        while spare and due_ns[-1] < (limit.duration_s or 0) * 1e9:
            gaps = np.concatenate([gaps, rng.standard_exponential(spare)])
            due_ns = np.cumsum(gaps) * 1e9 / self.rate
        return Open(due_ns=within(due_ns, limit), rate=self.rate)
