"""Words for what a comparison found: sides by letters, changes with their intervals."""

from __future__ import annotations

from servescope.analysis.comparison import SHARES, Comparison, Pair, Row
from servescope.report.shown import distinct
from servescope.units import three_digits


def letter(side: int) -> str:
    """By what a side is called: A is the baseline."""
    return chr(ord("A") + side) if side < 26 else f"side {side + 1}"


def names(comparison: Comparison) -> list[str]:
    """The sides' names, told apart."""
    return distinct([side.name for side in comparison.sides])


def judged(pair: Pair) -> list[Row]:
    """The rows of what clients saw."""
    return [row for row in pair.rows if row.form != "resource"]


def is_share(row: Row) -> bool:
    """Whether the figure is a part of all requests."""
    return row.figure in SHARES


def signed(ratio: float | None, *, share: bool) -> str:
    """`+4.2 %`; of a share in points, as its change is no part of it."""
    if ratio is None:
        return "?"
    return f"{'+' * (ratio > 0)}{three_digits(ratio * 100)} {'points' if share else '%'}"


def change(row: Row) -> str:
    """The change with its sign."""
    return signed(row.change_ratio, share=is_share(row))


def interval(row: Row) -> str:
    """What the change lies in; nothing where there is no limit at all."""
    if row.low is None and row.high is None:
        return ""
    low, high = (signed(value, share=is_share(row)) for value in (row.low, row.high))
    if row.low is None:
        return f"below {high}"
    return f"above {low}" if row.high is None else f"{low.partition(' ')[0]} to {high}"
