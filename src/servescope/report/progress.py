"""How a run goes on, for the person who waits: a panel in a terminal, elsewhere a line at times."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TextIO

from servescope.client.workers import Live
from servescope.doubts.early import early_doubts
from servescope.report.live import Screen, Standing, line, news, over
from servescope.report.newest import Newest
from servescope.stage import Moment
from servescope.tally import Tally
from servescope.units import format_seconds, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.client.probe import Endpoint
    from servescope.experiment import Plan
    from servescope.load import Limit
    from servescope.records import Sample
    from servescope.rulers import Ruler
    from servescope.store import Stage

TERMINAL_S, PLAIN_S = 0.25, 5.0
LATELY_S = 5.0
"""Rates 'of late' are over so long."""


class Progress:
    """Watches a run and writes to `out`, which is not where results go."""

    def __init__(
        self, out: TextIO | None = None, *, named: bool = False, lines: bool = False
    ) -> None:
        """`named`: each line begins with the name of its run; `lines`: no panel in any case."""
        self.out = out or sys.stderr
        self._screen = Screen(self.out) if draws(self.out) and not lines else None
        self._named, self._name = named, ""
        self._run: _Run | None = None
        self._stage: _Stage | None = None
        self._sources = Newest()
        self._next_s = 0.0

    def target(self, endpoint: Endpoint, ruler: Ruler, plan: Plan) -> None:
        """Say what will be measured, and how much."""
        self.clear()
        self._name = f"{printable(plan.trial.name or '')}: " if self._named else ""
        self._run, self._sources = _Run(endpoint, plan, self._name), Newest()
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
        self._end_stage()
        assert self._run is not None, "the target comes first"  # noqa: S101
        self._stage = _Stage(stage, self._run, self._run.name(stage))
        if self._screen is None:
            self._line(f"{self._stage.name}: {printable(stage.load)}")
        # A panel is there at once; a line waits until there is something to tell.
        self._next_s = time.monotonic() + (0.0 if self._screen else PLAIN_S)

    def progress(self, stage: Stage, moment: Moment) -> None:  # noqa: ARG002 (the one begun last)
        """Show how far it has come, if it is time to."""
        now_s = time.monotonic()
        if self._stage is None:
            return
        self._stage.moment = moment
        if now_s < self._next_s:
            return
        self._next_s = now_s + (TERMINAL_S if self._screen else PLAIN_S)
        standing = self._stage.standing(self._sources)
        if self._screen is not None:
            self._screen.draw(standing)
        else:
            self._tell_news(self._stage, standing)
            self._line(line(standing))

    def samples(self, samples: Sequence[Sample]) -> None:
        """What the collectors read."""
        self._sources.note(samples)

    def draining(self, why: str) -> None:
        """The run was interrupted."""
        if self._stage is not None:
            self._stage.draining = True
        self._line(f"{why}: nothing more is sent; again to end at once")

    def told(self, text: str) -> None:
        """Something happened that is of no one run."""
        self._line(printable(text))

    def clear(self) -> None:
        """The run is over, or something else is to be written: leave lines, no panel."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._screen is not None:
            self._screen.clear()
        ended, self._stage = self._stage, None
        if ended is not None and ended.moment.tally.requests:
            standing = ended.standing(self._sources)
            if self._screen is None:
                self._tell_news(ended, standing)
            columns = self._screen.columns - len(self._name) if self._screen is not None else None
            self._line(over(standing, columns))

    def _tell_news(self, stage: _Stage, standing: Standing) -> None:
        """What has not been said of a stage yet; a panel shows it as long as it holds."""
        for about, text in news(standing):
            if about not in stage.said:
                stage.said.add(about)
                self._line(text)

    def _line(self, text: str) -> None:
        if self._screen is not None:
            self._screen.clear()
        self.out.write(f"{self._name}{text}\n")  # at once: others may write there, too
        self.out.flush()


def draws(out: TextIO) -> bool:
    """Whether a panel can be drawn there: a terminal that obeys, and a user who wants it."""
    return out.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


class _Run:
    """What is known of all stages."""

    def __init__(self, endpoint: Endpoint, plan: Plan, name: str) -> None:
        self.title = f"{name}{endpoint.model} at {endpoint.url}"
        self._plan, self._begun = plan, 0
        self.passes = [load for load in plan.loads for _ in plan.trial.repeat_cache or [""]]
        self.times = len(plan.trial.targets) if plan.trial.each else 1

    def name(self, stage: Stage) -> str:
        """What the next stage is called."""
        if stage.warmup:
            return "warm-up"
        self._begun += 1
        return f"stage {self._begun} of {len(self.passes)}"

    def limit(self, stage: Stage) -> Limit:
        """Where that stage ends."""
        return (stage.warmup and self._plan.warmup) or self._plan.limit

    def later_s(self) -> float | None:
        """How long the stages after this one take at most; None where answers decide."""
        total = 0.0
        for load in self.passes[self._begun :]:
            rate, limit = getattr(load, "rate", None), self._plan.limit
            ends = [limit.duration_s, limit.requests / rate if limit.requests and rate else None]
            known = [end for end in ends if end is not None]
            if not known:
                return None
            total += min(known)
        return total


class _Then(NamedTuple):
    """What the counters were."""

    elapsed_s: float
    answered: int
    due: int


class _Stage:
    """The stage that goes on."""

    def __init__(self, stage: Stage, run: _Run, name: str) -> None:
        self.name, self.said = name, set[str]()
        self.moment = Moment(0.0, Live(0, 0, 0), Tally(), None, None, None)
        self.draining = False
        """Nothing more is sent: the run was interrupted."""
        self._stage, self._run = stage, run
        self._begun_s = time.monotonic()
        self._then = deque([_Then(0.0, 0, 0)])

    def standing(self, sources: Newest) -> Standing:
        """How it stands."""
        stage, now, tally = self._stage, self.moment, self.moment.tally
        then = self._lately()
        span_s = now.elapsed_s - then.elapsed_s
        left_s, pace = self._left_s(), self._pace()
        later_s = None if self.draining else self._run.later_s()
        server, gpu = sources.told()
        doubts = early_doubts(
            stage,
            tally,
            elapsed_s=now.elapsed_s,
            waits_s=None if self.draining else now.waits_s,
            loads=self._run.times,
        )
        return Standing(
            title=self._run.title,
            stage=self.name,
            load=stage.load,
            tally=tally,
            elapsed_s=now.elapsed_s,
            planned=stage.planned,
            progress=self._progress(),
            in_flight=now.live.in_flight,
            asked=self._asked(then, span_s),
            recent=(tally.answered - then.answered) / span_s if then.elapsed_s > 0 else None,
            left_s=None if left_s is None else left_s * pace,
            run_left_s=(left_s + later_s) * pace if left_s is not None and later_s else None,
            server=server,
            gpu=gpu,
            doubts=tuple(doubts),
        )

    def _lately(self) -> _Then:
        """The counters of some seconds ago; those of now are kept for later."""
        now, then = self.moment, self._then
        then.append(_Then(now.elapsed_s, now.tally.answered, now.due or 0))
        while len(then) > 2 and then[1].elapsed_s <= now.elapsed_s - LATELY_S:
            then.popleft()
        return then[0]

    def _asked(self, then: _Then, span_s: float) -> float | None:
        """The rate that the load asks for; of one that changes, what it was of late."""
        if self._stage.rate is not None:
            return self._stage.rate * self._run.times
        due, ends_s = self.moment.due, self.moment.ends_s or 0.0
        if not self._stage.open or due is None or ends_s <= then.elapsed_s:
            return None  # or all at one instant, or all before
        return (due - then.due) / span_s if span_s > 0 else None

    def _progress(self) -> float | None:
        """How much of the stage is over: by its requests or by its time, whichever is further."""
        planned, ends_s, now = self._stage.planned, self.moment.ends_s, self.moment
        shares = [now.tally.requests / planned] if planned else []
        if ends_s and not (self._stage.open and planned):  # its last answers are still to come
            shares.append(now.elapsed_s / ends_s)
        return min(1.0, max(shares)) if shares else None

    def _left_s(self) -> float | None:
        """Time to wait until the stage is over, but for its last answers."""
        if self.draining:
            return 0.0
        now, most = self.moment, self._most()
        lefts = [] if now.ends_s is None else [now.ends_s - now.elapsed_s]
        if most and not (self._stage.open and lefts) and now.tally.requests:
            lefts.append((most - now.tally.requests) / now.tally.requests * now.elapsed_s)
        return max(0.0, min(lefts)) if lefts else None

    def _pace(self) -> float:
        """Seconds that go by in one of the stage's: a simulation has a pace of its own."""
        if self._stage.workers is not None or self.moment.elapsed_s <= 0:
            return 1.0
        return (time.monotonic() - self._begun_s) / self.moment.elapsed_s

    def _most(self) -> int | None:
        """The most requests there will be."""
        limit = self._run.limit(self._stage).requests
        return self._stage.planned or (limit * self._run.times if limit else None)
