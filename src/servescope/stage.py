"""One stage of a run: its load processes, here or on a cluster, and keeping what they did."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np

from servescope.client import machine, workers
from servescope.client.feed import Settings
from servescope.client.flush import flush_cache
from servescope.deal import Deal, not_sent
from servescope.doubts.generator import clock_of
from servescope.load import Closed, Open
from servescope.prepare import Bench
from servescope.records import CANCELLED, Record, Sample
from servescope.share import Batch, Part, Share
from servescope.store import Stage
from servescope.tally import Tally

if TYPE_CHECKING:
    from servescope.experiment import Trial

MOST_WARM = 1024
AHEAD_OPEN, AHEAD_USER, AHEAD_LEAST = 4096, 8, 256
"""Requests rendered ahead: for an open load, for each user of a closed one, and at least."""
ENDLESS = 1 << 60


class Moment(NamedTuple):
    """How far a stage has come."""

    elapsed_s: float
    """Since its start; of a simulated one in virtual time."""
    live: workers.Live
    tally: Tally
    due: int | None
    """Requests that were due by now; None where answers decide when one is."""
    ends_s: float | None
    """When nothing more is sent, since the start; None where answers decide."""
    waits_s: float | None
    """How much of the schedule is sent: from its first due time to that of the request that has
    waited longest; None where all have been sent, or where answers decide."""

    @classmethod
    def of(cls, deal: Deal, elapsed_s: float, live: workers.Live, tally: Tally) -> Self:
        """That of a stage which is dealt so."""
        offer, ends_s, waits_s = deal.offer, deal.limit.duration_s, None
        if isinstance(offer, Open) and deal.most is not None:
            ends_s = float(offer.due_ns[-1]) / 1e9
            # Whichever were sent, one of the first so many and one was not.
            gone = (live.sent + tally.never_sent) // deal.loads
            if gone < len(offer.due_ns):
                waits_s = float(offer.due_ns[gone] - offer.due_ns[0]) / 1e9
        return cls(elapsed_s, live, tally, due_by(deal, elapsed_s), ends_s, waits_s)


def due_by(deal: Deal, elapsed_s: float) -> int | None:
    """Requests of a stage that are due by then; None where answers decide when one is."""
    offer = deal.offer
    if not isinstance(offer, Open) or deal.most is None:
        return None
    return int(np.searchsorted(offer.due_ns, elapsed_s * 1e9, side="right")) * deal.loads


class Team(Protocol):
    """The load processes of a stage."""

    def begin(self, interrupted: Callable[[], int]) -> int:
        """Start all at one instant, which is returned (CLOCK_MONOTONIC of this machine)."""
        ...

    def batches(self) -> Iterator[Batch]:
        """What comes back, many times a second, until all have ended."""
        ...

    def live(self) -> workers.Live:
        """Counters of all together."""
        ...

    def stop(self, level: int) -> None:
        """1: offer no more; 2: end at once."""
        ...

    def end(self) -> tuple[list[workers.Health], dict[int, str]]:
        """What each process says of itself, and why those that died did, by their numbers."""
        ...

    def close(self) -> None:
        """End what still runs."""
        ...


class Place(Protocol):
    """Where load processes run."""

    def processes(self, deal: Deal, trial: Trial) -> int:
        """How many a stage gets."""
        ...

    def team(self, bench: Bench, deal: Deal, part: Part) -> Team:
        """Those of one stage."""
        ...


class Here:
    """On this machine."""

    def processes(self, deal: Deal, trial: Trial) -> int:
        """As many as the load wants and this machine allows."""
        return process_count(deal, trial)

    def team(self, bench: Bench, deal: Deal, part: Part) -> Team:
        """Those of one stage."""
        return _Here(bench, deal, part)


class _Here:
    """Load processes on this machine."""

    def __init__(self, bench: Bench, deal: Deal, part: Part) -> None:
        self._share = Share(bench, deal, part, bench.origin_ns)
        self._team = workers.Workers(part.targets, part.processes, bench.writer.path)
        self.live, self.stop, self.close = self._team.live, self._team.stop, self._team.close

    def begin(self, interrupted: Callable[[], int]) -> int:
        return self._team.begin(self._share.requests, interrupted)

    def batches(self) -> Iterator[Batch]:
        try:
            for process, exchange in self._team.exchanges():
                if exchange is None:
                    yield self._share.take()
                else:
                    self._share.add(exchange, process)
        except Exception:  # an item that could not be made: what came back is kept
            yield self._share.take()
            raise

    def end(self) -> tuple[list[workers.Health], dict[int, str]]:
        found = self._team.health()
        died = [health.worker for health in found if health.exit_status]
        each = self._team.workers
        return found, {k: f"a load process died: {each[k].last_words()}" for k in died}


class Measured:
    """The stages of a run against real endpoints."""

    def __init__(
        self, bench: Bench, place: Place | None = None, *, look: Callable[[], None]
    ) -> None:
        self._bench, self._place, self._look = bench, place or Here(), look
        self.items, self.targets = bench.items, len(bench.targets)

    def flush_cache(self) -> str | None:
        """Empty the targets' prefix caches; how it was done, None where it could not be."""
        return flush_cache(self._bench.dialogues, self._bench.endpoint.engine)

    def drive(self, stage: Stage, number: int, deal: Deal) -> Tally:
        """Drive a stage; returns what it came to."""
        bench = self._bench
        trial = bench.plan.trial
        stage.workers = self._place.processes(deal, trial)
        cap = trial.max_concurrency
        targets = [stage_settings(settings, deal, cap) for settings in bench.targets]
        part = Part(number, stage.first_request, stage.workers, targets)
        run = StageRun(bench, stage, deal, part)
        team = self._place.team(bench, deal, part)
        self._look()  # while the load processes get ready, so that it takes no time
        run.run(team)
        return run.tally


class StageRun:
    """One stage being driven."""

    def __init__(self, bench: Bench, stage: Stage, deal: Deal, part: Part) -> None:
        self.bench, self.stage, self.deal, self.part = bench, stage, deal, part
        self.back: set[int] = set()
        """Requests that came back."""
        self.tally = Tally()
        self.stopped_ns: int | None = None
        """When nothing more was to be sent, because of an interrupt."""

    def run(self, team: Team) -> None:
        """Drive the stage to its end."""
        bench = self.bench
        try:
            start_ns = team.begin(bench.interrupt.stop_level)
            self.stage.start_ns = start_ns - bench.origin_ns
            bench.writer.write_manifest()
            self._follow(team, start_ns)
            died = self._keep_health(team)
        finally:
            team.close()
        self._keep_never_sent(start_ns, died)

    def _follow(self, team: Team, start_ns: int) -> None:
        bench, told = self.bench, 0
        for batch in team.batches():
            self.back.update(batch.requests)
            self.tally.add(batch.tally)
            bench.writer.extend(batch.lines)
            level = bench.interrupt.stop_level()
            if level > told:
                if not told and bench.watcher is not None:
                    bench.watcher.draining(bench.interrupt.name)
                self.stopped_ns = self.stopped_ns or time.monotonic_ns()
                told = level
                team.stop(level)
            bench.writer.flush()
            if bench.watcher is not None:
                elapsed_s = max(0, time.monotonic_ns() - start_ns) / 1e9
                moment = Moment.of(self.deal, elapsed_s, team.live(), self.tally)
                bench.watcher.progress(self.stage, moment)

    def _keep_never_sent(self, start_ns: int, died: dict[int, str]) -> None:
        """Every request that was due has an outcome, also those that no process got to send."""
        if not (self.stage.open or (died and self.deal.planned)):
            return
        bench, part = self.bench, self.part
        for process in range(part.processes):
            why = f"lost: {died[process]}" if process in died else f"not sent: {_why(bench)}"
            for dealt in self.deal.requests(process, part.processes):
                index = part.first + dealt.k
                due_ns = start_ns + max(0, dealt.due_ns)
                if self.stopped_ns is not None and due_ns > self.stopped_ns:
                    break
                if index in self.back or (dealt.due_ns < 0 and process not in died):
                    continue
                bench.writer.append(
                    Record(
                        request=index,
                        stage=part.stage,
                        target=process % len(part.targets),
                        session=None if dealt.turn is None else dealt.turn.session,
                        turn=0 if dealt.turn is None else dealt.turn.number,
                        due_ns=due_ns - bench.origin_ns,
                        outcome=CANCELLED,
                        reason=why,
                    )
                )

    def _keep_health(self, team: Team) -> dict[int, str]:
        """Keep what the load processes say of themselves; returns why some died."""
        writer = self.bench.writer
        at_ns = time.monotonic_ns() - self.bench.origin_ns
        found, died = team.end()
        for health in found:
            labels = {"stage": str(self.part.stage), "worker": str(health.worker)}
            for name, value in dataclasses.asdict(health).items():
                if name != "worker":
                    writer.sample(
                        Sample(
                            t_ns=at_ns, source="loop", name=name, value=float(value), labels=labels
                        )
                    )
        clock = clock_of([one.kernel_clock for one in found], [one.turns for one in found])
        if writer.manifest.clock != "user":  # one stage without stamps is enough to say so
            writer.manifest.clock = clock or writer.manifest.clock
        for why in died.values():
            writer.manifest.interrupted = why
        return died


def _why(bench: Bench) -> str:
    """Why requests that were due were not sent."""
    if bench.interrupt.level:
        return "the run was interrupted"
    return not_sent(bench.plan.trial.max_concurrency)


def process_count(deal: Deal, trial: Trial) -> int:
    """How many load processes a stage gets on this machine."""
    return machine.load_processes(
        deal.offer,
        trial,
        targets=deal.targets,
        cores=machine.usable_cores(),
        files=machine.open_files()[1],
    )


def stage_settings(settings: Settings, deal: Deal, cap: int | None) -> Settings:
    """What the load processes of a stage are told, before it is dealt out among them."""
    offer, limit = deal.offer, deal.limit
    users = offer.users * deal.loads if isinstance(offer, Closed) else 0
    # Where due times say it all, the end needs no clock.
    by_time = limit.duration_s is not None and (users or cap or not deal.items.alone)
    return dataclasses.replace(
        settings,
        users=users,
        think_ns=round(offer.think_s * 1e9) if isinstance(offer, Closed) else 0,
        duration_ns=round((limit.duration_s or 0) * 1e9) if by_time else 0,
        cap=0 if users else (cap or 0) * deal.loads,
        warm=min(MOST_WARM, most_connections(offer, cap) * deal.loads),
        ahead=max(AHEAD_LEAST, AHEAD_USER * users if users else AHEAD_OPEN),
    )


def most_connections(offer: Open | Closed, cap: int | None) -> int:
    """Connections that a load will want at once: its users, or all that is due within a second."""
    if isinstance(offer, Closed):
        return offer.users
    due = offer.due_ns
    ahead = np.searchsorted(due, due + 1_000_000_000, side="left") - np.arange(len(due))
    return min(int(ahead.max()), cap or ENDLESS)
