"""An engine with a time of its own: what its steps came to, and when each token was there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine import FS

if TYPE_CHECKING:
    from servescope.engine import Step, Work
    from servescope.engine.arrivals import Arrival
    from servescope.engine.scheduler import Engine

NS = FS // 10**9
ENDS = 1 << 16
"""So many ends of steps may be kept before it is seen which are needed."""


class Replica:
    """One engine of a simulation. Who gets tokens is the owner of its work, an `Arrival`."""

    def __init__(self, engine: Engine, way_ns: int) -> None:
        """Tokens are seen `way_ns` after they were made."""
        self.engine = engine
        self.step: Step | None = None
        """What it does now; None where it is idle."""
        self._way_ns = way_ns
        self._ends_ns: list[int] = []
        """When the tokens of each decode step are seen, of those after the first `_before`."""
        self._before = engine.decode_steps
        self._most = ENDS

    def begin(self, now_fs: int, until_fs: int, arrival_fs: int) -> int | None:
        """Begin a step, or several that end before `until_fs`, and before the next request comes
        where that matters; returns when it is over, None where there is nothing to do."""
        if len(self._ends_ns) > self._most:
            self._forget()
        step = self.step = self.engine.step(max(1, until_fs - now_fs), arrival_fs - now_fs)
        if step is None:
            return None
        for work in step.preempted:
            self._told(work.owner)
        if step.decoding:
            self._ends_ns += [(now_fs + fs) // NS + self._way_ns for fs in step.ends_fs()]
        for work in step.begun:
            # Its first token, or the next one where it is computed anew.
            work.owner.token_ns.append((now_fs + step.duration_fs) // NS + self._way_ns)
            work.owner.since = self.engine.decode_steps
        for work in step.finished:
            self._told(work.owner)
        return now_fs + step.duration_fs

    def over(self) -> list[Work]:
        """What it did is over: whose answers are whole."""
        step, self.step = self.step, None
        return step.finished if step is not None else []

    def _told(self, asked: Arrival) -> None:
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
