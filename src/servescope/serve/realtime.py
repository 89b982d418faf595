"""The engine and its front end in real time: a step that begins at T is over at T + its duration.

Each step begins where the one before it ended, and each job of the front end too, not where a busy
loop got round to it, so that lateness does not add up. Times are nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from servescope.client.clock import Timer
from servescope.engine import Step, Work
from servescope.engine.front_end import FrontEnd, FrontEndCost
from servescope.engine.scheduler import Engine

MOST_BEHIND_NS = 100_000_000
"""What a stall takes is caught up as far as this; what is beyond it is lost, and counted."""


class RealTimeFrontEnd:
    """Calls what is to be called, with the time that it was due, when a job is done."""

    def __init__(self, cost: FrontEndCost) -> None:
        self._front = FrontEnd(cost, per_s=10**9)
        self._waiting: deque[tuple[int, Callable[[int], None]]] = deque()
        """In order, since jobs are."""
        self._timer = Timer()
        asyncio.get_running_loop().add_reader(self._timer.fd, self._due)

    def take_in(self, now_ns: int, then: Callable[[int], None]) -> None:
        """A request comes in, and then comes to the engine."""
        self._call(self._front.take_in(now_ns), partial(self._go_on, then))

    def open(self, now_ns: int, then: Callable[[int], None]) -> None:
        """A first token has been made, and then goes out."""
        self._call(self._front.open(now_ns), then)

    def out(self, now_ns: int, then: Callable[[int], None]) -> None:
        """Other tokens have been made, and then go out."""
        self._call(self._front.out(now_ns), then)

    def charge(self, now_ns: int, tokens: int) -> None:
        """Answers of so many tokens are whole."""
        self._front.charge(now_ns, tokens)

    def catch_up(self, until_ns: int) -> None:
        """Call what is due until then."""
        while self._waiting and self._waiting[0][0] <= until_ns:
            due_ns, then = self._waiting.popleft()
            then(due_ns)
        if self._waiting:
            self._timer.set(self._waiting[0][0])

    def _go_on(self, then: Callable[[int], None], now_ns: int) -> None:
        out_ns = self._front.out(now_ns)
        if out_ns > now_ns:
            self._call(out_ns, then)
        else:
            then(now_ns)

    def _call(self, due_ns: int, then: Callable[[int], None]) -> None:
        if not self._waiting:
            if due_ns <= time.monotonic_ns():
                then(due_ns)
                return
            self._timer.set(due_ns)
        self._waiting.append((due_ns, then))

    def _due(self) -> None:
        self._timer.clear()
        self.catch_up(time.monotonic_ns())


class RealTime:
    """Runs an engine's steps on the current loop; `on_step(step, end_ns)` at their ends.

    A step is decided after what clients had sent by the end of the one before it has been read and
    has come through the front end, and before that one's tokens go out: what they are answered with
    comes during the next step, as with a real engine. `on_begin(begin_ns)` is called when a step
    has been decided.
    """

    def __init__(
        self,
        engine: Engine,
        front: RealTimeFrontEnd,
        on_begin: Callable[[int], None],
        on_step: Callable[[Step, int], None],
    ) -> None:
        self.engine, self._front = engine, front
        self.lost_ns = 0
        self.sequences = 0
        """Requests in the batch that is being computed."""
        self._on_begin, self._on_step = on_begin, on_step
        self._step: Step | None = None
        self._awake = False
        self._end_ns = 0
        self._timer = Timer()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._timer.fd, self._over)

    def submit(self, work: Work, now_ns: int) -> bool:
        """Queue a request; False where the queue is full. Raises ValueError if it never fits."""
        taken = self.engine.submit(work)
        if taken and not self._awake:
            self._awake, self._end_ns = True, now_ns
            self._decide_soon()
        return taken

    def _decide_soon(self) -> None:
        # The first turn of the loop reads what the sockets have; the second one decides.
        self._loop.call_soon(self._loop.call_soon, self._turn)

    def _turn(self) -> None:
        step, end_ns = self._step, self._end_ns
        self._front.catch_up(end_ns)
        self._decide()
        if step is not None:
            self._on_step(step, end_ns)

    def _decide(self) -> None:
        step = self._step = self.engine.step()
        if step is None:
            self._awake, self.sequences = False, 0
            return
        begin = self._end_ns
        behind = time.monotonic_ns() - begin - MOST_BEHIND_NS
        if behind > 0:
            self.lost_ns += behind
            begin += behind
        self.sequences = step.sequences
        self._end_ns = begin + round(step.duration_s * 1e9)
        self._timer.set(self._end_ns)
        self._on_begin(begin)

    def _over(self) -> None:
        self._timer.clear()
        self._decide_soon()
