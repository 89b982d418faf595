"""Words for what a comparison found, the same in a terminal, a pull request and a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from servescope.analysis.comparison import (
    SHARES,
    TOO_FEW,
    Comparison,
    Pair,
    Row,
    change,
    letter,
    unit,
    wanted,
)
from servescope.report.labels import quantity
from servescope.report.shown import distinct
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from servescope.analysis.gate import Judgement

MOST_NAMED = 5
"""Figures that a sentence names before it counts the others."""
NOTHING_SHARED = "no load is on both sides: nothing can be compared"
OUTCOMES = ("broken", "not decided", "kept")
"""Of a gate's bounds, the worst first."""
OTHER_LOAD = "the loads are not the same, so no figure is called better or worse"
NOTHING_JUDGED = "nothing could be judged: too few requests, or no figure on both sides"


def names(comparison: Comparison) -> list[str]:
    """The sides' names, told apart."""
    return distinct([side.name for side in comparison.sides])


def judged(pair: Pair) -> list[Row]:
    """The rows of what clients saw."""
    return [row for row in pair.rows if row.form != "resource"]


def resources(pair: Pair) -> list[Row]:
    """The rows of what engine, GPUs and host told."""
    return [row for row in pair.rows if row.form == "resource"]


def title(row: Row) -> str:
    """What a row is called."""
    return quantity(row.figure, None)[0] if row.form == "resource" else row.label


def value(row: Row, x: float) -> str:
    """A figure for people."""
    if row.form == "resource":
        return quantity(row.figure, x)[1]
    if row.form == "percent":
        return f"{three_digits(x * 100)} %"
    return format_seconds(x) if row.form == "seconds" else three_digits(x)


def count(pair: Pair, side: int) -> str:
    """How much stands behind A (side 0) or the other (side 1): '600 requests in 2 runs'."""
    requests, runs = pair.requests[side], pair.repeats[side]
    many = f"{requests:,} request{'' if requests == 1 else 's'}"
    return f"{many} in {runs} runs" if runs > 1 else many


def answer(pair: Pair) -> str:
    """A pair in one sentence."""
    if not pair.same_load:
        return OTHER_LOAD
    said = [
        f"{letter(pair.side)} is {verdict} than A in {_listed(rows)}"
        for verdict in ("worse", "better")
        if (rows := pair.shown(verdict))
    ]
    same = pair.shown("no difference shown")
    if same:
        said.append(_nothing_shown(same, others=bool(said)))
    return "; ".join(said) or NOTHING_JUDGED


def _nothing_shown(same: Sequence[Row], *, others: bool) -> str:
    if len(same) == 1:
        figures = "the other figure" if others else "the one figure there is"
    else:
        figures = f"{'the other' if others else 'any of'} {len(same)} figures"
    seen = [row.smallest_ratio for row in same if row.smallest_ratio and row.figure not in SHARES]
    if not seen:
        return f"no difference is shown in {figures}"
    low, high = (f"{100 * ratio:.1f} %" for ratio in (min(seen), max(seen)))
    would = low if low == high else f"{low} to {high}, by figure,"
    return f"no difference is shown in {figures}, where a change of {would} would have been seen"


def _listed(rows: Sequence[Row]) -> str:
    """The largest changes first, and one of the statistics of a metric."""
    rows = sorted(rows, key=lambda row: -abs(row.change_ratio or 0.0))
    named = {row.figure.rpartition("_")[0]: row for row in reversed(rows)}
    chosen = [row for row in rows if row in named.values()][:MOST_NAMED]
    said = [f"{title(row)} ({change(row)})" for row in chosen]
    more = len(rows) - len(said)
    return ", ".join(said) + (f" and {more} more" if more else "")


def smallest(row: Row) -> str | None:
    """The smallest change that would have been seen."""
    ratio = row.smallest_ratio
    return None if ratio is None else f"{100 * ratio:.1f} {unit(row)}"


def notes(pair: Pair) -> list[str]:
    """What to mind of its rows: each note once, with the rows that have it."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in pair.rows:
        if row.note:
            # The further out a percentile is, the more requests it wants.
            statistic = row.figure.rpartition("_")[2] if row.note.endswith(TOO_FEW) else ""
            found.setdefault((row.note, statistic), []).append(row)
    whole = len(judged(pair))
    return [
        f"{'all figures' if len(rows) == whole > 1 else _grouped(pair, rows)}: {note}"
        + (f": wants {wanted(rows)}" if statistic and wanted(rows) else "")
        for (note, statistic), rows in found.items()
    ]


def _grouped(pair: Pair, rows: Sequence[Row]) -> str:
    """Rows by what they measure: a latency's name alone stands for all its statistics."""
    found = dict[str, list[str]]()
    for row in rows:
        metric, _, statistic = title(row).rpartition(" ") if row.form == "seconds" else (
            title(row), "", "")  # fmt: skip
        found.setdefault(metric, []).append(statistic)
    there = [title(row).rpartition(" ")[0] for row in pair.rows if row.form == "seconds"]
    return ", ".join(
        metric if len(of) == there.count(metric) or of == [""] else f"{metric} {' '.join(of)}"
        for metric, of in found.items()
    )


def outcomes(gate: Sequence[Judgement]) -> str:
    """How many bounds came out how, the worst first: '1 broken, 2 not decided'."""
    counts = {word: sum(one.outcome == word for one in gate) for word in OUTCOMES}
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n)
