"""A load against a simulated engine in virtual time: the records of a run without a server.

Time goes from the end of one step to the end of the next, or to the next arrival where the engine
is idle. What arrives during a step waits for its end; what arrives just then joins the next batch.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from servescope.deal import Deal, Dealt, not_sent
from servescope.engine import Work
from servescope.engine.arrivals import NEVER, Arrival, Arrivals
from servescope.engine.config import BUSY
from servescope.engine.readings import Keep, Readings
from servescope.engine.replica import NS, Replica
from servescope.engine.routers import ROUTERS, Router
from servescope.engine.scheduler import FOREVER, Engine
from servescope.engine.tokenizer import prompt_tokens, voice, voice_ids
from servescope.protocols import messages_of
from servescope.records import CANCELLED, Record


def simulate(
    engines: Sequence[Engine],
    deal: Deal,
    *,
    router: str = "round_robin",
    first: int = 0,
    stage: int = 0,
    start_ns: int = 0,
    cap: int | None = None,
    keep_text: bool = False,
    stream: bool = True,
    keep: Keep | None = None,
) -> Iterator[Record]:
    """The records of one stage, as they end, no faster than they are taken.

    `first` is the index of its first request over the run and `start_ns` when it begins; an engine
    that served an earlier stage keeps its prefix cache. At most `cap` requests of an open load are
    in flight at once. A request that the engine does not take fails like one that a server refuses.
    `router` says which of several engines gets it. `keep` is given what they would tell of
    themselves meanwhile.
    """
    return _Stage(
        engines=engines,
        route=ROUTERS[router](),
        arrivals=Arrivals(deal),
        first=first,
        number=stage,
        start_ns=start_ns,
        cap=cap or NEVER,
        end_ns=NEVER if deal.limit.duration_s is None else round(deal.limit.duration_s * 1e9),
        keep_text=keep_text,
        stream=stream,
        readings=None if keep is None else Readings(engines, start_ns, keep),
    ).run()


PREFIX = 256
"""Prompts that begin with the same so many tokens are of one group, for a router that heeds it."""


@dataclass(kw_only=True)
class _Stage:
    """One stage. Times are ns since its start until they enter a record.

    They are the client's; the engine sees a request half a turnaround after it was sent, and its
    tokens are seen half a turnaround after they were made.
    """

    engines: Sequence[Engine]
    route: Router
    arrivals: Arrivals
    first: int
    number: int
    start_ns: int
    cap: int
    end_ns: int
    """No request starts then or later."""
    keep_text: bool
    stream: bool
    readings: Readings | None
    busy: int = field(default=0, init=False)
    on_the_way: deque[Arrival] = field(default_factory=deque, init=False)
    """Requests that were sent and have not come to the engine."""
    slot_freed_ns: int = field(default=0, init=False)
    """When a request last ended while as many were in flight as may be."""
    due: list[tuple[int, int]] = field(default_factory=list, init=False)
    """Heap of (when, which replica): when its step is over, or it is to begin one."""

    def __post_init__(self) -> None:
        self._way_ns = max(1, round(self.engines[0].config.turnaround_s * 1e9) // 2)
        self.replicas = [Replica(engine, self._way_ns) for engine in self.engines]
        self.loads = [0] * len(self.engines)
        """Requests that each has."""
        self.awake = [False] * len(self.engines)

    def run(self) -> Iterator[Record]:
        """Let time go by: `now` is the engines'."""
        now = ended = 0
        readings = self.readings
        while self.busy or now < self.end_ns:
            self._send(now - self._way_ns + 1)
            come_ns = self._come_ns()
            if not self.due or come_ns * NS < self.due[0][0]:
                now = come_ns
                if not self.due and readings is not None and readings.due_ns < now < self.end_ns:
                    readings.idle(now)
                yield from self._take_in(now)
                continue
            now_fs, chosen = heapq.heappop(self.due)
            replica = self.replicas[chosen]
            if replica.step is not None:
                now = ended = now_fs // NS
                if readings is not None and now >= readings.due_ns:
                    readings.read(now, sum(one.step.sequences for one in self.replicas if one.step))
                self._send(now + self._way_ns)
                for work in replica.over():
                    self.loads[chosen] -= 1
                    yield self._answered(work, now + self._way_ns)
                    yield from self._lost(now + self._way_ns)
                self._send(now - self._way_ns + 1)
            yield from self._take_in(now)
            over_fs = replica.begin(now_fs, self._until_fs(), self._come_ns() * NS)
            if over_fs is not None:
                heapq.heappush(self.due, (over_fs, chosen))
            self.awake[chosen] = over_fs is not None
        if readings is not None:
            readings.end(ended)
        for dealt in self.arrivals.rest():
            why = not_sent(None if self.cap == NEVER else self.cap)
            yield self._cancelled(dealt, dealt.due_ns, f"not sent: {why}")

    def _until_fs(self) -> int:
        """When the engines are read, or the end of another one's step may bring a request."""
        until_fs = FOREVER if self.readings is None else self.readings.due_ns * NS
        if self.due:
            until_fs = min(until_fs, self.due[0][0] + 2 * self._way_ns * NS)
        return until_fs

    def _next_ns(self) -> int:
        """When the next request is sent, if the cap allows it."""
        return max(self.arrivals.next_ns(), self.slot_freed_ns)

    def _come_ns(self) -> int:
        """When the next request comes to the engine, if no other ends before."""
        if self.on_the_way:
            return self.on_the_way[0].sent_ns + self._way_ns
        if self.busy >= self.cap and self.arrivals.open:
            return NEVER
        sent_ns = self._next_ns()
        return sent_ns + self._way_ns if sent_ns < self.end_ns else NEVER

    def _send(self, until_ns: int) -> None:
        """Send what is due before `until_ns`, as far as the cap allows."""
        while self.busy < self.cap or not self.arrivals.open:
            sent_ns = self._next_ns()
            if sent_ns >= min(until_ns, self.end_ns):
                return
            asked = self.arrivals.take()
            asked.sent_ns = sent_ns
            self.busy += 1
            self.on_the_way.append(asked)

    def _take_in(self, now: int) -> Iterator[Record]:
        """Hand what has come to the engine; yields the records of what it does not take."""
        while self.on_the_way and self.on_the_way[0].sent_ns + self._way_ns <= now:
            refused = self._submit(self.on_the_way.popleft())
            if refused is not None:
                yield refused
                yield from self._lost(refused.end_ns - self.start_ns)

    def _submit(self, asked: Arrival) -> Record | None:
        """Hand a request to the engine; returns its record if it is over with that."""
        prompt, tokens = asked.prompt, asked.item.output_tokens
        ids = prompt_tokens(messages_of(prompt) if isinstance(prompt, str) else prompt)
        work = Work(ids, tokens, asked, answer=voice_ids(self._index(asked.dealt), tokens))
        try:
            chosen = self.route(self.loads, hash(ids[:PREFIX])) if len(self.engines) > 1 else 0
            if self.engines[chosen].submit(work):
                self.loads[chosen] += 1
                if not self.awake[chosen]:
                    self.awake[chosen] = True
                    come_ns = asked.sent_ns + self._way_ns
                    heapq.heappush(self.due, (come_ns * NS, chosen))
                return None
        except ValueError as error:
            return self._refused(asked, "http_4xx", 400, str(error))
        words = BUSY.get(self.engines[0].config.wire)
        if self.stream and words is not None:
            return self._refused(asked, "server_error_event", 200, words)
        return self._refused(asked, "http_5xx", 503, words or "the queue is full")

    def _answered(self, work: Work, now: int) -> Record:
        asked: Arrival = work.owner
        record = self._record(asked, now)
        at = [self.start_ns + ns for ns in asked.token_ns]
        answer = "".join(islice(voice(record.request), work.made))
        record.first_byte_ns = record.first_output_ns = at[0]
        record.chunk_ns = [at[0], *(b - a for a, b in pairwise(at))]
        record.chunk_tokens = 1
        record.input_tokens, record.output_tokens = work.prompt_tokens, work.made
        if self.engines[0].kv.prefix_cache:
            record.cached_tokens = work.cached_tokens
        record.count_source, record.finish_reason = "server", "length"
        record.answer_sha256, record.answer_bytes = _digest(answer.encode())
        record.answer = answer if self.keep_text else None
        self._over(asked, now, answer)
        return record

    def _refused(self, asked: Arrival, kind: str, status: int, why: str) -> Record:
        at_ns = asked.sent_ns + 2 * self._way_ns
        record = self._record(asked, at_ns)
        record.first_byte_ns = record.end_ns
        told = why if status == 200 else f"HTTP {status}; {why}"
        record.outcome, record.reason = f"failed:{kind}", told
        record.status = status
        self._over(asked, at_ns, None)
        return record

    def _over(self, asked: Arrival, at_ns: int, answer: str | None) -> None:
        if self.busy == self.cap and self.arrivals.open:
            self.slot_freed_ns = at_ns
        self.busy -= 1
        self.arrivals.over(asked, at_ns, answer)

    def _lost(self, at_ns: int) -> Iterator[Record]:
        """Later turns of sessions that failed; after the end, none was to be sent anyway."""
        lost = self.arrivals.lost()
        if at_ns < self.end_ns:
            for dealt in lost:
                yield self._cancelled(dealt, at_ns, "the turn before it did not end well")

    def _record(self, asked: Arrival, end_ns: int) -> Record:
        """What all records have that were sent."""
        item, turn = asked.item, asked.dealt.turn
        prompt = item.prompt_bytes
        record = Record(
            request=self._index(asked.dealt),
            stage=self.number,
            session=None if turn is None else turn.session,
            turn=0 if turn is None else turn.number,
            due_ns=self.start_ns + asked.due_ns,
            sent_ns=self.start_ns + asked.sent_ns,
            held_ns=asked.sent_ns - asked.due_ns,
            end_ns=self.start_ns + end_ns,
            asked_input_tokens=item.input_tokens,
            asked_output_tokens=item.output_tokens,
            pinned=item.pinned,
            status=200,
            prompt=prompt.decode() if self.keep_text else None,
        )
        record.prompt_sha256, record.prompt_bytes = _digest(prompt)
        return record

    def _cancelled(self, dealt: Dealt, due_ns: int, why: str) -> Record:
        turn = dealt.turn
        return Record(
            request=self._index(dealt),
            stage=self.number,
            session=None if turn is None else turn.session,
            turn=0 if turn is None else turn.number,
            due_ns=self.start_ns + due_ns,
            outcome=CANCELLED,
            reason=why,
        )

    def _index(self, dealt: Dealt) -> int:
        return self.first + dealt.k


def _digest(data: bytes) -> tuple[str, int]:
    return hashlib.sha256(data).hexdigest()[:16], len(data)
