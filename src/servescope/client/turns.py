"""The later turns that a load process has read, and the answers that their prompts repeat."""

from __future__ import annotations

import heapq
import json
import re

from servescope import protocols
from servescope.client.feed import Feed, Pending, Settings
from servescope.client.reading import read
from servescope.client.spool import Heard
from servescope.datasets import Turn
from servescope.sessions import Sessions

_HOLE = re.compile(rb"(?:\xee\x83\xb0|\\ue0f0)(\d+)(?:\xee\x83\xb1|\\ue0f1)")
"""`datasets.answer_to_come` in a body of JSON, as UTF-8 or as an escape."""


class Turns:
    """Sessions on the clock, their answers as they stand inside a JSON string."""

    def __init__(self, settings: Settings, feed: Feed) -> None:
        self._wire = protocols.declared("protocol", settings.protocol)
        self._think_ns, self._closed = settings.think_ns, bool(settings.users)
        self._feed = feed
        self._sessions: Sessions[Pending, bytes] = Sessions(self._ready)
        self.start_ns = 0
        self.ready: list[tuple[int, int, Pending]] = []
        """Heap of (due, request, turn), due on the clock."""

    def __bool__(self) -> bool:
        return bool(self.ready or self._sessions)

    def take_in(self) -> None:
        """Find the place of turns that were just read."""
        while self._feed.later:
            turn = self._feed.later.popleft()
            self._sessions.add(
                Turn(turn.session, turn.turn, bool(turn.last)),
                turn,
                due_ns=self.start_ns + turn.due_ns if turn.due_ns >= 0 else 0,
                think_ns=self._think_ns if turn.think_ns < 0 else turn.think_ns,
            )

    def ended(self, asked: Pending, heard: Heard | None, at: int) -> bool:
        """A turn ended at `at`; whether its user goes on with the next one of the session.

        `heard` is the response, if it ended well.
        """
        turn = Turn(asked.session, asked.turn, bool(asked.last))
        return self._sessions.ended(turn, at, self._answer(heard), asked.user)

    def give_up(self, *, everything: bool) -> list[Pending]:
        """Turns that will never be due; with `everything`, also those whose session never began."""
        lost = self._sessions.give_up(everything=everything and not self.ready)
        for turn in lost:
            self._feed.taken(turn)
        return lost

    def _answer(self, heard: Heard | None) -> bytes | None:
        """The text of an answer that ended well, as it stands inside a JSON string."""
        if heard is None:
            return None
        reading = read(self._wire, heard.raw, heard.reads, closed=heard.closed)
        return json.dumps("".join(reading.said))[1:-1].encode() if reading.whole else None

    def _ready(self, turn: Pending, due: int, user: int, answers: list[bytes]) -> None:
        self._feed.taken(turn)
        turn.body = _HOLE.sub(lambda hole: answers[int(hole[1])], turn.body)
        turn.user = user
        if self._closed and user < 0:  # it was read late, and its user has gone on
            self._feed.put_first(turn)
        else:
            heapq.heappush(self.ready, (due, turn.request, turn))
