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

from servescope.datasets import Item, Message, Turn
from servescope.deal import Deal, Dealt
from servescope.load import Closed

NEVER = 1 << 62
_AHEAD = 4096
"""So many later turns are looked at ahead of time, at most."""
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
    due_ns: int
    user: int = -1
    sent_ns: int = -1
    token_ns: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Past:
    """What has happened in a session."""

    turns: int = 0
    ended_ns: int = 0
    well: bool = True
    answers: list[str] = field(default_factory=list)
    """Kept while later turns are known."""


class Arrivals:
    """The requests of one stage that have not been asked."""

    def __init__(self, deal: Deal) -> None:
        closed = deal.offer if isinstance(deal.offer, Closed) else None
        self.open = closed is None
        self._items, self._dealt = deal.items, deal.requests()
        self._think_ns = round(closed.think_s * 1e9) if closed else 0
        self._free = [(0, user) for user in range(closed.users)] if closed else []
        """Heap of (due, user): users who wait for their next request."""
        self._first: deque[Dealt] = deque()
        """The next request that begins something, unless there are no more."""
        self._ready: list[tuple[int, int, Arrival]] = []
        """Heap of (due, number, later turn whose time is known)."""
        self._waiting: dict[int, deque[Dealt]] = {}
        """Later turns that wait for an answer, by session."""
        self._looked_at = 0
        """How many of these there are."""
        self._past: dict[int, _Past] = {}
        self.lost: list[Dealt] = []
        """Turns that cannot be asked, because one before them did not end well."""

    def next_ns(self) -> int:
        """When the next request is due; `NEVER` while that is not known."""
        return min(self._first_ns(), self._ready[0][0] if self._ready else NEVER)

    def take(self) -> Arrival:
        """The request that is due next."""
        first_ns = self._first_ns()
        if self._ready and self._ready[0][0] < first_ns:
            return heapq.heappop(self._ready)[2]
        dealt = self._first.popleft()
        item = self._items(dealt.item)
        user = -1 if self.open else heapq.heappop(self._free)[1]
        return Arrival(dealt, item, self._filled(dealt, item), first_ns, user)

    def over(self, asked: Arrival, at_ns: int, answer: str | None) -> None:
        """A request ended, well if there is an answer: its user and its session go on."""
        turn = asked.dealt.turn
        goes_on = turn is not None and self._next_turn(asked, turn, at_ns, answer)
        if asked.user >= 0 and not goes_on:
            heapq.heappush(self._free, (at_ns + self._think_ns, asked.user))

    def rest(self) -> Iterator[Dealt]:
        """Requests with a due time that were not taken."""
        waiting = [dealt for turns in self._waiting.values() for dealt in turns]
        ready = [arrival.dealt for _, _, arrival in self._ready]
        known = sorted([*self._first, *waiting, *ready])
        if self.open:
            yield from (dealt for dealt in chain(known, self._dealt) if dealt.due_ns >= 0)

    def _first_ns(self) -> int:
        while not self._first and self._looked_at < _AHEAD:
            dealt = next(self._dealt, None)
            if dealt is None:
                return NEVER
            if dealt.turn is None or not dealt.turn.number:
                self._first.append(dealt)
            else:
                self._place(dealt)
        if not self._first:
            return NEVER
        if self.open:
            return max(0, self._first[0].due_ns)
        return self._free[0][0] if self._free else NEVER

    def _place(self, dealt: Dealt) -> None:
        """Find the place of a later turn."""
        assert dealt.turn is not None  # noqa: S101 (for the type checker)
        session, number = dealt.turn
        past = self._past.get(session)
        if past is None or past.turns < number:
            self._waiting.setdefault(session, deque()).append(dealt)
            self._looked_at += 1
        elif past.well:
            self._make_ready(dealt, past, -1)
        else:
            self.lost.append(dealt)

    def _next_turn(self, asked: Arrival, turn: Turn, at_ns: int, answer: str | None) -> bool:
        """Whether the user of a turn that ended goes on with another one of its session."""
        self._first_ns()  # which looks at all turns up to the beginning of the next session
        past = self._past.setdefault(turn.session, _Past())
        past.turns, past.ended_ns = turn.number + 1, at_ns
        past.well = past.well and answer is not None
        past.answers.append(answer or "")
        turns = self._waiting.pop(turn.session, None)
        if not turns:
            past.answers.clear()
            return False
        if not past.well:
            self.lost += turns
            self._looked_at -= len(turns)
            return False
        self._looked_at -= 1
        dealt = turns.popleft()
        if turns:
            self._waiting[turn.session] = turns
        self._make_ready(dealt, past, asked.user)
        return asked.user >= 0

    def _make_ready(self, dealt: Dealt, past: _Past, user: int) -> None:
        if not self.open and user < 0:  # its user has gone on with another session
            self._first.append(dealt)
            return
        item = self._items(dealt.item)
        think_ns = self._think_ns if item.think_s is None else round(item.think_s * 1e9)
        due_ns = max(past.ended_ns + think_ns, dealt.due_ns)
        arrival = Arrival(dealt, item, self._filled(dealt, item), due_ns, user)
        heapq.heappush(self._ready, (due_ns, dealt.k, arrival))

    def _filled(self, dealt: Dealt, item: Item) -> Prompt:
        if dealt.turn is None or not dealt.turn.number:
            return item.prompt
        past = self._past.get(dealt.turn.session)
        answers = past.answers if past else []
        if isinstance(item.prompt, str):
            return _fill(item.prompt, answers)
        messages = [part for part in item.prompt if isinstance(part, Message)]
        if not messages:  # token ids
            return item.prompt
        return tuple(Message(part.role, _fill(part.content, answers)) for part in messages)


def _fill(text: str, answers: list[str]) -> str:
    """A text with the answers in their places; nothing where there is no such answer."""

    def said(hole: re.Match[str]) -> str:
        turn = int(hole[1])
        return answers[turn] if turn < len(answers) else ""

    return _HOLE.sub(said, text)
