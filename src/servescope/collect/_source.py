"""One source being read, in the process of the collectors: when, what is kept, what is said."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from servescope.collect import Absent, Collector, Reading
from servescope.errors import shorten

STOP_S = 1.5
"""How long the end of a run waits for readings under way, whatever a source does."""
FIND_S = 0.2
"""The same for a source that nobody asked for and that has not answered yet."""
MOST_SERIES = 10_000
"""Of one source that are kept: a page that always has new ones would fill the disk."""
UP = "up"
"""The series of every source that says whether a reading succeeded."""
_READING = msgspec.json.Decoder(Reading)


class Order(msgspec.Struct):
    """A collector on its way to the process that reads it."""

    tag: str
    settings: dict[str, Any]
    asked: bool
    """By the user. Else nothing is said of its failures until it has been read."""


class Told(msgspec.Struct, array_like=True):
    """What a source says after each reading."""

    number: int
    """Which source."""
    t_ns: int = 0
    """Of this reading, since the run began."""
    values: list[Reading] = []
    """What changed since its reading before; all of it at the first and at the last."""
    readings: int = 0
    """So far."""
    failed: int = 0
    """Of these."""
    reason: str = ""
    """Why the first of those failed, or why there is nothing to be read."""
    last: bool = False
    """Nothing follows."""
    first: bool = False
    """Of the reading beforehand, which is not kept, of a source that was asked for."""
    left_out: int = 0
    """Series that are not kept, for there are too many: the most of any reading."""


class Course(msgspec.Struct):
    """What all sources wait for."""

    begun: threading.Event
    ended: threading.Event
    origin_ns: int = 0
    """When the run began, on the monotonic clock."""


class Source:
    """A collector and its thread."""

    def __init__(
        self,
        number: int,
        collector: Collector,
        course: Course,
        tell: Callable[[Told], None],
        *,
        asked: bool = True,
    ) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.wanted = asked
        """Whether the end of the run waits for it."""
        self.look = threading.Event()
        """Set where it is to be read at once."""
        self._collector, self._course, self._tell, self._number = collector, course, tell, number
        self._asked = asked
        self._reader: Callable[[], Iterable[Reading]] | None = None
        self._held: dict[tuple[str, ...], Reading] = {}
        """What each series said last."""
        self._readings = self._failed = self._left_out = 0
        self._reason = ""

    def _run(self) -> None:
        """Read at multiples of `every` from the start, leaving out what a slow source missed.

        It starts anew with each look. The end is read too, so that the differences of counters span
        the run.
        """
        if not self._is_there():
            return
        self._course.begun.wait()
        every_ns = round(self._collector.every_s * 1e9)
        due_ns = time.monotonic_ns()
        while True:
            self.look.clear()  # before reading: one that is wanted meanwhile is another
            last = self._course.ended.is_set()
            self._read(last=last)
            if last:
                return
            now_ns = time.monotonic_ns()
            due_ns += every_ns * max(1, -((due_ns - now_ns) // every_ns))
            if self.look.wait((due_ns - now_ns) / 1e9):
                due_ns = time.monotonic_ns()

    def _is_there(self) -> bool:
        """Read it once beforehand, which is not kept: what needs time to get ready takes it now.

        False: nobody asked for it, and it is not there.
        """
        while True:
            try:
                self._readings_now()
            except Exception as error:  # noqa: BLE001 (whatever a source does, the run goes on)
                if self._asked:
                    self._tell(Told(self._number, reason=_words(error), first=True))
                    return True  # its readings will say so
                absent = isinstance(error, Absent)
                self._tell(Told(self._number, reason=_words(error), last=absent))
                if absent or self._course.ended.wait(self._collector.every_s):
                    return False
            else:
                if self._asked:
                    self._tell(Told(self._number, first=True))
                self.wanted = True
                return True

    def _readings_now(self) -> list[Reading]:
        if self._reader is None:
            self._reader = self._collector.reader()
        return list(self._reader())

    def _read(self, *, last: bool) -> None:
        before_ns = time.monotonic_ns()
        self._readings += 1
        try:
            found = [one for one in self._readings_now() if math.isfinite(one.value)]
            # The source took its values somewhere in between: in the middle the error is least.
            at_ns = (before_ns + time.monotonic_ns()) // 2
            values = [Reading(UP, 1.0), *self._changed(map(_kept, found), everything=last)]
        except Exception as error:  # noqa: BLE001 (whatever a source does, the run goes on)
            self._failed += 1
            self._reason = self._reason or _words(error)
            at_ns, values = before_ns, [Reading(UP, 0.0)]
        self._tell(
            Told(
                self._number,
                at_ns - self._course.origin_ns,
                values,
                self._readings,
                self._failed,
                self._reason,
                last=last,
                left_out=self._left_out,
            )
        )

    def _changed(self, found: Iterable[Reading], *, everything: bool) -> list[Reading]:
        """What is not as it was, or all that is known."""
        now = {_series(one): one for one in found}
        now.pop((UP,), None)
        room = MOST_SERIES - len(self._held)
        too_many = [key for key in now if key not in self._held][max(0, room) :]
        for key in too_many:
            del now[key]
        self._left_out = max(self._left_out, len(too_many))
        before, self._held = self._held, self._held | now
        if everything:
            return list(self._held.values())
        return [one for key, one in now.items() if before.get(key) != one]


def _kept(reading: Reading) -> Reading:
    """A reading that can be written and read again; raises where it is none."""
    return _READING.decode(msgspec.json.encode(reading))


def _series(one: Reading) -> tuple[str, ...]:
    """What tells a series from another of its source."""
    return (one.name, *(text for pair in sorted(one.labels.items()) for text in pair))


def _words(error: Exception) -> str:
    return shorten(" ".join(f"{error}".split()) or type(error).__name__)
