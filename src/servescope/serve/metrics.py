"""What a server has counted, and how Prometheus reads it: histograms, families, a text page."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from servescope.engine import Step


class Histogram:
    """Counts by upper bound, and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)

    def add(self, value: float) -> None:
        """One value; a bound belongs to the values below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def __add__(self, other: Self) -> Histogram:
        both = Histogram(self.bounds)
        both.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds of an engine's histograms; times in seconds."""

    ttft: Sequence[float]
    itl: Sequence[float]
    tpot: Sequence[float]
    e2e: Sequence[float]
    queue: Sequence[float]
    tokens: Sequence[float]


class Requests:
    """Requests that have ended, those that stream or those that do not."""

    def __init__(self, bounds: Bounds) -> None:
        self.ttft = Histogram(bounds.ttft)
        self.tpot = Histogram(bounds.tpot)
        self.e2e = Histogram(bounds.e2e)
        self.prompt = Histogram(bounds.tokens)
        self.cached = Histogram(bounds.tokens)
        self.output = Histogram(bounds.tokens)

    def __add__(self, other: Self) -> Requests:
        both = Requests.__new__(Requests)
        for name, mine in vars(self).items():
            setattr(both, name, mine + getattr(other, name))
        return both


STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Tally:
    """Everything that is counted beside the engine's own totals."""

    def __init__(self, bounds: Bounds) -> None:
        self.streamed, self.whole = Requests(bounds), Requests(bounds)
        self.itl = Histogram(bounds.itl)
        self.queue = Histogram(bounds.queue)
        self.prefill = Histogram(bounds.e2e)
        self.decode = Histogram(bounds.e2e)
        self.preemptions = Histogram((0, 1, 2, 5, 10, 20, 50, 100))
        self.step_tokens = Histogram(STEP_TOKENS)
        self.prefill_steps, self.decode_steps = Histogram(bounds.e2e), Histogram(bounds.e2e)
        self.sequence_steps = 0
        """Sum over the steps of the requests in each."""
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        """Of requests whose first token has come, and so far."""
        self.turned_away = self.refused = self.aborted = 0

    @property
    def requests(self) -> Requests:
        """All that have ended whole."""
        return self.streamed + self.whole

    def step(self, step: Step) -> None:
        """A step is over; one that computes any prompt counts as prefill."""
        (self.prefill_steps if step.prefill_tokens else self.decode_steps).add(step.duration_s)
        self.step_tokens.add(step.prefill_tokens + len(step.made))
        self.sequence_steps += step.sequences
        self.output_tokens += len(step.made)


Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its samples."""

    kind: str
    name: str
    about: str
    samples: Sequence[tuple[Labels, float | Histogram]]


def page(families: Iterable[Family], labels: Labels) -> bytes:
    """The families as text, format 0.0.4; `labels` are on every sample."""
    lines = [line for family in families for line in _lines(family, labels)]
    return "\n".join([*lines, ""]).encode()


def _lines(family: Family, common: Labels) -> Iterator[str]:
    yield f"# HELP {family.name} {family.about}"
    yield f"# TYPE {family.name} {family.kind}"
    for own, value in family.samples:
        labels = {**common, **own}
        if isinstance(value, Histogram):
            bounds = [*map(_number, value.bounds), "+Inf"]
            for bound, below in zip(bounds, accumulate(value.counts), strict=True):
                yield _sample(f"{family.name}_bucket", {**labels, "le": bound}, below)
            yield _sample(f"{family.name}_count", labels, value.count)
            yield _sample(f"{family.name}_sum", labels, value.sum)
        else:
            yield _sample(family.name, labels, value)


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in sorted(labels.items()))
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
