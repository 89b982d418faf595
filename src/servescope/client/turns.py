"""Later turns of sessions: each waits for the answer before it, which its own prompt may repeat."""

from __future__ import annotations

import heapq
import json
import re
from collections import deque
from dataclasses import dataclass, field

from servescope import protocols
from servescope.client.feed import Feed, Pending, Settings
from servescope.client.reading import read
from servescope.client.spool import Heard

_HOLE = re.compile(rb"(?:\xee\x83\xb0|\\ue0f0)(\d+)(?:\xee\x83\xb1|\\ue0f1)")
"""`datasets.answer_to_come` in a body of JSON, as UTF-8 or as an escape."""


@dataclass(slots=True)
class _Past:
    """What has happened in a session."""

    turns: int = 0
    ended_ns: int = 0
    well: bool = True
    answers: list[bytes] = field(default_factory=list)
    """As they stand inside a JSON string."""

    def answer(self, turn: int) -> bytes:
        """What turn `turn` was answered; nothing where a prompt asks for an answer to come."""
        return self.answers[turn] if turn < len(self.answers) else b""


class Turns:
    """The later turns that a load process has read, and when each may go."""

    def __init__(self, settings: Settings, feed: Feed) -> None:
        self._wire = protocols.declared("protocol", settings.protocol)
        self._think_ns, self._closed = settings.think_ns, bool(settings.users)
        self._feed = feed
        self._waiting: dict[int, deque[Pending]] = {}
        self._past: dict[int, _Past] = {}
        self.start_ns = 0
        self.ready: list[tuple[int, int, Pending]] = []
        """Heap of (due, request, turn), due on the clock."""
        self._lost: list[Pending] = []

    def __bool__(self) -> bool:
        return bool(self.ready or self._waiting)

    def take_in(self) -> None:
        """Find the place of turns that were just read."""
        while self._feed.later:
            turn = self._feed.later.popleft()
            past = self._past.get(turn.session)
            if past is None or past.turns < turn.turn:
                self._waiting.setdefault(turn.session, deque()).append(turn)
            elif past.well:
                self._make_ready(turn, past, -1)
            else:
                self._lose([turn])

    def ended(self, asked: Pending, fate: str, heard: Heard, at: int) -> bool:
        """A turn ended at `at`; whether its user goes on with the next one of the session."""
        past = self._past.setdefault(asked.session, _Past())
        past.turns, past.ended_ns = asked.turn + 1, at
        past.well = past.well and self._hear(past, fate, heard)
        waiting = self._waiting.pop(asked.session, None)
        if not waiting:
            if self._feed.queue or self._feed.ended:  # then no turn of this session is still unread
                past.answers.clear()
            return False
        if not past.well:
            self._lose(waiting)
            return False
        turn = waiting.popleft()
        if waiting:
            self._waiting[asked.session] = waiting
        self._make_ready(turn, past, asked.user)
        return asked.user >= 0

    def give_up(self, *, everything: bool) -> list[Pending]:
        """Turns that will never be due; with `everything`, also those whose session never began."""
        while everything and self._waiting and not self.ready:
            self._lose(self._waiting.popitem()[1])
        lost, self._lost = self._lost, []
        return lost

    def _hear(self, past: _Past, fate: str, heard: Heard) -> bool:
        """Keep an answer for the turns to come; False where there is none to keep."""
        if fate not in ("ended", "closed"):
            return False
        reading = read(self._wire, bytes(heard.raw), heard.reads, closed=fate == "closed")
        said = json.dumps("".join(reading.said))[1:-1]
        past.answers.append(said.encode())
        return reading.whole

    def _make_ready(self, turn: Pending, past: _Past, user: int) -> None:
        think_ns = turn.think_ns if turn.think_ns >= 0 else self._think_ns
        due = past.ended_ns + think_ns
        if turn.due_ns >= 0:
            due = max(due, self.start_ns + turn.due_ns)
        self._feed.taken(turn)
        turn.body = _HOLE.sub(lambda hole: past.answer(int(hole[1])), turn.body)
        turn.user = user
        if self._closed and user < 0:  # it was read late, and its user has gone on
            self._feed.put_first(turn)
        else:
            heapq.heappush(self.ready, (due, turn.request, turn))

    def _lose(self, turns: list[Pending] | deque[Pending]) -> None:
        for turn in turns:
            self._feed.taken(turn)
        self._lost += turns
