"""All requests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.errors import BadInput
from servescope.load import Limit, Open
from servescope.loads import demand_count

if TYPE_CHECKING:
    import numpy as np


class Burst(msgspec.Struct, frozen=True, tag="burst"):
    """Every request is due at the start of the stage."""

    def __str__(self) -> str:
        return "burst"

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open:  # noqa: ARG002
        """As many zeros as requests; raises BadInput without a number of requests."""
        import numpy as np  # noqa: PLC0415 - listing the plug-ins must stay quick

        if limit.requests is None:
            raise BadInput("--load", "burst", "want --requests too: no time would end a burst")
        demand_count(self, limit.requests)
        return Open(due_ns=np.zeros(limit.requests, np.int64))
