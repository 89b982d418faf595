"""An engine behind its front end, with a time of its own: what its steps came to, and when each
token went out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from servescope.engine import FS
from servescope.engine.front_end import FrontEnd, FrontEndCost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servescope.engine import Step, Work
    from servescope.engine.arrivals import Arrival
    from servescope.engine.scheduler import Engine

NS = FS // 10**9
ENDS = 1 << 16
"""So many ends of steps may be kept before it is seen which are needed."""


@dataclass(slots=True)
class Handed:
    """Who gets the token of a prompt that is computed for another replica."""

    work: Work
    replica: int
    """That will answer."""
    since: int = -1
    token_ns: list[int] = field(default_factory=list)


class Replica:
    """One engine of a simulation. Who gets tokens is the owner of its work, an `Arrival`.

    Times are fs on the engine's side, where no clock is named.
    """

    def __init__(self, engine: Engine, front_end: FrontEndCost, way_ns: int) -> None:
        """Tokens are seen `way_ns` after they went out."""
        self.engine, self.front = engine, FrontEnd(front_end)
        self.inbox: list[tuple[int, int, Work, bool]] = []
        """Heap of requests that come to the engine later: when, number, request, and whether then
        they will only have been taken in."""
        self.step: Step | None = None
        """What it does now; None where it is idle."""
        self._way_ns = way_ns
        self._busy: deque[tuple[int, int]] = deque()
        """Since the step began, jobs of the front end: when they came, and when they were done."""
        self._free = 0
        """When the front end had done all that had come before the step began."""
        self._ends_ns: list[int] = []
        """When the tokens of each decode step are seen, of those after the first `_before`."""
        self._before = engine.decode_steps
        self._most = ENDS

    def take_in(self, now: int) -> int:
        """A request is there; returns when it has been taken in."""
        return self._noted(now, self.front.take_in(now))

    def begin(self, now: int, until: int, arrival: int) -> int | None:
        """Begin a step, or several that end before `until`, and before the next request comes to
        the engine where that matters; returns when it is over, None where there is nothing to do.
        """
        if len(self._ends_ns) > self._most:
            self._forget()
        self._free = self.front.free
        self._busy.clear()
        step = self.step = self.engine.step(max(1, until - now), arrival - now)
        if step is None:
            return None
        for work in step.preempted:
            self._told(work.owner)
        return now + step.duration_fs

    def over(self, now: int) -> list[tuple[int, Work]]:
        """What it did is over: whose answers are whole, and when they have gone out."""
        step, self.step = self.step, None
        if step is None:
            return []
        front, whole = self.front, []
        for work in step.begun:
            if work.made == 1:
                out = self._noted(now, front.open(now))
                self._began(work.owner, out)
                if work.output_tokens == 1:
                    whole.append((out, work))
        if step.decoding:
            outs = self._outs(now - step.duration_fs, step)
            self._ends_ns += [out // NS + self._way_ns for out in outs]
        out = front.out(now)
        for work in step.begun:
            if work.made > 1:  # computed anew
                self._began(work.owner, out)
        for work in step.finished:
            if work.output_tokens > 1:
                self._told(work.owner)
                whole.append((out, work))
        front.charge(now, sum(work.output_tokens for work in step.finished))
        return whole

    def _noted(self, now: int, done: int) -> int:
        """When a job of the front end is done, that came now; kept until the step is over."""
        if done > now:
            self._busy.append((now, done))
        return done

    def _began(self, asked: Arrival | Handed, out: int) -> None:
        """Its prompt is computed: it has one more token, and decodes from now on."""
        asked.token_ns.append(out // NS + self._way_ns)
        asked.since = self.engine.decode_steps

    def _outs(self, begun: int, step: Step) -> Iterator[int]:
        """When the tokens of its iterations go out, of those who decode."""
        ends = (begun + end for end in step.ends_fs())
        return ends if self._free <= begun and not self._busy else self._after_front_end(ends)

    def _after_front_end(self, ends: Iterator[int]) -> Iterator[int]:
        free, busy = self._free, self._busy
        for end in ends:
            while busy and busy[0][0] <= end:
                free = busy.popleft()[1]
            yield max(end, free)

    def _told(self, asked: Arrival | Handed) -> None:
        """It does not decode any more: note when it got its tokens."""
        if asked.since >= 0:
            asked.token_ns += self._ends_ns[asked.since - self._before :]
            asked.since = -1

    def _forget(self) -> None:
        """Let go of the ends of steps before all that are in flight."""
        began = [work.owner.since for work in self.engine.batch if work.owner.since >= 0]
        keep = min(began, default=self.engine.decode_steps)
        del self._ends_ns[: keep - self._before]
        self._before = keep
        self._most = max(ENDS, 2 * len(self._ends_ns))
