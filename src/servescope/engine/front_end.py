"""The API server of a replica: a queue before and behind the engine, of one server.

It does its jobs one by one, first come, first served. A request takes half of its time when it
comes in; the other half when its first token is there, which only then goes out. Whatever else is
ready, a request that has been taken in or any other token, goes out when the jobs that were there
before it are done, as in an event loop: each turn does all that waits. So a burst comes to the
engine when all of it has been taken in, and until then no answer is opened. The work on an answer's
tokens is charged together after its last one. At the end of a step answers are opened first.

Since jobs are done in order, the time when one is done is known when it comes.
"""

from __future__ import annotations

from typing import NamedTuple

from servescope.engine import FS


class FrontEndCost(NamedTuple):
    """Seconds of a front end; by default there is none, or it is no process of its own."""

    request_s: float = 0.0
    """For each request: half of it to take it in, half to open its answer."""
    token_s: float = 0.0
    """For each token of an answer."""
    intake_s: float = 0.0
    """For each request besides, to take it in."""


NO_FRONT_END = FrontEndCost()


class FrontEnd:
    """The queue. Times are whole parts of a second, of which it has `per_s`; never going back."""

    __slots__ = ("_token", "busy", "free", "half", "intake")

    def __init__(self, cost: FrontEndCost, per_s: int = FS) -> None:
        self.half = round(cost.request_s * per_s / 2)
        """To open an answer."""
        self.intake = self.half + round(cost.intake_s * per_s)
        """To take in a request."""
        self._token = round(cost.token_s * per_s)
        self.free = 0
        """When all jobs so far are done."""
        self.busy = 0
        """Time of all jobs so far."""

    def take_in(self, now: int) -> int:
        """A request comes in; returns when it has been taken in."""
        return self._does(now, self.intake)

    def open(self, now: int) -> int:
        """A first token has been made; returns when it goes out."""
        return self._does(now, self.half)

    def out(self, now: int) -> int:
        """When what is ready now goes out: a request to the engine, another token to its client."""
        return max(now, self.free)

    def charge(self, now: int, tokens: int) -> None:
        """Answers of so many tokens are whole; nobody waits for this but what comes after."""
        self._does(now, self._token * tokens)

    def _does(self, now: int, job: int) -> int:
        self.busy += job
        self.free = done = max(now, self.free) + job
        return done
