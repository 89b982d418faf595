"""A closed loop: each user waits for an answer before asking again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from servescope.errors import BadInput
from servescope.load import Closed, Limit
from servescope.units import parse_duration_s

if TYPE_CHECKING:
    import numpy as np

MOST_USERS = 1_000_000


def _seconds(think: float | str) -> float:
    try:
        seconds = parse_duration_s("think", think) if isinstance(think, str) else float(think)
    except BadInput as error:
        raise ValueError(f"think={think}: {error.want}") from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"think={think}: want a time of 0 s or more, such as 1s or 200ms")
    return seconds


class Users(msgspec.Struct, frozen=True, tag="users"):
    """So many users, each with one request in flight, thinking between answer and next request."""

    users: int
    think: float | str = 0.0
    """Seconds, or a text such as '200ms'."""

    def __post_init__(self) -> None:
        if not 1 <= self.users <= MOST_USERS:
            raise ValueError(f"want users from 1 to {MOST_USERS}")
        _seconds(self.think)

    def __str__(self) -> str:
        return f"users:{self.users}" + (f",think={self.think}" if _seconds(self.think) else "")

    def offer(self, limit: Limit, rng: np.random.Generator) -> Closed:  # noqa: ARG002
        """Nothing to draw: the answers set the pace."""
        return Closed(users=self.users, think_s=_seconds(self.think))


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """One user: one request after the other."""

    think: float | str = 0.0
    """Seconds, or a text such as '200ms'."""

    def __post_init__(self) -> None:
        _seconds(self.think)

    def __str__(self) -> str:
        return "sync" + (f":think={self.think}" if _seconds(self.think) else "")

    def offer(self, limit: Limit, rng: np.random.Generator) -> Closed:  # noqa: ARG002
        """Nothing to draw: the answers set the pace."""
        return Closed(users=1, think_s=_seconds(self.think))
