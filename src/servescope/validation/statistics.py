"""How far predictions are off, and whether they order things as measurements do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np

from servescope.validation.cells import Cell

ALIKE = 0.05
"""Published figures that differ by less say nothing of an order: charts are read to that."""


class Errors(NamedTuple):
    """Of some cells: ratios less 1, or differences of fractions."""

    cells: int
    """Those with a prediction."""
    unpredicted: int
    median: float
    """Of the absolute errors, as are the next two."""
    mean: float
    p90: float
    bias: float
    """The median error with its sign."""


def errors(cells: Sequence[Cell]) -> Errors:
    """Their statistics; NaN where nothing is predicted. No cell is left out for being far off."""
    found = np.array([cell.error for cell in cells if cell.error is not None])
    if not len(found):
        return Errors(0, len(cells), *[float("nan")] * 4)
    sizes = np.abs(found)
    return Errors(
        len(found),
        len(cells) - len(found),
        float(np.median(sizes)),
        float(sizes.mean()),
        float(np.percentile(sizes, 90)),
        float(np.median(found)),
    )


class Order(NamedTuple):
    """Two cells that differ in one thing: whether the one that was higher is predicted to be."""

    by: str
    """engine, gpu or tp."""
    cells: tuple[Cell, Cell]
    is_right: bool


def orders(cells: Iterable[Cell]) -> list[Order]:
    """All pairs of predicted figures that differ in the engine, the GPU or the size alone, and
    whose published figures differ by more than 5 %. Fractions have no order."""
    found = []
    kept = [cell for cell in cells if cell.predicted is not None and not cell.is_share]
    for by in ("engine", "gpu", "tp"):
        groups: dict[tuple[object, ...], list[Cell]] = {}
        for cell in kept:
            rest = [v for k, v in msgspec.structs.asdict(cell.setup).items() if k != by]
            groups.setdefault((cell.source, cell.metric, *rest), []).append(cell)
        for group in groups.values():
            found += [
                Order(by, (one, other), _is_right(one, other))
                for one, other in combinations(group, 2)
                if getattr(one.setup, by) != getattr(other.setup, by)
                and abs(one.published / other.published - 1) > ALIKE
            ]
    return found


def _is_right(one: Cell, other: Cell) -> bool:
    assert one.predicted is not None  # noqa: S101 (those that are not were left out)
    assert other.predicted is not None  # noqa: S101
    return (one.predicted > other.predicted) == (one.published > other.published)
