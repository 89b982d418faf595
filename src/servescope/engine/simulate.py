"""A load against a simulated engine in virtual time: the records of a run without a server.

Time goes from one event to the next: a request comes to the router, or from its front end to the
engine, a step is over, an answer goes out. What comes to an engine during a step waits for its end;
what comes just then joins the next batch.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice, pairwise

from servescope.deal import Deal, Dealt, not_sent
from servescope.engine import Work
from servescope.engine.arrivals import NEVER, Arrival, Arrivals
from servescope.engine.config import BUSY
from servescope.engine.disaggregation import NO_TRANSFER, Prefill, Transfer
from servescope.engine.front_end import NO_FRONT_END, FrontEndCost
from servescope.engine.readings import Keep, Readings
from servescope.engine.replica import NS, Handed, Replica
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
    front_end: FrontEndCost = NO_FRONT_END,
    prefill: Sequence[Engine] = (),
    transfer: Transfer = NO_TRANSFER,
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
    `router` says which of several engines gets it; each has a `front_end` like this. With
    `prefill`, those engines compute the prompts, and hand them over by `transfer`. `keep` is given
    what the engines that answer would tell of themselves meanwhile.
    """
    return _Stage(
        engines=engines,
        route=ROUTERS[router](),
        front_end=front_end,
        prefill=Prefill(prefill, transfer) if prefill else None,
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

    They are the client's; the router sees a request half a turnaround after it was sent, and its
    tokens are seen half a turnaround after they went out. Who waits for an answer to ask again
    takes another half to do so.
    """

    engines: Sequence[Engine]
    route: Router
    front_end: FrontEndCost
    prefill: Prefill | None
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
    """Requests that were sent and have not come to the router."""
    slot_freed_ns: int = field(default=0, init=False)
    """When a request last ended while as many were in flight as may be."""
    due: list[tuple[int, int]] = field(default_factory=list, init=False)
    """Heap of (fs when its step is over or it is to begin one, replica), or (fs when the next of
    its inbox comes to the engine, ~replica), which goes before."""
    leaving: list[tuple[int, int, Callable[[int], Record]]] = field(
        default_factory=list, init=False
    )
    """Heap of (fs when it goes out, number, what makes its record): answers, and refusals."""

    def __post_init__(self) -> None:
        self._way_ns = max(1, round(self.engines[0].config.turnaround_s * 1e9) // 2)
        self.replicas = [Replica(one, self.front_end, self._way_ns) for one in self.engines]
        """Those that answer, and those that only compute prompts."""
        if self.prefill is not None:
            of_prompts = self.prefill.engines
            self.replicas += [Replica(one, NO_FRONT_END, self._way_ns) for one in of_prompts]
        self.loads = [0] * len(self.engines)
        """Requests that each has to answer, in its front end and in engines."""
        self.awake = [False] * len(self.replicas)
        self._numbers = count()

    def run(self) -> Iterator[Record]:
        """Let time go by: `now` is the engines'."""
        now = ended = 0
        readings = self.readings
        while self.busy or now < self.end_ns:
            come_ns = self._come_ns()
            due_fs = self.due[0][0] if self.due else NEVER * NS
            if self.leaving and self.leaving[0][0] <= min(come_ns * NS, due_fs):
                now = self.leaving[0][0] // NS
                yield from self._leave(self.leaving[0][0])
                continue
            if come_ns * NS <= due_fs:
                now = come_ns
                if not self.due and readings is not None and readings.due_ns < now < self.end_ns:
                    readings.idle(now)
                self._take_in(now)
                continue
            now_fs, chosen = heapq.heappop(self.due)
            now = now_fs // NS
            if chosen < 0:
                self._come(now_fs, ~chosen)
                continue
            replica = self.replicas[chosen]
            if replica.step is not None:
                ended = now
                if readings is not None and now >= readings.due_ns:
                    answering = self.replicas[: len(self.engines)]
                    readings.read(now, sum(one.step.sequences for one in answering if one.step))
                for out_fs, work in replica.over(now_fs):
                    self._whole(work, out_fs, chosen)
                yield from self._leave(now_fs)
            until_fs = FOREVER if readings is None else readings.due_ns * NS
            over_fs = replica.begin(now_fs, until_fs, self._arrival_fs(replica))
            if over_fs is not None:
                heapq.heappush(self.due, (over_fs, chosen))
            self.awake[chosen] = over_fs is not None
        if readings is not None:
            readings.end(ended)
        for dealt in self.arrivals.rest():
            why = not_sent(None if self.cap == NEVER else self.cap)
            yield self._cancelled(dealt, dealt.due_ns, f"not sent: {why}")

    def _arrival_fs(self, replica: Replica) -> int:
        """A request comes to the engine then at the earliest: from the front end, from a client, or
        from one who gets an answer before."""
        bounds = [self._come_ns() * NS]
        bounds += [heap[0][0] + 2 * self._way_ns * NS for heap in (self.due, self.leaving) if heap]
        come_fs = min(bounds) + replica.front.intake
        if self.prefill is not None and self.due:
            come_fs = min(come_fs, self.due[0][0] + self.prefill.latency_fs)
        return min(come_fs, replica.inbox[0][0]) if replica.inbox else come_fs

    def _next_ns(self) -> int:
        """When the next request is sent, if the cap allows it."""
        return max(self.arrivals.next_ns(), self.slot_freed_ns)

    def _come_ns(self) -> int:
        """When the next request comes to the router, if no other ends before."""
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

    def _take_in(self, now: int) -> None:
        """Requests come to the router, and to a front end."""
        self._send(now - self._way_ns + 1)
        while self.on_the_way and self.on_the_way[0].sent_ns + self._way_ns <= now:
            asked = self.on_the_way.popleft()
            prompt, tokens = asked.prompt, asked.item.output_tokens
            ids = prompt_tokens(messages_of(prompt) if isinstance(prompt, str) else prompt)
            answer = voice_ids(self._index(asked.dealt), tokens)
            work = Work(ids, tokens, asked, answer=answer)
            chosen = self.route(self.loads, abs(hash(ids[:PREFIX]))) if len(self.engines) > 1 else 0
            self.loads[chosen] += 1
            replica, come_fs = self.replicas[chosen], (asked.sent_ns + self._way_ns) * NS
            ready_fs = replica.take_in(come_fs)
            if ready_fs > come_fs:
                self._later(work, ready_fs, chosen, next(self._numbers), taken_in=True)
            else:
                self._submit(work, come_fs, chosen)

    def _later(
        self, work: Work, ready_fs: int, chosen: int, number: int, *, taken_in: bool = False
    ) -> None:
        """A request will come to an engine, or will have been taken in by a front end."""
        heapq.heappush(self.replicas[chosen].inbox, (ready_fs, number, work, taken_in))
        heapq.heappush(self.due, (ready_fs, ~chosen))

    def _come(self, now_fs: int, chosen: int) -> None:
        """What was to be later is now."""
        replica = self.replicas[chosen]
        _, number, work, taken_in = heapq.heappop(replica.inbox)
        out_fs = replica.front.out(now_fs) if taken_in else now_fs
        if out_fs > now_fs:
            self._later(work, out_fs, chosen, number)
        else:
            self._submit(work, now_fs, chosen)

    def _submit(self, work: Work, now_fs: int, chosen: int) -> None:
        """A request comes to an engine: to that which answers, or to one that computes prompts."""
        asked, engine = work.owner, chosen
        try:
            if self.prefill is not None and not work.brought_tokens:
                self.engines[chosen].check(work)
                engine, work = self.prefill.begin(work, Handed(work, chosen))
                engine += len(self.engines)
            taken = self.replicas[engine].engine.submit(work)
        except ValueError as error:
            refused = partial(self._refused, asked, "http_4xx", 400, str(error))
            self._left(now_fs, chosen, refused)
            return
        if not taken:
            words = BUSY.get(self.engines[0].config.wire)
            told = ("http_5xx", 503, words or "the queue is full")
            if self.stream and words is not None:
                told = ("server_error_event", 200, words)
            self._left(now_fs, chosen, partial(self._refused, asked, *told))
        elif not self.awake[engine]:
            self.awake[engine] = True
            heapq.heappush(self.due, (now_fs, engine))

    def _whole(self, work: Work, out_fs: int, chosen: int) -> None:
        """An answer is whole; or a prompt is, and its KV goes to the replica that answers."""
        asked: Arrival | Handed = work.owner
        if self.prefill is not None and isinstance(asked, Handed):
            ready_fs = self.prefill.end(chosen - len(self.engines), work, asked.work, out_fs)
            self._later(asked.work, ready_fs, asked.replica, next(self._numbers))
        else:
            self._left(out_fs, chosen, partial(self._answered, work))

    def _left(self, out_fs: int, chosen: int, record: Callable[[int], Record]) -> None:
        """A replica is through with a request, and its client is told at that time."""
        self.loads[chosen] -= 1
        heapq.heappush(self.leaving, (out_fs, next(self._numbers), record))

    def _leave(self, until_fs: int) -> Iterator[Record]:
        """Clients see what went out until then."""
        while self.leaving and self.leaving[0][0] <= until_fs:
            out_fs, _, record = heapq.heappop(self.leaving)
            seen_ns = out_fs // NS + self._way_ns
            self._send(seen_ns)
            yield record(seen_ns)
            yield from self._lost(seen_ns)

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

    def _refused(self, asked: Arrival, kind: str, status: int, why: str, at_ns: int) -> Record:
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
        self.arrivals.over(asked, at_ns + self._way_ns, answer)

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
