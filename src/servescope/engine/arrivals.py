"""What a load asks next, and when: its requests in virtual time, as the real load process has them.

A request that stands alone or begins a session waits for its due time, or for a free user. A later
turn waits for the answer before it, which its prompt may repeat.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from servescope.datasets import Item, Message
from servescope.deal import Deal, Dealt
from servescope.load import Closed
from servescope.sessions import Sessions

NEVER = 1 << 62
_HOLE = re.compile("\ue0f0(\\d+)\ue0f1")
"""`datasets.answer_to_come` in a text."""

Prompt = str | tuple[int, ...] | tuple[Message, ...]


@dataclass(slots=True, eq=False)
class Arrival:
    """A request that is asked. Times are ns since the start of the stage."""

    dealt: Dealt
    item: Item
    prompt: Prompt
    """The item's, with the answers so far in their places."""
    due_ns: int = 0
    user: int = -1
    sent_ns: int = -1
    token_ns: list[int] = field(default_factory=list)
    """Of its tokens, but for those since it last began to decode."""
    since: int = -1
    """The engine's count of decode steps when it last began to decode."""


class Arrivals:
    """The requests of one stage that have not been asked."""

    def __init__(self, deal: Deal) -> None:
        closed = deal.offer if isinstance(deal.offer, Closed) else None
        self.open = closed is None
        self._items, self._dealt = deal.items, deal.requests()
        self._think_ns = round(closed.think_s * 1e9) if closed else 0
        self._free = [(0, user) for user in range(closed.users)] if closed else []
        """Heap of (due, user): users who wait for their next request."""
        self._first: deque[Arrival] = deque()
        """The next request that begins something, unless there are no more."""
        self._ready: list[tuple[int, int, Arrival]] = []
        """Heap of (due, number, later turn whose time is known)."""
        self._sessions: Sessions[Arrival, str] = Sessions(self._make_ready)

    def next_ns(self) -> int:
        """When the next request is due; `NEVER` while that is not known."""
        return min(self._first_ns(), self._ready[0][0] if self._ready else NEVER)

    def take(self) -> Arrival:
        """The request that is due next."""
        first_ns = self._first_ns()
        if self._ready and self._ready[0][0] < first_ns:
            return heapq.heappop(self._ready)[2]
        arrival = self._first.popleft()
        arrival.due_ns = first_ns
        if not self.open:
            arrival.user = heapq.heappop(self._free)[1]
        return arrival

    def over(self, asked: Arrival, at_ns: int, answer: str | None) -> None:
        """A request ended, well if there is an answer: its user and its session go on."""
        turn = asked.dealt.turn
        self._first_ns()  # which looks at all turns up to the beginning of the next session
        goes_on = turn is not None and self._sessions.ended(turn, at_ns, answer, asked.user)
        if asked.user >= 0 and not goes_on:
            heapq.heappush(self._free, (at_ns + self._think_ns, asked.user))

    def lost(self) -> list[Dealt]:
        """Turns that cannot be asked, because one before them did not end well."""
        return [arrival.dealt for arrival in self._sessions.give_up()]

    def rest(self) -> Iterator[Dealt]:
        """Requests with a due time that were not taken."""
        waiting = self._sessions.give_up(everything=True)
        ready = [arrival for _, _, arrival in self._ready]
        known = sorted(arrival.dealt for arrival in [*self._first, *waiting, *ready])
        if self.open:
            yield from (dealt for dealt in chain(known, self._dealt) if dealt.due_ns >= 0)

    def _first_ns(self) -> int:
        while not self._first:
            dealt = next(self._dealt, None)
            if dealt is None:
                return NEVER
            item, turn = self._items(dealt.item), dealt.turn
            arrival = Arrival(dealt, item, item.prompt)
            if turn is None or not turn.number:
                self._first.append(arrival)
            else:
                think_s, due_ns = item.think_s, dealt.due_ns
                think_ns = self._think_ns if think_s is None else round(think_s * 1e9)
                self._sessions.add(turn, arrival, due_ns=due_ns, think_ns=think_ns)
        if self.open:
            return max(0, self._first[0].dealt.due_ns)
        return self._free[0][0] if self._free else NEVER

    def _make_ready(self, turn: Arrival, due_ns: int, user: int, answers: list[str]) -> None:
        turn.prompt = _filled(turn.item.prompt, answers)
        turn.due_ns, turn.user = due_ns, user
        if not self.open and user < 0:  # its user has gone on with another session
            self._first.append(turn)
        else:
            heapq.heappush(self._ready, (due_ns, turn.dealt.k, turn))


def _filled(prompt: Prompt, answers: list[str]) -> Prompt:
    """A prompt with the answers in their places."""
    if isinstance(prompt, str):
        return _HOLE.sub(lambda hole: answers[int(hole[1])], prompt)
    return tuple(  # type: ignore[return-value]  # as mixed as it was
        Message(part.role, _HOLE.sub(lambda hole: answers[int(hole[1])], part.content))
        if isinstance(part, Message)
        else part
        for part in prompt
    )
