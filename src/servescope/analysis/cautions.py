"""What to mind of a comparison besides chance: sides that are not alike, or say little."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from servescope.analysis import difference, machine
from servescope.analysis.comparison import (
    STATISTICS,
    TOO_FEW,
    Pair,
    Row,
    Side,
    letter,
    rounded_up,
)
from servescope.goodput import METRICS

if TYPE_CHECKING:
    from servescope.analysis.sides import Loaded, Part

_ROUNDS = difference.ROUNDS * difference.FEWEST_BLOCKS
_SAFELY = 1.2
"""In a longer run more are in flight on average: filling and draining are less of it."""
_FULLER = 0.2
"""By how much more of its CPU a full machine is busy than the other side's, to be worth a word."""


def brief(side: Sequence[Part]) -> bool:
    """Whether the noise of its runs cannot be read from themselves: a burst is one round."""
    rounds = [part.rounds for part in side if part.rounds]
    return bool(rounds) and min(rounds) < _ROUNDS


def _place(path: str) -> Path:
    return Path(path).resolve()


def mark_definitions(pair: Pair, a: Side, b: Side) -> None:
    """Say of each figure that the two sides do not mean the same."""
    if a.tool == b.tool:
        return
    sides = (("A", a), (letter(pair.side), b))
    for row in pair.rows:
        tools = [f"{n}'s {s.tool}" for n, s in sides if defined(row, s)]
        if tools and row.a is not None and row.b is not None:
            said = f"as defined by {' and '.join(tools)}"
            row.note = f"{said}; {row.note}" if row.note else said


def defined(row: Row, side: Side) -> str | None:
    """What another tool that measured a side means by a row's figure."""
    metric, _, statistic = row.figure.rpartition("_")
    name = METRICS.get(metric, metric) if statistic in STATISTICS else row.figure
    return side.definitions.get(name)


def few_rounds(parts: Sequence[Sequence[Part]], letters: tuple[str, str]) -> list[str]:
    """A note where a side's runs are of so few rounds, with what it wants instead."""
    for side, name in zip(parts, letters, strict=True):
        if brief(side):
            rounds = min(part.rounds for part in side if part.rounds)
            many = f"{name}'s requests were only {rounds:.1f} rounds of those in flight"
            wants = "three repeats a side"
            if (requests := _of_enough_rounds(side)) is not None:
                wants = f"{_ROUNDS:g} rounds, about {requests:,} requests a run, or {wants}"
            return [f"{many}, which says little of the noise: wants {wants}"]
    return []


def _of_enough_rounds(side: Sequence[Part]) -> int | None:
    """Requests with which each of its runs would have rounds enough; None: of a burst, none."""
    known = [part for part in side if part.rounds]
    if any(part.at_once for part in known):
        return None
    return rounded_up(
        max(part.answered * _SAFELY * _ROUNDS / (part.rounds or 1.0) for part in known)
    )


def mark_few_rounds(pair: Pair, parts: Sequence[Sequence[Part]]) -> None:
    """Of few rounds not even the number of requests is known that a figure wants."""
    if any(map(brief, parts)):
        for row in pair.rows:
            row.requests_wanted = None
            row.note = row.note.replace(TOO_FEW, "too few rounds to judge it")


def mark_from_due(pair: Pair) -> None:
    """Why there are two rows of one latency."""
    for row in pair.rows:
        if "_from_due_" in row.figure and not row.note:
            row.note = "from when a request was due; here over 1 % longer than from its sending"


def mark_unanswered(pair: Pair, letters: tuple[str, str]) -> None:
    """A figure that is missing because nothing came back is said to be so."""
    silent = [name for name, n in zip(letters, pair.requests, strict=True) if not n]
    if silent:
        for row in pair.rows:
            if row.a is None or row.b is None:
                row.note = f"nothing was answered on {' and '.join(silent)}"


def mark_mixed_gaps(pair: Pair, parts: Sequence[Sequence[Part]]) -> None:
    """A tool's gaps between chunks against another's between tokens."""
    kinds = [
        {name for name in ("itl_s", "icl_s") if name in part.imported_figures}
        for side in parts
        for part in side[:1]
    ]
    if {"itl_s"} in kinds and {"icl_s"} in kinds:
        said = (
            "one side tells the time between tokens (ITL) and the other that between chunks (ICL)"
        )
        for row in pair.rows:
            if row.figure.startswith(("itl_", "icl_")):
                row.note = f"{said}, whatever the tools call them: they are not compared"


def full_machine(a: Sequence[Part], b: Sequence[Part], letter: str) -> list[str]:
    """A note where the machine had nothing left on one side alone."""
    busy = [[part.cpu_busy for part in side if part.cpu_busy is not None] for side in (a, b)]
    if not all(busy):
        return []
    one, two = (sum(side) / len(side) for side in busy)
    if max(one, two) < machine.FULL or abs(one - two) < _FULLER:
        return []
    said = f"this machine's CPU was {100 * two:.0f} % busy on {letter} and {100 * one:.0f} % on A"
    return [f"{said} at {b[0].load}: what differs may be its doing"]


def of_sides(a: Loaded, b: Loaded, letter: str) -> list[str]:
    """What to mind of two sides, whatever the load."""
    if {*map(_place, a.side.paths)} & {*map(_place, b.side.paths)}:
        return [f"A and {letter} have a run or file in common: of that nothing can differ"]
    if a.side.tool != b.side.tool:
        return ["figures of different tools are compared, each with its tool's own definitions"]
    if not (a.runs and b.runs):
        return []
    one, two = a.runs[0].manifest, b.runs[0].manifest
    found = []
    if a.slo is not None and b.slo is not None and str(a.slo) != str(b.slo):
        found.append(f"goodput is measured against A's SLO on both sides: {a.slo}")
    if one.kind != two.kind:
        return [*found, "one side was measured and the other simulated"]
    seed = one.trial.get("seed")
    here = one.trial.get("target") == two.trial.get("target")
    if one.kind == "measured" and here and seed is not None and seed == two.trial.get("seed"):
        said = f"both asked the same prompts (seed {seed}) of one URL"
        found.append(f"{said}: a prefix cache not emptied between them flatters the later one")
    return found
