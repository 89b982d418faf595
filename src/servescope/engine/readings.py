"""A simulated engine's state as samples, as a page of metrics would tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from servescope.engine.scheduler import Engine
from servescope.records import Sample

SOURCE = "engine"
LEAST_NS = 100_000_000
PART = 100
"""Readings are 100 ms apart, and from 200 such on twice as far whenever the stage is twice as long:
about as close as a plot shows, and cheap in a simulation of hours."""
NAMES = (
    *("running_requests", "waiting_requests", "kv_use_ratio", "kv_capacity_tokens"),
    *("prompt_tokens", "generated_tokens", "preemptions", "prefix_query_tokens"),
    *("prefix_hit_tokens", "requests_finished", "steps"),
)
"""Of the common vocabulary."""
_COUNTED = (
    *("prompt_tokens", "generation_tokens", "preemptions", "prefix_query_tokens"),
    *("prefix_hit_tokens", "finished", "steps"),
)
"""The last of them as the engine calls them."""

Keep = Callable[[Sequence[Sample]], None]


class Readings:
    """Reads engines together now and then in virtual time, during one stage.

    Only what changed is kept; a series holds its value until its next sample.
    """

    def __init__(self, engines: Sequence[Engine], start_ns: int, keep: Keep) -> None:
        """`start_ns` is when the stage began, in the run's time; `keep` is given each reading."""
        self._engines, self._start_ns, self._keep = engines, start_ns, keep
        self._room = sum(one.kv.capacity * one.block_tokens for one in engines)
        self._last: tuple[float, ...] = (-1.0,) * len(NAMES)
        self.due_ns = 0
        """When the next reading is due: at the first end of a step then or later."""
        self._every_ns = LEAST_NS
        self.read(0, 0)

    def read(self, now_ns: int, running: int) -> None:
        """Read the engines, whose last batches had `running` sequences."""
        engines, last = self._engines, self._last
        self._last = now = (
            running,
            sum([one.waiting for one in engines]),
            sum([one.kv_used_ratio for one in engines]) / len(engines),
            self._room,
            *(sum([getattr(one.totals, name) for one in engines]) for name in _COUNTED),
        )
        t_ns = self._start_ns + now_ns
        samples = [Sample(t_ns=t_ns, source=SOURCE, name="up", value=1.0)]
        samples += [
            Sample(t_ns=t_ns, source=SOURCE, name=name, value=value)
            for name, value, before in zip(NAMES, now, last, strict=True)
            if value != before
        ]
        self._keep(samples)
        # A grid that does not depend on what the engine does, so that no phase of it is preferred.
        self._every_ns = LEAST_NS << max(0, (now_ns // (LEAST_NS * PART)).bit_length() - 1)
        self.due_ns = (now_ns // self._every_ns + 1) * self._every_ns

    def idle(self, until_ns: int) -> None:
        """The engines have had nothing to do since before the reading that is due."""
        self.read(self.due_ns, 0)
        if until_ns > self.due_ns:
            self.read((until_ns - 1) // self._every_ns * self._every_ns, 0)

    def end(self, now_ns: int) -> None:
        """The stage is over: everything is told once more."""
        self._last = (-1.0,) * len(NAMES)
        running = sum(one.running for one in self._engines)
        # Idle engines were perhaps read later than that, when what came last was refused.
        self.read(max(now_ns, self.due_ns - self._every_ns), running)
