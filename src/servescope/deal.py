"""Which item is which request of a stage, when it is due, and which load process sends it.

Request k goes to process k mod n; of a closed load, to that of user k mod users, who is dealt so.
With several targets, process k sends to target k mod n. A session is dealt as a whole, to one
process. Offering each target a load of its own is the same as one load of n times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from servescope.datasets import ItemSource, Turn
from servescope.load import Closed, Limit, Open


class Dealt(NamedTuple):
    """One request of the stage."""

    k: int
    """Its number in the stage."""
    item: int
    due_ns: int
    """Since the start of the stage; -1 where a free user or the turn before decides."""
    turn: Turn | None
    """None where every item stands alone."""


@dataclass(frozen=True, kw_only=True)
class Deal:
    """How a stage's requests are dealt out."""

    offer: Open | Closed
    limit: Limit
    items: ItemSource
    first_item: int
    targets: int = 1
    each: bool = False
    """Every target gets the whole load, instead of a part of it."""

    @property
    def loads(self) -> int:
        """How many times the load is offered."""
        return self.targets if self.each else 1

    @property
    def planned(self) -> int | None:
        """How many requests there will be; None where time, or the length of sessions, decides."""
        if isinstance(self.offer, Closed):
            timed = self.limit.duration_s is not None
            return None if timed or self.limit.requests is None else self.most
        return self.most if self.items.alone or self.offer.rows else None

    @property
    def most(self) -> int | None:
        """The most requests there can be; None where there is no such number."""
        requests = self.limit.requests
        if isinstance(self.offer, Open) and (self.items.alone or self.offer.rows):
            requests = len(self.offer.due_ns)
        return None if requests is None else requests * self.loads

    def requests(self, process: int = 0, processes: int = 1) -> Iterator[Dealt]:
        """Those of one load process, in order."""
        numbers = count() if self.most is None else range(self.most)
        if self.items.alone:
            for k in numbers:
                if self._process(k, processes) == process:
                    yield Dealt(k, self._item(k), self._due_ns(k, k), None)
            return
        begun: dict[int, int] = {}
        for k in numbers:
            item = self._item(k)
            turn = self.items.turn(item)
            session = begun.setdefault(turn.session, len(begun))
            if self._beyond(session):
                return
            if self._process(session, processes) == process:
                yield Dealt(k, item, self._due_ns(k, session, turn.number), turn)

    def _process(self, number: int, processes: int) -> int:
        """Which process sends a request, or a session.

        Users are dealt in the same way: else those of a process that has one more than the others
        would end before them, and the load would not be that of so many users any more.
        """
        if isinstance(self.offer, Closed):
            number %= self.offer.users * self.loads
        return number % processes

    def _item(self, k: int) -> int:
        rows = self.offer.rows if isinstance(self.offer, Open) else None
        if rows and self.each:  # every target's request k is row k
            return self.first_item + k % self.targets * rows + k // self.targets
        return self.first_item + k

    def _due_ns(self, k: int, session: int, turn: int = 0) -> int:
        if isinstance(self.offer, Closed):
            return -1
        if self.offer.rows:
            return int(self.offer.due_ns[k // self.loads])
        return -1 if turn else int(self.offer.due_ns[session // self.loads])

    def _beyond(self, session: int) -> bool:
        """Whether the load has no due time for a session."""
        if isinstance(self.offer, Closed) or self.offer.rows:
            return False
        return session >= len(self.offer.due_ns) * self.loads


def not_sent(cap: int | None) -> str:
    """Why a request that was due was not sent by the end of its stage."""
    if cap is not None:
        return "the cap on concurrency was reached to the end"
    return "the time was over before the turn before it had ended"
