"""What else is read while a run goes on: one file a source, each a tagged `Collector`.

Its fields are its settings, as in `prometheus:http://127.0.0.1:8000/metrics,every=1s`. Sources are
read in a process of their own (`_collection.py` is our end of it, `__main__.py` the other).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from servescope import plugins
from servescope.client.address import redact
from servescope.errors import BadInput
from servescope.units import parse_duration_s

LEAST_S, MOST_S = 0.01, 3600.0


class Reading(msgspec.Struct, frozen=True):
    """One value of one metric, read now."""

    name: str
    """With its unit in it: `memory_available_bytes`. A source that has its own names keeps them."""
    value: float
    """What is not finite is not kept."""
    labels: dict[str, str] = {}


class Absent(ValueError):
    """There is no such source here. One that nobody asked for is then left alone."""


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
        """Read the source now. May raise whatever it likes: a failed reading is counted.

        A collector has its own `read`, or its own `reader`.
        """
        return self.reader()()

    def reader(self) -> Callable[[], Iterable[Reading]]:
        """What is called for each reading of a run: of a source with a memory, one with a new one.

        May raise whatever `read` may, and is then asked again.
        """
        return self.read


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
    """The collector that `NAME[:settings]` or `NAME,settings` asks for.

    Raises BadInput naming `field`.
    """
    name, comma, settings = text.partition(",")
    try:
        plain = text if ":" in name or not comma else f"{name}:{settings}"
        found: Collector = plugins.parse(field, __name__, plain)
        found.every_s  # noqa: B018 (raises)
    except BadInput as error:
        raise BadInput(field, redact(str(error.value)), error.want) from None
    except ValueError as error:
        raise BadInput(field, redact(text), str(error)) from None
    return found
