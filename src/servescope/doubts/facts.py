"""What a doubt is, and what it is judged by: the words that all checks share."""

from __future__ import annotations

import msgspec

from servescope.units import three_digits

KINDS = (
    "client_limited",
    "errors",
    "not_offered",
    "clock",
    "not_stationary",
    "lengths_missed",
    "merged_reads",
    "chunked",
    "counted_locally",
    "too_few",
)
"""By weight: first what makes all figures those of something else, last what concerns a few."""
REMEDIES = {
    "open files": "raise the limit on open files (ulimit -n), or use more --workers: each process "
    "has a limit of its own",
    "local ports": "use fewer connections at once, or keep them alive: a target is reached from so "
    "many ports only (net.ipv4.ip_local_port_range)",
    "memory": "use fewer connections at once, or a machine with more memory for sockets",
}
"""What a load process may have no more of, and what helps."""


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """One reason to distrust a figure."""

    kind: str
    """One of `KINDS`."""
    message: str
    value: float | None = None
    """The number behind it, in the unit that the message names."""
    limit: float | None = None
    """What the number should have kept to."""
    advice: str = ""


class StageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked of a stage: a doubt's limits and advice depend on it."""

    label: str
    """The load as the user would write it: 'poisson:4'."""
    open: bool
    """Open loop: requests have due times of their own."""
    rate: float | None = None
    """Constant mean rate of an open load in requests per second; None where it has none."""
    users: int | None = None
    """Users of a closed load."""
    planned: int | None = None
    """Requests that the load would offer; None for a closed load that ends by duration."""
    max_concurrency: int | None = None
    """A declared cap on requests in flight."""
    interrupted: bool = False
    """The user ended the run early."""
    streamed: bool = True
    """Answers were asked for in pieces."""
    exhausted: dict[str, int] = {}
    """Requests that this machine could not send, by what it had no more of: a key of `REMEDIES`."""

    @property
    def constant(self) -> bool:
        """Whether the stage asks for the same load from its start to its end."""
        return self.rate is not None if self.open else self.users is not None


def percent(ratio: float) -> str:
    """A share for people: '12.3 %'."""
    return f"{three_digits(ratio * 100)} %"
