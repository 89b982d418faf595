"""Requests as they came to a real service."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from servescope.load import Limit, Open
from servescope.loads import demand_end, within

if TYPE_CHECKING:
    import numpy as np


class FromTrace(msgspec.Struct, frozen=True, tag="trace"):
    """The times in a trace: one of our own format, Azure's, BurstGPT's or Mooncake's."""

    path: str
    scale: float = 1.0
    """How many times as fast: 2 offers the same requests in half the time, at twice the rate."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError("want scale above 0: how many times as fast, such as 2")

    def __str__(self) -> str:
        return f"trace:{self.path}" + (f",scale={self.scale:.15g}" if self.scale != 1 else "")

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open:  # noqa: ARG002
        """Each row once, the first at the start of the stage; raises BadInput naming `--load`."""
        from servescope.traces import read  # noqa: PLC0415 - listing the plug-ins must stay quick

        trace = read("--load", self.path)
        due_s = trace.time_s[: limit.requests] / self.scale
        demand_end(self, min(float(due_s[-1]), limit.duration_s or math.inf))
        return Open(due_ns=within(due_s * 1e9, limit), rows=len(trace))
