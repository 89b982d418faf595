"""A published figure, the predicted one beside it, and what both are of."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple

import msgspec


class Row(NamedTuple):
    """A published figure as `published.csv` has it, with its context."""

    id: str
    source: str
    hardware: str
    gpus: str
    model: str
    dtype: str
    engine: str
    tp: str
    replicas: str
    workload: str
    metric: str
    value: str
    unit: str
    quality: str
    """exact, digitised from a chart, or qualitative."""
    note: str

    @property
    def number(self) -> float:
        """The figure; of a range such as 2..3, its middle."""
        ends = [float(end) for end in self.value.split("..")]
        return sum(ends) / len(ends)


@cache
def published() -> tuple[Row, ...]:
    """All published figures."""
    text = (resources.files(__package__) / "published.csv").read_text("utf-8")
    return tuple(Row(**row) for row in csv.DictReader(text.splitlines()))


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure was measured on, in the names of its source."""

    engine: str
    gpu: str
    model: str
    tp: int = 1
    workload: str

    def __str__(self) -> str:
        gpus = f"{self.tp} x {self.gpu}" if self.tp > 1 else self.gpu
        return ", ".join(filter(None, (self.engine, self.model, gpus, self.workload)))


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One figure twice."""

    source: str
    setup: Setup
    metric: str
    unit: str
    published: float
    predicted: float | None
    """None: nothing here predicts it, and `note` says why."""
    quality: str
    note: str = ""
    like: str = ""
    """The class of deployment whose error bars it has a part in (`plan/error_bars.py`); '': none,
    as an engine's constants were fitted to its source."""

    @classmethod
    def of(
        cls, row: Row, setup: Setup, predicted: float | None, note: str = "", like: str = ""
    ) -> Cell:
        """The cell of a row."""
        return cls(
            source=row.source,
            setup=setup,
            metric=row.metric,
            unit=row.unit,
            published=row.number,
            predicted=predicted,
            quality=row.quality,
            note=note or row.note,
            like=like,
        )

    @property
    def what(self) -> str:
        """Whose figure it is."""
        return str(self.setup)

    @property
    def is_share(self) -> bool:
        """Whether its error is a difference: of a fraction, a ratio would mean nothing near 0."""
        return self.unit == "fraction"

    @property
    def error(self) -> float | None:
        """Predicted over published less 1, or the difference of fractions."""
        if self.predicted is None:
            return None
        if self.is_share:
            return self.predicted - self.published
        return self.predicted / self.published - 1


def grouped(rows: Iterable[Row], *fields: str) -> Iterator[list[Row]]:
    """Rows that agree in these fields: one run's figures, in the order of the file."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, field) for field in fields), []).append(row)
    yield from found.values()
