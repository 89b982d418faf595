"""Requests at a rate that rises, or falls, steadily."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

from servescope.errors import BadInput
from servescope.load import Limit, Open
from servescope.loads import cumulated, demand_arrivals, demand_count, demand_end, within
from servescope.units import parse_duration_s

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HIGHEST_RATE = 1e9
"""Requests per second, one a nanosecond."""

_RATE = r"((?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
_RATES = re.compile(f"{_RATE}-{_RATE}", re.ASCII)


class Ramp(msgspec.Struct, frozen=True, tag="ramp"):
    """A rate that goes linearly from one value to another: `1-20`, or `from=1,to=20`.

    The ramp takes the stage's time; without one, the time in which its requests fit.
    """

    rates: str | None = None
    """FROM-TO, requests per second."""
    start: float | None = msgspec.field(default=None, name="from")
    """Requests per second at the start of the stage, 0 or more."""
    to: float | None = None
    """Requests per second at the end of the ramp, above 0."""
    over: str | None = None
    """How long the ramp is, such as 60s; then its last rate holds."""
    arrivals: str = "constant"
    """'constant': equal steps of the rate added up; 'poisson': a Poisson process of that rate."""

    def __post_init__(self) -> None:
        low, high = self._rates()
        if not (0 <= low <= HIGHEST_RATE and 0 < high <= HIGHEST_RATE):
            want = "want rates in requests/s, from=... 0 or more and to=... above 0"
            raise ValueError(f"{want}, both at most {HIGHEST_RATE:g}")
        self._over_s()
        demand_arrivals(self.arrivals)

    def __str__(self) -> str:
        low, high = self._rates()
        over = f",over={self.over}" if self.over else ""
        arrivals = "" if self.arrivals == "constant" else f",arrivals={self.arrivals}"
        return f"ramp:{low:.15g}-{high:.15g}{over}{arrivals}"

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open:
        """Request k is due when the rate, added up from the start, has come to k."""
        import numpy as np  # noqa: PLC0415 - listing the plug-ins must stay quick

        ramp_s = self._length_s(limit)
        demand_end(self, min(ramp_s, limit.duration_s or math.inf))
        wanted = math.inf if limit.requests is None else limit.requests
        end = math.inf if limit.duration_s is None else self._sum(limit.duration_s, ramp_s)
        demand_count(self, min(wanted, end))
        least = math.ceil(min(wanted, end + 1))
        if self.arrivals == "constant":
            sums = np.arange(least, dtype=np.float64)
        else:
            sums = cumulated(rng.standard_exponential, least, limit, end)
        due_s = self._due_s(sums, ramp_s)
        demand_end(self, min(float(due_s[-1]), limit.duration_s or math.inf))
        return Open(due_ns=within(due_s * 1e9, limit))

    def _rates(self) -> tuple[float, float]:
        if self.rates is not None and self.start is None and self.to is None:
            match = _RATES.fullmatch(self.rates)
            if match is not None:
                return float(match[1]), float(match[2])
        if self.rates is not None or self.start is None or self.to is None:
            raise ValueError("want ramp:FROM-TO in requests/s, such as ramp:1-20")
        return self.start, self.to

    def _over_s(self) -> float | None:
        try:
            seconds = None if self.over is None else parse_duration_s("over", self.over)
        except BadInput as error:
            raise ValueError(f"over={self.over}: {error.want}") from None
        if seconds == 0:
            raise ValueError("over=0: want a time above 0")
        return seconds

    def _length_s(self, limit: Limit) -> float:
        mean_rate = sum(self._rates()) / 2
        return self._over_s() or limit.duration_s or (limit.requests or 0) / mean_rate

    def _sum(self, at_s: float, ramp_s: float) -> float:
        """The rate added up to `at_s`."""
        low, high = self._rates()
        inside = min(at_s, ramp_s)
        return (low + (high - low) * inside / ramp_s / 2) * inside + high * (at_s - inside)

    def _due_s(self, sums: NDArray[np.float64], ramp_s: float) -> NDArray[np.float64]:
        """When the rate, added up, comes to each of `sums`: the inverse of `_sum`."""
        import numpy as np  # noqa: PLC0415 - listing the plug-ins must stay quick

        low, high = self._rates()
        inside = np.minimum(sums, self._sum(ramp_s, ramp_s))
        root = np.sqrt(np.maximum(low * low + 2 * (high - low) / ramp_s * inside, 0))
        # the root of the quadratic that loses no digits where the rate hardly changes
        due_s: NDArray[np.float64] = np.zeros_like(sums)
        np.divide(2 * inside, low + root, out=due_s, where=inside > 0)
        due_s += (sums - inside) / high
        return due_s
