"""Lengths and times of arrival in, times of first and last tokens out: the engine for planning.

The lean sibling of `simulate.py`: no text and no records, but several replicas behind a router. It
needs memory for the requests in flight, and for a few numbers of each request.

Times are the client's, as in `simulate.py`: a request is at the router half a turnaround after it
was sent, and its tokens are seen half a turnaround after they went out; a user then takes another
half to ask again. The router takes no time;
behind it each replica has a front end, if there is one (`front_end.py`).
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from servescope.engine import FS, Work
from servescope.engine.disaggregation import NO_TRANSFER, Prefill, Transfer
from servescope.engine.front_end import NO_FRONT_END, FrontEnd, FrontEndCost
from servescope.engine.routers import ROUTERS
from servescope.engine.scheduler import FOREVER, Engine, Totals
from servescope.errors import BadInput
from servescope.plugins import one_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from servescope.engine import Step
    from servescope.engine.routers import Router


_ROWS = 4096
"""So many rows of the arrays become Python numbers at once."""


@dataclass(slots=True)
class Replayed:
    """What came of a workload. Times are seconds since its start; NaN where a request was not
    taken, because it could never be served or the queue was full."""

    sent_s: NDArray[np.float64]
    """When each was sent; NaN where it never was."""
    first_s: NDArray[np.float64]
    """When its first token was seen."""
    end_s: NDArray[np.float64]
    """When its last token was seen."""
    tokens: NDArray[np.int64]
    """Of its answer; 0 where it was not taken."""
    totals: Totals
    """Of all replicas together that answer."""
    prompt_s: float
    """Time in steps that only compute prompts, of all replicas together."""
    mixed_s: float
    """Time in steps that compute prompts beside decodes."""
    decode_s: float
    """Time in steps that only decode."""
    front_end_s: float
    """Time that front ends were busy, of all replicas together."""
    prompt_steps: int
    """Steps that compute prompts, of all replicas together."""

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Of each request, from sending it to its first token."""
        return self.first_s - self.sent_s

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Of each request, from sending it to its last token."""
        return self.end_s - self.sent_s

    @property
    def makespan_s(self) -> float:
        """From the first request sent to the last token seen; 0 where none was taken."""
        ends = self.end_s[~np.isnan(self.end_s)]
        return float(ends.max() - np.nanmin(self.sent_s)) if len(ends) else 0.0

    @property
    def busy_s(self) -> float:
        """Time in steps, of all replicas together."""
        return self.prompt_s + self.mixed_s + self.decode_s


def replay(
    engines: Engine | Sequence[Engine],
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    *,
    arrivals_s: ArrayLike | None = None,
    users: int | None = None,
    most_tokens: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    prefix_tokens: ArrayLike | None = None,
    router: str = "round_robin",
    front_end: FrontEndCost = NO_FRONT_END,
    prefill: Sequence[Engine] = (),
    transfer: Transfer = NO_TRANSFER,
    turnaround_s: float | None = None,
) -> Replayed:
    """Have engines, fresh ones, serve requests of such lengths.

    Either `arrivals_s` says when each is sent, in order, or `users` send the next one as soon as
    they have an answer. `most_tokens` is what each asks for (`max_tokens`), by default what it
    gets. Requests of one group have their first `prefix_tokens` in common, and the router may heed
    the group; -1 is none. Each engine has a `front_end` like this. With `prefill`, those engines
    compute the prompts, and hand them over by `transfer`. `turnaround_s` is by default the engines'
    own. Raises BadInput naming the argument.
    """
    fleet = [engines] if isinstance(engines, Engine) else list(engines)
    prompts = np.asarray(prompt_tokens, np.int64)
    count = len(prompts)

    def column(name: str, given: ArrayLike | None, default: ArrayLike, kind: Any = np.int64) -> Any:  # noqa: ANN401
        found = np.asarray(default if given is None else given, kind)
        if len(found) != count:
            raise BadInput(name, str(len(found)), f"want {count}, as many as prompt_tokens")
        return found

    outputs = column("output_tokens", output_tokens, ())
    most = column("most_tokens", most_tokens, outputs)
    if np.any(most < outputs):
        raise BadInput("most_tokens", "", "want no fewer than output_tokens")
    group = column("groups", groups, np.full(count, -1))
    prefix = column("prefix_tokens", prefix_tokens, np.zeros(count))
    if (arrivals_s is None) == (users is None) or (users is not None and users < 1):
        raise BadInput("users", str(users), "want 1 or more, or arrivals_s instead")
    if router not in ROUTERS:
        raise BadInput("router", router, f"want {one_of(router, ROUTERS)}")
    arrivals = None
    if arrivals_s is not None:
        times = column("arrivals_s", arrivals_s, (), np.float64)
        if np.any(np.diff(times) < 0):
            raise BadInput("arrivals_s", "times", "want them in order")
        arrivals = (time_s for (time_s,) in _rows(times))
    if turnaround_s is None:
        turnaround_s = fleet[0].config.turnaround_s
    loop = _Loop(
        fleet,
        ROUTERS[router](),
        works=_works(prompts, outputs, most, group, prefix),
        arrivals_s=arrivals,
        users=users or 0,
        front_end=front_end,
        prefill=Prefill(prefill, transfer) if prefill else None,
        turnaround_s=turnaround_s,
        count=count,
    )
    loop.run()
    end_s = np.frombuffer(loop.end_s)
    return Replayed(
        sent_s=np.frombuffer(loop.sent_s),
        first_s=np.frombuffer(loop.first_s),
        end_s=end_s,
        tokens=np.where(np.isnan(end_s), 0, outputs),
        totals=_sum([engine.totals for engine in fleet]),
        prompt_s=loop.prompt_fs / FS,
        mixed_s=loop.mixed_fs / FS,
        decode_s=loop.decode_fs / FS,
        front_end_s=sum(front.busy for front in loop.fronts) / FS,
        prompt_steps=loop.prompt_steps,
    )


class _Loop:
    """Engines each have a time of their own; what is due first happens first.

    Times are femtoseconds on the engines' side: half a turnaround after the client's.
    """

    def __init__(
        self,
        fleet: list[Engine],
        route: Router,
        *,
        works: Iterator[Work],
        arrivals_s: Iterator[float] | None,
        users: int,
        front_end: FrontEndCost,
        prefill: Prefill | None,
        turnaround_s: float,
        count: int,
    ) -> None:
        self.route, self.works, self.arrivals_s = route, works, arrivals_s
        self.prefill, self.answering = prefill, len(fleet)
        self.fleet = [*fleet, *prefill.engines] if prefill else fleet
        """Those that answer, and those that only compute prompts."""
        self.half_fs = max(1, round(turnaround_s * FS / 2))
        self.again_fs = 3 * self.half_fs if arrivals_s is None else None
        """So long after an answer its user's next request comes; None where nobody sends one."""
        self.coming = [self.half_fs] * users
        """Heap of when the next requests come, as far as known; of those who send them in a closed
        loop."""
        self.fronts = [FrontEnd(front_end) for _ in fleet]
        self.fronts += [FrontEnd(NO_FRONT_END) for _ in self.fleet[len(fleet) :]]
        self.inboxes: list[list[tuple[int, int, Work, bool]]] = [[] for _ in self.fleet]
        """Of each engine, heap of the requests that come to it later: when, number, request, and
        whether then they will only have been taken in by the front end."""
        self.due: list[tuple[int, int]] = []
        """Heap of (when its step is over, replica), or (when the next of its inbox comes to it,
        ~replica), which goes before."""
        self.steps: list[Step | None] = [None] * len(self.fleet)
        self.awake = [False] * len(self.fleet)
        self.loads = [0] * len(fleet)
        """Requests that each replica has to answer, in its front end and in engines."""
        self.end_s = array("d", [np.nan]) * count
        self.sent_s, self.first_s = self.end_s[:], self.end_s[:]
        self.prompt_fs = self.mixed_fs = self.decode_fs = self.prompt_steps = 0

    def run(self) -> None:
        """Serve all."""
        due, coming = self.due, self.coming
        for work in self.works:
            if self.arrivals_s is not None:
                coming.append(round(next(self.arrivals_s) * FS) + self.half_fs)
            while not coming or (due and due[0][0] < coming[0]):
                self._turn(*heapq.heappop(due))
            self._send(work, heapq.heappop(coming))
        self.again_fs = None
        coming.clear()
        while due:
            self._turn(*heapq.heappop(due))

    def _send(self, work: Work, now_fs: int) -> None:
        """A request comes to the router."""
        number, group = work.owner
        work.owner = number
        chosen = self.route(self.loads, group)
        self.loads[chosen] += 1
        self.sent_s[number] = (now_fs - self.half_fs) / FS
        ready_fs = self.fronts[chosen].take_in(now_fs)
        if ready_fs > now_fs:
            self._later(work, ready_fs, chosen, taken_in=True)
        else:
            self._submit(work, now_fs, chosen)

    def _later(self, work: Work, ready_fs: int, replica: int, *, taken_in: bool = False) -> None:
        """A request will come to an engine, or will have been taken in by a front end."""
        heapq.heappush(self.inboxes[replica], (ready_fs, work.owner, work, taken_in))
        heapq.heappush(self.due, (ready_fs, ~replica))

    def _submit(self, work: Work, now_fs: int, replica: int) -> None:
        """A request comes to an engine: to that which answers, or to one that computes prompts."""
        engine = replica
        try:
            if self.prefill is not None and not work.brought_tokens:
                self.fleet[replica].check(work)
                engine, work = self.prefill.begin(work, (work, replica))
                engine += self.answering
            taken = self.fleet[engine].submit(work)
        except ValueError:
            taken = False
        if not taken:
            self._left(now_fs, replica)
        elif not self.awake[engine]:
            self.awake[engine] = True
            heapq.heappush(self.due, (now_fs, engine))

    def _left(self, out_fs: int, replica: int) -> None:
        """A replica is through with a request, and told its client at that time."""
        self.loads[replica] -= 1
        if self.again_fs is not None:
            heapq.heappush(self.coming, out_fs + self.again_fs)

    def _turn(self, now_fs: int, replica: int) -> None:
        """A request comes to an engine; or a step of a replica is over, and its next ones begin,
        until something else happens before one is over."""
        if replica < 0:
            _, _, work, taken_in = heapq.heappop(self.inboxes[~replica])
            out_fs = self.fronts[~replica].out(now_fs) if taken_in else now_fs
            if out_fs > now_fs:
                self._later(work, out_fs, ~replica)
            else:
                self._submit(work, now_fs, ~replica)
            return
        due, coming, steps, prefill = self.due, self.coming, self.steps, self.prefill
        engine, inbox, step = self.fleet[replica], self.inboxes[replica], steps[replica]
        intake_fs = self.fronts[replica].intake
        while True:
            if step is not None:
                self._note(step, now_fs, replica)
            sent_fs = coming[0] if coming else FOREVER
            due_fs = due[0][0] if due else FOREVER
            come_fs = sent_fs + intake_fs
            if inbox and inbox[0][0] < come_fs:
                come_fs = inbox[0][0]
            if self.again_fs is not None and due_fs + self.again_fs + intake_fs < come_fs:
                come_fs = due_fs + self.again_fs + intake_fs
            if prefill is not None and due_fs + prefill.latency_fs < come_fs:
                come_fs = due_fs + prefill.latency_fs
            step = steps[replica] = engine.step(FOREVER, come_fs - now_fs)
            if step is None:
                self.awake[replica] = False
                return
            now_fs += step.duration_fs
            if now_fs >= sent_fs or now_fs >= due_fs:
                heapq.heappush(due, (now_fs, replica))
                return

    def _note(self, step: Step, now_fs: int, replica: int) -> None:
        """What came of a step."""
        if not step.prompts:
            self.decode_fs += step.duration_fs
        else:
            self.prompt_steps += 1
            if step.decoding:
                self.mixed_fs += step.duration_fs
            else:
                self.prompt_fs += step.duration_fs
        if replica >= self.answering and self.prefill is not None:
            for computed in step.finished:
                work, chosen = computed.owner
                ready_fs = self.prefill.end(replica - self.answering, computed, work, now_fs)
                self._later(work, ready_fs, chosen)
            return
        front = self.fronts[replica]
        for work in step.begun:
            if work.made == 1:  # not computed anew
                out_fs = front.open(now_fs)
                self.first_s[work.owner] = (out_fs + self.half_fs) / FS
                if work.output_tokens == 1:
                    self.end_s[work.owner] = self.first_s[work.owner]
                    self._left(out_fs, replica)
        if step.finished:
            out_fs, tokens = front.out(now_fs), 0
            seen_s = (out_fs + self.half_fs) / FS
            for work in step.finished:
                tokens += work.output_tokens
                if work.output_tokens > 1:
                    self.end_s[work.owner] = seen_s
                    self._left(out_fs, replica)
            front.charge(now_fs, tokens)


# --- columns --------------------------------------------------------------------------------------


def _rows(*columns: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows as Python numbers, a few at a time."""
    for start in range(0, len(columns[0]), _ROWS):
        yield from zip(*(column[start : start + _ROWS].tolist() for column in columns), strict=True)


def _works(*columns: NDArray[np.int64]) -> Iterator[Work]:
    """Requests whose owner is their number and group."""
    shared: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, (prompt, output, most, group, prefix) in enumerate(_rows(*columns)):
        ids: tuple[int, ...] = ()
        if group >= 0 and prefix > 0:
            key = (group, min(prefix, prompt))
            if key not in shared:
                shared[key] = tuple(range(group << 32, (group << 32) + key[1]))
            ids = shared[key]
        yield Work(ids, output, (number, group), prompt_tokens=prompt, most_tokens=most)


def _sum(totals: list[Totals]) -> Totals:
    names = [field.name for field in fields(Totals)]
    return Totals(**{name: sum(getattr(one, name) for one in totals) for name in names})
