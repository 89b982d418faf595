"""Requests at equal distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.load import Limit, Open
from servescope.loads import demand_rate, most_due, within

if TYPE_CHECKING:
    import numpy as np


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """One request every 1/rate seconds, the first at the start of the stage."""

    rate: float
    """Requests per second."""

    def __post_init__(self) -> None:
        demand_rate(self.rate)

    def __str__(self) -> str:
        return f"constant:{self.rate:.15g}"

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open:  # noqa: ARG002
        """Request k is due at k / rate, computed from k itself, so that no error adds up."""
        import numpy as np  # noqa: PLC0415 - listing the plug-ins must stay quick

        with np.errstate(over="ignore"):  # a second request far beyond the duration
            due_ns = np.arange(most_due(self, limit, self.rate)) * 1e9 / self.rate
        return Open(due_ns=within(due_ns, limit), rate=self.rate)
