"""One stage of a run: feed the load processes, read what they spool, keep the records."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from servescope.client import answer, wire, workers
from servescope.client.feed import Settings
from servescope.client.flush import flush_cache
from servescope.client.secret import without
from servescope.client.wire import Exchange
from servescope.deal import Deal, Dealt, not_sent
from servescope.load import Closed, Open
from servescope.prepare import Bench, encode
from servescope.protocols import plain_text
from servescope.records import CANCELLED, Record, Sample
from servescope.store import Stage
from servescope.tally import Tally

if TYPE_CHECKING:
    from servescope.experiment import Trial

MOST_WARM = 1024
AHEAD_OPEN, AHEAD_USER, AHEAD_LEAST = 4096, 8, 256
"""Requests rendered ahead: for an open load, for each user of a closed one, and at least."""
ENDLESS = 1 << 60


class Measured:
    """The stages of a run against real endpoints."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.items, self.targets = bench.items, len(bench.targets)

    def flush_cache(self) -> str | None:
        """Empty the targets' prefix caches; how it was done, None where it could not be."""
        return flush_cache(self._bench.dialogues, self._bench.endpoint.engine)

    def drive(self, stage: Stage, number: int, deal: Deal) -> Tally:
        """Drive a stage; returns what it came to."""
        run = StageRun(self._bench, stage, number, deal)
        run.run()
        return run.tally


class StageRun:
    """One stage being driven."""

    def __init__(self, bench: Bench, stage: Stage, number: int, deal: Deal) -> None:
        """`number` is the stage's in the records."""
        self.bench, self.stage, self.number, self.deal = bench, stage, number, deal
        self.processes = process_count(deal, bench.plan.trial)
        self.asked: dict[int, answer.Asked] = {}
        self.back: set[int] = set()
        """Requests that came back."""
        self.tally = Tally()
        self.stopped_ns: int | None = None
        """When nothing more was to be sent, because of an interrupt."""

    def run(self) -> None:
        """Drive the stage to its end."""
        bench, cap = self.bench, self.bench.plan.trial.max_concurrency
        targets = [stage_settings(settings, self.deal, cap) for settings in bench.targets]
        team = workers.Workers(targets, self.processes, bench.writer.path)
        try:
            start_ns = team.begin(self._requests, bench.interrupt.stop_level)
            self.stage.start_ns = start_ns - bench.origin_ns
            bench.writer.write_manifest()
            self._follow(team, start_ns)
            died = self._keep_health(team)
        finally:
            team.close()
        self._keep_never_sent(start_ns, died)

    def _requests(self, process: int) -> Iterator[wire.Request]:
        """What one load process is to send; called by its feeding thread."""
        for dealt in self.deal.requests(process, self.processes):
            yield self._request(dealt)

    def _request(self, dealt: Dealt) -> wire.Request:
        index, bench = self.stage.first_request + dealt.k, self.bench
        item, turn = bench.items(dealt.item), dealt.turn
        prompt = item.prompt_bytes
        self.asked[index] = answer.Asked(
            stage=self.number,
            input_tokens=item.input_tokens,
            output_tokens=item.output_tokens,
            pinned=item.pinned,
            stream=bench.plan.trial.stream,
            prompt_sha256=hashlib.sha256(prompt).hexdigest()[:16],
            prompt_bytes=len(prompt),
            prompt=prompt.decode() if bench.plan.trial.keep_text else None,
            session=None if turn is None else turn.session,
            turn=0 if turn is None else turn.number,
            echoed=len(plain_text(item.prompt)) if bench.wire.echoes_prompt else 0,
        )
        return wire.Request(
            number=index,
            due_ns=dealt.due_ns,
            limit=answer.overrun_limit(item.output_tokens),
            body=encode(bench, item),
            session=-1 if turn is None else turn.session,
            turn=0 if turn is None else turn.number,
            last=0 if turn is None else turn.last,
            think_ns=-1 if item.think_s is None else round(item.think_s * 1e9),
        )

    def _follow(self, team: workers.Workers, start_ns: int) -> None:
        bench, told = self.bench, 0
        for process, exchange in team.exchanges():
            if exchange is not None:
                self._keep(exchange, process)
                continue
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
                bench.watcher.progress(self.stage, elapsed_s, team.live(), self.tally.failed)

    def _keep(self, exchange: Exchange, process: int) -> None:
        bench = self.bench
        asked = self.asked.pop(exchange.request)
        self.back.add(exchange.request)
        record = answer.record(exchange, asked, bench.wire, bench.origin_ns, bench.count)
        record.target = process % len(bench.targets)
        if bench.secrets:
            record = without(bench.secrets, record)
        self.tally.note(record)
        bench.writer.append(record)

    def _keep_never_sent(self, start_ns: int, died: set[int]) -> None:
        """Every request that was due has an outcome, also those that no process got to send."""
        if not (self.stage.open or (died and self.deal.planned)):
            return
        why = _why_not_sent(self.bench)
        for process in range(self.processes):
            for dealt in self.deal.requests(process, self.processes):
                index = self.stage.first_request + dealt.k
                due_ns = start_ns + max(0, dealt.due_ns)
                if self.stopped_ns is not None and due_ns > self.stopped_ns:
                    break
                if index in self.back or (dealt.due_ns < 0 and process not in died):
                    continue
                self.bench.writer.append(
                    Record(
                        request=index,
                        stage=self.number,
                        target=process % len(self.bench.targets),
                        session=None if dealt.turn is None else dealt.turn.session,
                        turn=0 if dealt.turn is None else dealt.turn.number,
                        due_ns=due_ns - self.bench.origin_ns,
                        outcome=CANCELLED,
                        reason=f"not sent: {why}",
                    )
                )

    def _keep_health(self, team: workers.Workers) -> set[int]:
        """Keep what the load processes say of themselves; returns those that died."""
        at_ns = time.monotonic_ns() - self.bench.origin_ns
        died = set()
        for health in team.health():
            labels = {"stage": str(self.number), "worker": str(health.worker)}
            for name, value in dataclasses.asdict(health).items():
                if name != "worker":
                    self.bench.writer.sample(
                        Sample(
                            t_ns=at_ns, source="loop", name=name, value=float(value), labels=labels
                        )
                    )
            if health.exit_status:
                died.add(health.worker)
                words = team.workers[health.worker].last_words()
                self.bench.writer.manifest.interrupted = f"a load process died: {words}"
        return died


def _why_not_sent(bench: Bench) -> str:
    """Why requests that were due were not sent."""
    if bench.interrupt.level:
        return "the run was interrupted"
    if bench.writer.manifest.interrupted:
        return bench.writer.manifest.interrupted
    return not_sent(bench.plan.trial.max_concurrency)


def process_count(deal: Deal, trial: Trial) -> int:
    """How many load processes a stage gets: a multiple of the targets, none of them idle."""
    users = deal.offer.users if isinstance(deal.offer, Closed) else trial.max_concurrency
    most = ENDLESS if users is None else users * deal.loads
    rounds = min(-(-trial.workers // deal.targets), most // deal.targets)
    return max(1, rounds) * deal.targets


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
