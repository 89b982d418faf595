"""Requests that come more regularly than those of independent clients, or in clumps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from servescope.load import Limit, Open
from servescope.loads import cumulated, demand_rate, most_due, within

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Gamma(msgspec.Struct, frozen=True, tag="gamma"):
    """Gamma gaps of mean 1/rate: regular with cv below 1, clumps and pauses with cv above 1."""

    rate: float
    """Requests per second."""
    cv: float = 1.0
    """Coefficient of variation of the gaps, their deviation by their mean; 1 is `poisson`."""

    def __post_init__(self) -> None:
        demand_rate(self.rate)
        if not 0.01 <= self.cv <= 100:
            raise ValueError("want cv from 0.01 to 100")

    def __str__(self) -> str:
        return f"gamma:{self.rate:.15g},cv={self.cv:.15g}"

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open:
        """Cumulated gaps. Whatever the limit, the same `rng` gives a prefix of the same times."""
        expected, end = most_due(self, limit, self.rate), self.rate * (limit.duration_s or 0)
        due = cumulated(partial(self._gaps, rng), expected, limit, end)
        return Open(due_ns=within(due * 1e9 / self.rate, limit), rate=self.rate)

    def _gaps(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """`n` gaps of mean 1, shape (n,)."""
        shape = self.cv**-2
        return rng.standard_gamma(shape, n) / shape
