"""One stage on a cluster: its workers told, heard and, where they fall silent, given up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from servescope.client.workers import Health, Live
from servescope.cluster.node import Fault, Told, raised
from servescope.deal import Deal
from servescope.errors import ServescopeError
from servescope.prepare import Bench
from servescope.records import Sample
from servescope.share import Batch, Part

AHEAD_NS = 100_000_000
"""From the order to start to the start."""
WAIT_S, FOLLOW_S = 0.02, 1.0
"""How long answers are waited for, and how often a clock is followed while the load runs."""
TRIPS, TRIP_S = 32, 1.0
"""Round trips of which the quickest tells a clock's offset, and patience with one."""
SILENT_S, ASIDE_S = 30.0, 5.0
"""A worker that says nothing for so long has died; so long it may take to end."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Place:
    """A node, and its clock as it is seen from here."""

    name: str
    id: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    offset_ns: int | None = None
    """Its CLOCK_MONOTONIC minus ours, by which times are told to it and taken from it."""
    followed_s: float = 0.0

    def follow(self, least_ns: int, most_ns: int) -> tuple[int, int]:
        """The offset is in these bounds: go so far as they prove, and no further.

        Returns the offset, and how far it may be from the true one.
        """
        offset = (least_ns + most_ns) // 2 if self.offset_ns is None else self.offset_ns
        self.offset_ns = offset = min(max(offset, least_ns), most_ns)
        return offset, max(most_ns - offset, offset - least_ns)


@dataclasses.dataclass(kw_only=True, eq=False)
class Worker:
    """An actor on a node."""

    actor: Any
    place: Place
    died: str | None = None


@dataclasses.dataclass(kw_only=True, eq=False)
class Process:
    """A load process of the stage, as its worker tells of it."""

    number: int
    worker: Worker
    heard_s: float = 0.0
    told: Told | None = None

    @property
    def live(self) -> Live:
        """Its counters."""
        return Live(0, 0, 0) if self.told is None else self.told.live

    @property
    def health(self) -> Health | None:
        """What it says of itself after it has ended."""
        return None if self.told is None else self.told.health

    @property
    def busy(self) -> bool:
        """It has more to tell."""
        return self.worker.died is None and self.health is None


class Spread:
    """The load processes of a stage, on the nodes."""

    def __init__(
        self,
        ray: Any,  # noqa: ANN401 (the module)
        workers: list[Worker],
        bench: Bench,
        deal: Deal,
        part: Part,
    ) -> None:
        """Process k has worker k, as far as there are any left."""
        self._ray, self._bench, self._deal, self._part = ray, bench, deal, part
        self._processes = [
            Process(number=k, worker=worker) for k, worker in enumerate(workers[: part.processes])
        ]
        self._places = list(dict.fromkeys(process.worker.place for process in self._processes))
        self._asked: dict[Any, Process] = {}
        """Who has been asked and not answered yet."""
        self._fault: Fault | None = None
        self._last = deal.first_item

    # --- as a team --------------------------------------------------------------------------------

    def begin(self, interrupted: Callable[[], int]) -> int:
        """Have the workers get ready, and start them at one instant, each by its own clock."""
        self._measure_clocks(self._places)
        names = {field.name for field in dataclasses.fields(Deal)} - {"items"}
        deal = self._ray.put({name: getattr(self._deal, name) for name in names})
        self._wait(
            process.worker.actor.begin.remote(
                self._part, deal, process.number, self._origin_ns(process)
            )
            for process in self._busy()
        )
        for process in self._processes:
            process.heard_s = time.monotonic()  # nobody was asked before
        while not interrupted() and not all(p.told and p.told.ready for p in self._busy()):
            self._hear()
            for process in self._processes:
                if process.health is not None:
                    raise ServescopeError(self._why(process))
            if self._fault is not None:
                raise raised(self._fault)
        self._measure_late()
        at_ns = time.monotonic_ns() + AHEAD_NS
        self._wait(
            process.worker.actor.start.remote(at_ns + (process.worker.place.offset_ns or 0))
            for process in self._busy()
        )
        return at_ns

    def batches(self) -> Iterator[Batch]:
        """What comes back, until every worker has told all or has died."""
        while any(self._busy()):
            yield from self._hear() or [Batch()]
            if self._fault is not None:
                raise raised(self._fault)
            self._follow_clocks()

    def live(self) -> Live:
        """Counters of all together; those of a node that died stay as it told them last."""
        each = [process.live for process in self._processes]
        return Live(*(sum(getattr(one, field) for one in each) for field in LIVE))

    def stop(self, level: int) -> None:
        """1: offer no more; 2: end at once."""
        for process in self._busy():
            process.worker.actor.stop.remote(level)

    def end(self) -> tuple[list[Health], dict[int, str]]:
        """What each process says of itself, and why those that died did, by their numbers."""
        self._measure_clocks(self._places)
        if not self._deal.items.alone:
            self._deal.items.turn(self._last)  # the head has seen of the data what the nodes have
        died = {
            process.number: self._why(process)
            for process in self._processes
            if process.health is None or process.health.exit_status
        }
        for process in range(len(self._processes), self._part.processes):
            died[process] = "no node of the cluster is left for it"
        return [process.health for process in self._processes if process.health is not None], died

    def close(self) -> None:
        """End what still runs."""
        self._wait(
            process.worker.actor.end.remote()
            for process in self._processes
            if process.worker.died is None
        )

    # --- hearing ----------------------------------------------------------------------------------

    def _busy(self) -> list[Process]:
        return [process for process in self._processes if process.busy]

    def _hear(self) -> list[Batch]:
        """What the workers that answer within a moment have to tell."""
        waiting = set(self._asked.values())
        for process in self._busy():
            if process not in waiting:
                seen = process.told.number if process.told is not None else 0
                question = process.worker.actor.told.remote(seen, self._origin_ns(process))
                self._asked[question] = process
        questions = list(self._asked)
        if not questions:
            return []
        answers, _ = self._ray.wait(questions, num_returns=len(questions), timeout=WAIT_S)
        found = [self._take(answer) for answer in answers]
        for process in self._busy():
            if time.monotonic() - process.heard_s > SILENT_S:
                process.worker.died = f"{process.worker.place.name} said nothing for {SILENT_S:g} s"
        return [batch for batch in found if batch is not None]

    def _take(self, answer: Any) -> Batch | None:  # noqa: ANN401 (an object reference)
        process = self._asked.pop(answer)
        if not process.busy:
            return None
        try:
            told: Told = self._ray.get(answer)
        except self._ray.exceptions.ActorUnavailableError:
            return None  # asked again, until it has been silent for too long
        except self._ray.exceptions.RayActorError:
            process.worker.died = self._lost(process.worker.place)
            return None
        process.told, process.heard_s = told, time.monotonic()
        self._fault = self._fault or told.fault
        if told.batch.requests:
            first = self._deal.first_item - self._part.first
            self._last = max(self._last, first + max(told.batch.requests))
        return told.batch

    def _lost(self, place: Place) -> str:
        """What became of a worker that is there no more."""
        alive = {node["NodeID"]: node["Alive"] for node in self._ray.nodes()}
        return f"{'a worker on ' if alive.get(place.id) else ''}{place.name} died"

    def _why(self, process: Process) -> str:
        """Why a process ended as it should not have."""
        if process.told is None or process.health is None:
            return process.worker.died or f"{process.worker.place.name} was not heard to its end"
        return f"a load process on {process.worker.place.name} died: {process.told.words}"

    def _wait(self, orders: Iterator[Any]) -> None:
        """Until they are carried out; who cannot is found out when it is asked next."""
        given = list(orders)
        if given:
            self._ray.wait(given, num_returns=len(given), timeout=ASIDE_S)

    # --- clocks -----------------------------------------------------------------------------------

    def _origin_ns(self, process: Process) -> int:
        """When the run began, by the clock of a node."""
        return self._bench.origin_ns + (process.worker.place.offset_ns or 0)

    def _measure_clocks(self, places: list[Place]) -> None:
        """Find the offset of each node's clock, and keep it with its uncertainty."""
        for place in places:
            trips: list[tuple[int, int]] = []
            while len(trips) < TRIPS and (trip := self._trip(place)) is not None:
                trips.append(trip)
            if not trips:
                continue
            offset, unsure = place.follow(*min(trips, key=lambda bounds: bounds[1] - bounds[0]))
            for name, value in {"offset_s": offset / 1e9, "uncertainty_s": unsure / 1e9}.items():
                self._bench.writer.sample(
                    Sample(
                        t_ns=time.monotonic_ns() - self._bench.origin_ns,
                        source="clock",
                        name=name,
                        value=value,
                        labels={"stage": str(self._part.stage), "node": place.name},
                    )
                )

    def _measure_late(self) -> None:
        """Ask those again that were too slow; who never told the time cannot be told a start."""
        self._measure_clocks([place for place in self._places if place.offset_ns is None])
        for process in self._busy():
            if process.worker.place.offset_ns is None:
                process.worker.died = f"{process.worker.place.name} did not tell its time"

    def _follow_clocks(self) -> None:
        """Now and then, lest a drift add up: one node in a turn, for it costs a round trip."""
        now_s = time.monotonic()
        for place in self._places:
            if now_s - place.followed_s > FOLLOW_S:
                place.followed_s = now_s
                bounds = self._trip(place)
                if bounds is not None:
                    place.follow(*bounds)
                return

    def _trip(self, place: Place) -> tuple[int, int] | None:
        """Bounds of a node's offset: it read its clock between two readings of ours."""
        for worker in [process.worker for process in self._processes]:
            if worker.place is not place or worker.died is not None:
                continue
            before = time.monotonic_ns()
            try:
                clock = self._ray.get(worker.actor.clock_ns.remote(), timeout=TRIP_S)
            except self._ray.exceptions.RayActorError:
                continue  # another of the node may be there still
            except self._ray.exceptions.RayError:
                return None
            return clock - time.monotonic_ns(), clock - before
        return None


LIVE = tuple(field.name for field in dataclasses.fields(Live))
