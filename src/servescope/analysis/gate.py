"""A gate: bounds on changes, such as `ttft_p50<+20%`, judged so that chance does not decide them.

A bound is broken where the whole interval of the change lies beyond it, and kept where the whole
interval lies within. Between the two nothing is shown either way: it is not decided. What was not
measured is broken: nobody should merge what was not looked at. What was measured badly (an
incomplete run, a load generator at its limit) can break a bound but cannot keep one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import msgspec

from servescope.analysis.compare import compare
from servescope.analysis.comparison import (
    HIGHER_IS_BETTER,
    LATENCIES,
    RATES,
    SHARES,
    STATISTICS,
    Row,
    change,
    interval,
    label,
    letter,
    rounded_up,
    said,
    wanted,
)
from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.analysis.comparison import Comparison, Pair
    from servescope.analysis.sides import Loaded

FIELD = "--gate"
FIGURES = (*(f"{metric}_{s}" for metric in LATENCIES for s in STATISTICS), *RATES, *SHARES)
WEAKENING = ("client_limited", "clock", "errors", "merged_reads", "not_offered")
"""Doubts under which a figure may be the load generator's, or only that of the requests that were
answered: no bound is shown to be kept."""
_SPARED = {"errors": tuple(SHARES), "merged_reads": (*SHARES, *RATES)}
"""Shares count all requests; and what is counted is not changed by a chunk read a little late."""
_BOUND = re.compile(r"([a-z0-9_]+)\s*([<>])=?\s*([+-]?)\s*(\d+(?:\.\d+)?)\s*%")
_WANT = "want bounds on changes such as ttft_p50<+20%,output_tokens_per_s>-10%"

_MOST_REQUESTS, _MOST_REPEATS = 100_000, 30
"""What nobody makes to decide a bound is no advice."""

Outcome = Literal["kept", "broken", "not decided"]


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """One bound on the change of one figure."""

    figure: str
    below: bool
    """The change must stay below the limit; else above it."""
    limit: float
    """A ratio: 0.05 for 5 %. Of a share, points."""
    text: str
    """As the user wrote it."""


class Judgement(msgspec.Struct, kw_only=True):
    """What became of a bound on one pair of stages."""

    bound: str
    side: str
    load: str
    outcome: Outcome
    sentence: str
    """Why, with the numbers."""
    row: Row | None = None


def parse(text: str) -> list[Bound]:
    """The bounds in 'ttft_p50<+20%,output_tokens_per_s>-10%'. Raises BadInput."""
    return [_parse(part.strip()) for part in text.split(",")]


def _parse(text: str) -> Bound:
    match = _BOUND.fullmatch(text.lower())
    if match is None:
        raise BadInput(FIELD, text, _WANT)
    figure, sign, minus, percent = match.groups()
    if figure not in FIGURES:
        if figure in LATENCIES:
            raise BadInput(FIELD, text, f"want a statistic too, such as {figure}_p99")
        raise BadInput(FIELD, figure, f"want a figure of a comparison {_nearest(figure)}")
    below, limit = sign == "<", float(percent) / 100 * (-1 if minus == "-" else 1)
    if below == (figure in HIGHER_IS_BETTER):
        right = ">-" if below else "<+"
        want = f"want {figure}{right}{percent}%: the bound is on how much worse it may become"
        raise BadInput(FIELD, text, want)
    if not below and figure not in SHARES and limit <= -1:
        raise BadInput(FIELD, text, "want a limit above -100%")
    return Bound(figure=figure, below=below, limit=limit, text=text)


def _nearest(figure: str) -> str:
    """The likely name; of so many not all are told."""
    close = get_close_matches(figure, FIGURES, n=1)
    return f"(did you mean {close[0]}?)" if close else "such as ttft_p99 or requests_per_s"


def judge(sides: Sequence[Loaded], bounds: Sequence[Bound]) -> list[Judgement]:
    """Each bound on each pair of stages; the intervals hold for the gate's figures together."""
    figures = list(dict.fromkeys(bound.figure for bound in bounds))
    found = compare(sides, only=figures)
    judged = [_judge(bound, found, pair) for pair in found.pairs for bound in bounds]
    for side in found.sides[1:]:
        here = [pair for pair in found.pairs if found.sides[pair.side] is side]
        lacking = [*side.missing, *([] if here or side.missing else ["any load"])]
        judged += [
            Judgement(
                bound=bound.text,
                side=side.name,
                load=load,
                outcome="broken",
                sentence=f"not measured: {side.name} has no stage {load} to compare",
            )
            for load in lacking
            for bound in bounds
        ]
    return judged


def _judge(bound: Bound, found: Comparison, pair: Pair) -> Judgement:
    row, side = pair.row(bound.figure), found.sides[pair.side]
    outcome, sentence = _outcome(bound, row, pair)
    if row is not None and row.change_ratio is not None:
        why = _weak(found, pair, bound)
        if why is not None and outcome == "kept":
            outcome, sentence = "not decided", f"{sentence}, but {why}"
        elif why is not None:
            sentence = f"{sentence}, and {why}"
    return Judgement(
        bound=bound.text,
        side=side.name,
        load=pair.load,
        outcome=outcome,
        sentence=sentence,
        row=row,
    )


def _outcome(bound: Bound, row: Row | None, pair: Pair) -> tuple[Outcome, str]:
    if row is None or row.change_ratio is None:
        why = row.note if row is not None and row.note else "it was not measured"
        return "broken", f"{label(bound.figure)}: {why}"
    changed = f"{row.label} changed by {change(row)}"
    low = -math.inf if row.low is None else row.low
    high = math.inf if row.high is None else row.high
    if math.isinf(low) and math.isinf(high):
        return "not decided", f"{changed}; {said(row)}"
    changed += f" ({interval(row)})"
    beyond, within = (low >= bound.limit, high < bound.limit)
    if not bound.below:
        beyond, within = (high <= bound.limit, low > bound.limit)
    if beyond:
        return "broken", changed
    if within:
        return "kept", changed
    return "not decided", f"{changed}; {_enough(bound, row, pair)}"


def _enough(bound: Bound, row: Row, pair: Pair) -> str:
    """What would decide it, if the change is what it seems to be."""
    size = row.change_ratio or 0.0
    away = abs(size - bound.limit)
    half = max(abs(end - size) for end in (row.low, row.high) if end is not None)
    if row.low is None or row.high is None:
        few = wanted([row])
        return f"{few} would give it both limits" if few else "it has a limit on one side alone"
    # Of a share that is none or all on both sides the interval shrinks with the requests.
    power = 1 if row.figure in SHARES and row.a == row.b and row.a in (0.0, 1.0) else 2
    repeats = max(math.ceil(min(pair.repeats) * _ratio(half, away) ** power), min(pair.repeats) + 1)
    if away > 1.1 * row.floor_ratio:
        if power == 2:
            times = (half**2 - row.floor_ratio**2) / (away**2 - row.floor_ratio**2)
        else:
            times = 1.05 * half / away
        requests = rounded_up(times * max(pair.requests))
        if requests <= _MOST_REQUESTS:
            return f"about {requests:,} requests a side would decide it"
    if repeats <= _MOST_REPEATS:
        return f"about {repeats} repeats a side would decide it"
    return (
        f"for its noise it is so near the bound that not even {_MOST_REPEATS} repeats a side would "
        "decide it"
    )


def _ratio(half: float, away: float) -> float:
    return half / away if away > half / 1000 else 1000.0


def _weak(found: Comparison, pair: Pair, bound: Bound) -> str | None:
    """Why nothing can be taken as shown to be in order."""
    for name, side in ((letter(k), found.sides[k]) for k in (0, pair.side)):
        if side.incomplete:
            return f"{name} is incomplete ({side.incomplete[0]})"
        for doubt in side.doubts:
            spared = bound.figure in _SPARED.get(doubt.kind, ())
            if doubt.kind in WEAKENING and not spared and doubt.load in pair.load.split(" / "):
                return f"{name} is in doubt ({doubt.kind}: {doubt.message})"
    return pair.notes[0] if pair.notes else None


def failed(judged: Sequence[Judgement], *, undecided_fails: bool) -> bool:
    """Whether the gate's exit status is that of a failure."""
    bad = {"broken", "not decided"} if undecided_fails else {"broken"}
    return any(one.outcome in bad for one in judged)
