"""When requests are offered. Two kinds only: `Open` (due times) and `Closed` (users).

Every arrival process is a file in `loads/` that returns one of them; pacing is arithmetic done
before the run, so nothing drifts and a test needs no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stage ends: whichever comes first; none is set where the load has an end itself."""

    requests: int | None = None
    duration_s: float | None = None


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """Requests start when the schedule says, whatever became of the earlier ones."""

    due_ns: NDArray[np.int64]
    """Sorted, shape (n,), since the start of the stage."""
    rate: float | None = None
    """Nominal requests per second; None where it has none or changes (burst, ramp, trace)."""
    rows: int | None = None
    """Set by a trace: due time k is that of row k of so many, and the item asked then is row k
    too. Elsewhere a due time begins a session, and its later turns wait for their answers."""


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """Each user starts a request when the one before has ended and its think time has passed."""

    users: int
    think_s: float = 0.0


class Later(Protocol):
    """A load that can be said only when the stages before it have been measured (`sweep`)."""

    def settle(self, requests_per_s: list[float]) -> Load:
        """The load, from the throughput of each stage of this run so far (None measured: 0)."""
        ...


class Load(Protocol):
    """What every struct in `loads/` provides: one stage's load."""

    def offer(self, limit: Limit, rng: np.random.Generator) -> Open | Closed:
        """The load of one stage. Open loads draw all their due times here."""
        ...

    def __str__(self) -> str:
        """As the user would write it for this one stage: `poisson:4`."""
        ...
