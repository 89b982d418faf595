"""How a run goes on, for the person who waits: one line that changes, or a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from servescope.units import format_seconds, printable, three_digits

if TYPE_CHECKING:
    from servescope.client.probe import Endpoint
    from servescope.client.workers import Live
    from servescope.experiment import Plan
    from servescope.rulers import Ruler
    from servescope.store import Stage

TERMINAL_S, PLAIN_S = 0.25, 5.0


class Progress:
    """Watches a run and writes to `out`, which is not where results go."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        self.terminal = self.out.isatty()
        self._next_s = 0.0
        self._before = (0.0, 0)
        self._drawn = False

    def target(self, endpoint: Endpoint, ruler: Ruler, plan: Plan) -> None:
        """Say what will be measured, and how much."""
        engine = " ".join(filter(None, (endpoint.engine, endpoint.engine_version)))
        about = f" ({printable(engine)})" if engine else ""
        loads = ", ".join(str(load) for load in plan.loads)
        limits = []
        if plan.limit.requests is not None:
            limits.append(f"{plan.limit.requests:,} requests")
        if plan.limit.duration_s is not None:
            limits.append(format_seconds(plan.limit.duration_s))
        exact = "exact" if ruler.exact else "approximate"
        path = getattr(plan.dataset, "path", None)
        prompts = f"prompts of {exact} length ({ruler.source})"
        if path:
            prompts = f"prompts of {printable(path)}"
        self._line(
            f"{printable(endpoint.url)}{about}: model {printable(endpoint.model)}, "
            f"{endpoint.protocol}, token counts: {endpoint.usage}"
        )
        until = " or ".join(limits) or "its end"
        self._line(f"load {loads}; each up to {until}; {prompts}; seed {plan.seed}")
        if endpoint.refused:
            self._line(f"the server refuses: {', '.join(endpoint.refused)}")

    def stage(self, stage: Stage) -> None:
        """A stage begins."""
        self._before = (0.0, 0)
        self._next_s = 0.0
        self._line(f"{'warm-up, ' if stage.warmup else ''}{stage.load}")

    def progress(self, stage: Stage, elapsed_s: float, live: Live, failed: int) -> None:
        """Show the counters, if it is time to."""
        now = time.monotonic()
        if now < self._next_s:
            return
        first = self._next_s == 0.0
        self._next_s = now + (TERMINAL_S if self.terminal else PLAIN_S)
        if first and not self.terminal:
            return  # nothing to tell yet
        then_s, then = self._before
        self._before = (elapsed_s, live.finished)
        span = elapsed_s - then_s
        rate = three_digits((live.finished - then) / span) if span > 0 else "-"
        total = f"/{stage.planned:,}" if stage.planned else ""
        text = (
            f"  {format_seconds(elapsed_s)}: {live.finished:,}{total} done, "
            f"{live.in_flight:,} in flight, {rate} requests/s"
        )
        if failed:
            text += f", {failed:,} failed"
        if self.terminal:
            self.out.write(f"\r\x1b[K{text[:99]}")
            self.out.flush()
            self._drawn = True
        else:
            self._line(text)

    def draining(self, why: str) -> None:
        """The run was interrupted."""
        self._line(f"{why}: nothing more is sent; again to end at once")

    def clear(self) -> None:
        """Take the changing line away."""
        if self._drawn:
            self.out.write("\r\x1b[K")
            self.out.flush()
            self._drawn = False

    def _line(self, text: str) -> None:
        self.clear()
        print(text, file=self.out, flush=True)
