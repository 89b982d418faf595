"""One stage of a run: feed the load processes, read what they spool, keep the records."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Protocol, Self

import msgspec
import numpy as np

from servescope.client import answer, workers
from servescope.client.feed import Settings
from servescope.client.wire import Exchange
from servescope.datasets import Item, ItemSource
from servescope.load import Closed, Limit, Open
from servescope.protocols import Ask, WireProtocol
from servescope.records import CANCELLED, Record, Sample
from servescope.store import RunWriter, Stage

if TYPE_CHECKING:
    from servescope.client.probe import Endpoint
    from servescope.client.secret import Secret
    from servescope.experiment import Plan
    from servescope.rulers import Ruler

MOST_WARM = 1024
AHEAD_OPEN, AHEAD_USER, AHEAD_LEAST = 4096, 8, 256
"""Requests rendered ahead: for an open load, for each user of a closed one, and at least."""
ENDLESS = 1 << 60


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def target(self, endpoint: Endpoint, ruler: Ruler, plan: Plan) -> None:
        """The target is known and the run begins."""

    def stage(self, stage: Stage) -> None:
        """A stage begins."""

    def progress(self, stage: Stage, elapsed_s: float, live: workers.Live, failed: int) -> None:
        """Many times a second."""

    def draining(self, why: str) -> None:
        """The run was interrupted: nothing more is sent, what is in flight may end."""


class Interrupt:
    """INT and TERM: the first ends the run in order, the second at once."""

    def __init__(self) -> None:
        self.level = 0
        self.name = ""
        self._at_s = 0.0

    def __enter__(self) -> Self:
        try:
            self._before = {
                n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not in the main thread: whoever called us handles signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.level += 1
        self.name = signal.Signals(number).name
        self._at_s = self._at_s or time.monotonic()

    def stop_level(self) -> int:
        """What the load processes are told: 1 offer no more, 2 end at once."""
        if not self.level:
            return 0
        return 2 if self.level > 1 or time.monotonic() - self._at_s > workers.DRAIN_S else 1


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all stages of a run share."""

    plan: Plan
    endpoint: Endpoint
    wire: WireProtocol
    items: ItemSource
    settings: Settings
    """Of the load processes, without what a stage's own load decides."""
    writer: RunWriter
    origin_ns: int
    count: Callable[[str], int] | None
    """A local tokenizer, to count answers that the server did not count."""
    secrets: list[Secret]
    interrupt: Interrupt
    watcher: Watcher | None


class StageRun:
    """One stage being driven."""

    def __init__(self, bench: Bench, stage: Stage, number: int, first: int) -> None:
        """`number` is the stage's in the records, `first` the index of its first request."""
        self.bench, self.stage, self.number, self.first = bench, stage, number, first
        self.asked: dict[int, answer.Asked] = {}
        self.back: set[int] = set()
        """Requests of an open load that came back."""
        self.failed = 0
        self.stopped_ns: int | None = None
        """When nothing more was to be sent, because of an interrupt."""

    def run(self, offer: Open | Closed, limit: Limit) -> None:
        """Drive the stage to its end."""
        bench = self.bench
        settings = stage_settings(bench.settings, offer, limit, bench.plan.trial.max_concurrency)
        count = min(bench.plan.trial.workers, settings.users or settings.cap or ENDLESS)
        if isinstance(offer, Open):
            due_ns, total = _due_time(offer), len(offer.due_ns)
        else:
            due_ns, total = _no_due_time, limit.requests or ENDLESS
        team = workers.Workers(settings, count, bench.writer.path)
        try:
            start_ns = team.begin(total, due_ns, self._request, bench.interrupt.stop_level)
            self.stage.start_ns = start_ns - bench.origin_ns
            bench.writer.write_manifest()
            self._follow(team, start_ns)
            self._keep_health(team)
        finally:
            team.close()
        if isinstance(offer, Open):
            self._keep_never_sent(offer, start_ns)

    def _request(self, k: int) -> tuple[int, int, bytes]:
        """Render request k of the stage; called by the feeding threads."""
        index, bench = self.first + k, self.bench
        item = bench.items(index)
        prompt = prompt_bytes(item)
        self.asked[index] = answer.Asked(
            stage=self.number,
            input_tokens=item.input_tokens,
            output_tokens=item.output_tokens,
            pinned=item.pinned,
            stream=bench.plan.trial.stream,
            prompt_sha256=hashlib.sha256(prompt).hexdigest()[:16],
            prompt_bytes=len(prompt),
            prompt=prompt.decode() if bench.plan.trial.keep_text else None,
        )
        return index, answer.overrun_limit(item.output_tokens), encode(bench, item)

    def _follow(self, team: workers.Workers, start_ns: int) -> None:
        bench, told = self.bench, 0
        for exchange in team.exchanges():
            if exchange is not None:
                self._keep(exchange)
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
                bench.watcher.progress(self.stage, elapsed_s, team.live(), self.failed)

    def _keep(self, exchange: Exchange) -> None:
        bench = self.bench
        asked = self.asked.pop(exchange.request)
        if self.stage.open:
            self.back.add(exchange.request)
        record = answer.record(exchange, asked, bench.wire, bench.origin_ns, bench.count)
        for secret in bench.secrets:
            record.reason = secret.hide(record.reason)
        self.failed += record.outcome.startswith("failed")
        bench.writer.append(record)

    def _keep_never_sent(self, offer: Open, start_ns: int) -> None:
        """Every request that was due has an outcome, also those that no process got to send."""
        bench, why = self.bench, _why_not_sent(self.bench)
        for k, due_ns in enumerate(offer.due_ns.tolist()):
            if self.stopped_ns is not None and start_ns + due_ns > self.stopped_ns:
                break
            if self.first + k not in self.back:
                bench.writer.append(
                    Record(
                        request=self.first + k,
                        stage=self.number,
                        due_ns=start_ns + due_ns - bench.origin_ns,
                        outcome=CANCELLED,
                        reason=f"not sent: {why}",
                    )
                )

    def _keep_health(self, team: workers.Workers) -> None:
        at_ns = time.monotonic_ns() - self.bench.origin_ns
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
                words = team.workers[health.worker].last_words()
                self.bench.writer.manifest.interrupted = f"a load process died: {words}"


def _why_not_sent(bench: Bench) -> str:
    """Why requests that were due were not sent."""
    if bench.interrupt.level:
        return "the run was interrupted"
    return bench.writer.manifest.interrupted or "the cap on concurrency was reached to the end"


def _due_time(offer: Open) -> Callable[[int], int]:
    return lambda k: int(offer.due_ns[k])


def _no_due_time(_k: int) -> int:
    return -1


def stage_settings(
    settings: Settings, offer: Open | Closed, limit: Limit, cap: int | None
) -> Settings:
    """What the load processes of a stage are told, before it is dealt out among them."""
    users = offer.users if isinstance(offer, Closed) else 0
    by_time = limit.duration_s is not None and (users or cap)  # else the due times say it all
    return dataclasses.replace(
        settings,
        users=users,
        think_ns=round(offer.think_s * 1e9) if isinstance(offer, Closed) else 0,
        duration_ns=round((limit.duration_s or 0) * 1e9) if by_time else 0,
        cap=0 if users else cap or 0,
        warm=min(MOST_WARM, most_connections(offer, cap)),
        ahead=max(AHEAD_LEAST, AHEAD_USER * users if users else AHEAD_OPEN),
    )


def most_connections(offer: Open | Closed, cap: int | None) -> int:
    """Connections that a load will want at once: its users, or all that is due within a second."""
    if isinstance(offer, Closed):
        return offer.users
    due = offer.due_ns
    ahead = np.searchsorted(due, due + 1_000_000_000, side="left") - np.arange(len(due))
    return min(int(ahead.max()), cap or ENDLESS)


def encode(bench: Bench, item: Item) -> bytes:
    """The body of the request for an item, with the optional fields that the target takes."""
    fields = set(bench.endpoint.fields)
    if not item.pinned:
        fields -= {"ignore_eos", "min_tokens"}
    ask = Ask(
        prompt=item.prompt,
        output_tokens=item.output_tokens,
        model=bench.endpoint.model,
        stream=bench.plan.trial.stream,
        extra=bench.plan.trial.extra_body,
    )
    return bench.wire.encode(msgspec.structs.replace(ask, **dict.fromkeys(fields, True)))


def prompt_bytes(item: Item) -> bytes:
    """What identifies a prompt: its text, or its token ids or messages as JSON."""
    if isinstance(item.prompt, str):
        return item.prompt.encode()
    return msgspec.json.encode(item.prompt)
