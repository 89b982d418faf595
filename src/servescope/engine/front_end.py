"""The API server of a replica: a queue before and behind the engine, of one server.

It does its jobs one by one, first come, first served. A request takes half of its time when it
comes in, and only then it comes to the engine; the other half when its first token is there, which
only then goes out. So while a burst is taken in, no answer is opened. Every other token goes out
when it is made, or when what came before it is done, whichever is later; the work on an answer's
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


NO_FRONT_END = FrontEndCost()


class FrontEnd:
    """The queue. Times are whole parts of a second, of which it has `per_s`; never going back."""

    __slots__ = ("_token", "busy", "free", "half")

    def __init__(self, cost: FrontEndCost, per_s: int = FS) -> None:
        self.half = round(cost.request_s * per_s / 2)
        """To take in a request, or to open an answer."""
        self._token = round(cost.token_s * per_s)
        self.free = 0
        """When all jobs so far are done."""
        self.busy = 0
        """Time of all jobs so far."""

    def take_in(self, now: int) -> int:
        """A request comes in; returns when it comes to the engine."""
        self.busy += self.half
        self.free = done = max(now, self.free) + self.half
        return done

    open = take_in
    """A first token has been made; returns when it goes out."""

    def out(self, now: int) -> int:
        """When any other token goes out that has been made now."""
        return max(now, self.free)

    def charge(self, now: int, tokens: int) -> None:
        """Answers of so many tokens are whole; nobody waits for this but what comes after."""
        job = self._token * tokens
        self.busy += job
        self.free = max(now, self.free) + job
