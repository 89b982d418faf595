"""What else is read while a run goes on: one file a source, each a tagged `Collector`.

Its fields are its settings, as in `prometheus:http://127.0.0.1:8000/metrics,every=1s`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from servescope import plugins
from servescope.client.address import redact
from servescope.errors import BadInput, shorten
from servescope.records import Sample
from servescope.units import parse_duration_s

LEAST_S, MOST_S = 0.01, 3600.0
STOP_S = 1.5
"""How long the end of a run waits for readings under way, whatever a source does."""
_SAMPLE = msgspec.json.Decoder(Sample)


class Reading(msgspec.Struct, frozen=True):
    """One value of one metric, read now."""

    name: str
    """With its unit in it: `memory_available_bytes`. A source that has its own names keeps them."""
    value: float
    """What is not finite is not kept."""
    labels: dict[str, str] = {}


class Collector(msgspec.Struct, frozen=True, kw_only=True):
    """A source of readings."""

    every: float | str = 1.0
    """Time from one reading to the next: seconds, or a text such as '200ms'."""

    @property
    def every_s(self) -> float:
        """`every` in seconds; raises ValueError saying what would be right."""
        return seconds("every", self.every)

    @property
    def source(self) -> str:
        """Who was read, in every sample: more than the tag where several of a kind may be."""
        return str(self.__struct_config__.tag)

    def read(self) -> Iterable[Reading]:
        """Read the source now. May raise whatever it likes: a failed reading is counted."""
        raise NotImplementedError


def seconds(name: str, value: float | str) -> float:
    """A setting that is a time, in seconds; raises ValueError saying what would be right."""
    want = f"{name}={value}: want a time from 10ms to 1h, such as 1s"
    try:
        found = parse_duration_s(name, value) if isinstance(value, str) else value
    except BadInput:
        raise ValueError(want) from None
    if not LEAST_S <= found <= MOST_S:
        raise ValueError(want)
    return found


def parse(field: str, text: str) -> Collector:
    """The collector that `NAME[:settings]` asks for; raises BadInput naming `field`."""
    try:
        found: Collector = plugins.parse(field, __name__, text)
        found.every_s  # noqa: B018 (raises)
    except BadInput as error:
        raise BadInput(field, redact(str(error.value)), error.want) from None
    except ValueError as error:
        raise BadInput(field, redact(text), str(error)) from None
    return found


class Collection:
    """Reads collectors while a run goes on: use it in a with statement, and drain it now and then.

    Each has a thread of the conductor's, so that a slow source delays no other. That is enough to
    keep clear of what is measured: load and clocks are in processes of their own.
    """

    def __init__(self, collectors: Sequence[Collector], origin_ns: int) -> None:
        """`origin_ns` is when the run began, on the monotonic clock."""
        self._stop = threading.Event()
        self._sources = [_Source(one, origin_ns, self._stop) for one in collectors]

    def __enter__(self) -> Self:
        for source in self._sources:
            source.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        until_s = time.monotonic() + STOP_S
        for source in self._sources:
            source.thread.join(max(0.0, until_s - time.monotonic()))

    def drain(self) -> list[Sample]:
        """The samples that came since the last call."""
        waiting = [source.samples for source in self._sources]
        return [samples.popleft() for samples in waiting for _ in range(len(samples))]

    @property
    def notes(self) -> list[str]:
        """What a user should know of each source that could not always be read, in one line."""
        return [note for source in self._sources for note in source.notes()]


class _Source:
    """One collector and its thread."""

    def __init__(self, collector: Collector, origin_ns: int, stop: threading.Event) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.samples: deque[Sample] = deque()
        self._collector, self._origin_ns, self._stop = collector, origin_ns, stop
        self._readings = self._failed = 0
        self._reason = ""

    def notes(self) -> list[str]:
        found = []
        if self._failed:
            count = f"{self._failed} of {self._readings} readings failed"
            found.append(f"{self._collector.source}: {count}, the first with: {self._reason}")
        if self._stop.is_set() and self.thread.is_alive():
            found.append(
                f"{self._collector.source}: a reading did not end with the run; it is lost"
            )
        return found

    def _run(self) -> None:
        """Read at multiples of `every` from the start, leaving out what a slow source missed.

        The end is read too, so that the differences of counters span the run.
        """
        every_ns = round(self._collector.every_s * 1e9)
        due_ns = time.monotonic_ns()
        while True:
            ended = self._stop.is_set()
            self._read()
            if ended:
                return
            now_ns = time.monotonic_ns()
            due_ns += every_ns * max(1, -((due_ns - now_ns) // every_ns))
            self._stop.wait((due_ns - now_ns) / 1e9)

    def _read(self) -> None:
        before_ns = time.monotonic_ns()
        try:
            readings = list(self._collector.read())
            # The source took its values somewhere in between: in the middle the error is least.
            at_ns = (before_ns + time.monotonic_ns()) // 2 - self._origin_ns
            samples = [self._sample(one, at_ns) for one in readings if math.isfinite(one.value)]
        except Exception as error:  # noqa: BLE001 (whatever a source does, the run goes on)
            self._failed += 1
            said = " ".join(f"{error}".split()) or type(error).__name__
            self._reason = self._reason or shorten(said)
            fault = Reading("collect_errors", float(self._failed))
            samples = [self._sample(fault, before_ns - self._origin_ns)]
        self.samples.extend(samples)
        self._readings += 1

    def _sample(self, reading: Reading, at_ns: int) -> Sample:
        """A reading that can be written and read again; raises where it is none."""
        sample = Sample(
            t_ns=at_ns,
            source=self._collector.source,
            name=reading.name,
            value=reading.value,
            labels=reading.labels,
        )
        return _SAMPLE.decode(msgspec.json.encode(sample))
