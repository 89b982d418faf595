"""Runs against a baseline: what differs, by how much, and whether chance alone would do it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from servescope.analysis import cautions, difference
from servescope.analysis.cautions import defined
from servescope.analysis.comparison import (
    JUDGED,
    LENGTHS,
    RATES,
    SHARES,
    TOO_FEW,
    Comparison,
    Pair,
    Row,
    form,
    judgement,
    label,
    letter,
    rounded_up,
)
from servescope.analysis.sides import Loaded, metrics_of, read

if TYPE_CHECKING:
    from servescope.analysis.difference import Change, Estimate
    from servescope.analysis.estimates import Estimates
    from servescope.analysis.sides import Part

__all__ = ["compare", "defined", "read"]

FLOOR = 0.01
"""Standard deviation between measured runs of one configuration beyond what their own noise
explains: of the logarithm of a figure, and of a share. From benchmarks/compare.py, on a machine
that was busy with other things."""
FLOORS = {"p90": 0.05, "p95": 0.05, "p99": 0.08}
"""The same for a tail, which is made of what disturbs a machine."""
FLOOR_LENGTHS = 0.002
"""Of the tokens of a request, which a machine does not disturb."""
DRIFT = math.sqrt(2)
"""A measured run's own noise is so much larger than its blocks tell: some of it is slower."""
FLOOR_SIMULATED = 0.005
_LOWER_IS_BETTER = ("energy_j_per_output_token", "energy_j_per_request")
_OTHER_WORK = 0.99
"""The confidence with which other lengths are other work."""
_PLAIN_ERRORS = 3.0
"""Standard errors at which lengths without known noise are other work, were they spread as widely
as an exponential's."""
_NO_NOISE = "not judged, as one run a side does not tell the noise of this: wants three repeats"
_TOO_SHORT = f"not judged, as a run tells its noise only from {difference.FEWEST} answered requests"
_LOAD_MADE = (
    "not judged, as both sides keep up and the load makes this rate: wants users:N, or more than "
    "the service can take"
)


def compare(sides: Sequence[Loaded], only: Collection[str] | None = None) -> Comparison:
    """Each side against the first. `only`: these figures; the intervals hold for them alone."""
    baseline = sides[0]
    shown, pairs = [msgspec.structs.replace(one.side) for one in sides], list[Pair]()
    for number, other in enumerate(sides[1:], 1):
        loads, side = _loads(baseline, other), shown[number]
        side.missing = [load for load in baseline.parts if load not in dict(loads)]
        side.unmatched = [load for load in other.parts if load not in dict(loads).values()]
        side.notes = [
            *side.notes,
            *cautions.of_sides(baseline, other, letter(number)),
            *(
                note
                for mine, theirs in loads
                for note in cautions.full_machine(
                    baseline.parts[mine], other.parts[theirs], letter(number)
                )
            ),
        ]
        # Stages of one pair of sides are judged together: a little stricter each.
        level = difference.LEVEL ** (1 / max(len(loads), 1))
        pairs += [
            _pair(baseline, other, number, a=mine, b=theirs, only=only, level=level)
            for mine, theirs in loads
        ]
    return Comparison(sides=shown, pairs=pairs, notes=_method(sides))


def _loads(a: Loaded, b: Loaded) -> list[tuple[str, str]]:
    """Which load of A goes with which of B. Another tool's single stage goes with a single one."""
    foreign = not (a.runs and b.runs)
    if foreign and len(a.parts) == len(b.parts) == 1:
        return [(next(iter(a.parts)), next(iter(b.parts)))]
    return [(load, load) for load in a.parts if load in b.parts]


def _pair(
    baseline: Loaded,
    other: Loaded,
    number: int,
    *,
    a: str,
    b: str,
    only: Collection[str] | None,
    level: float,
) -> Pair:
    parts = (baseline.parts[a], other.parts[b])
    found = Pair(
        side=number,
        load=a if a == b else f"{a} / {b}",
        requests=(sum(p.answered for p in parts[0]), sum(p.answered for p in parts[1])),
        repeats=(len(parts[0]), len(parts[1])),
        rows=[],
    )
    letters = "A", letter(number)
    found.same_load = a == b
    if not found.same_load:
        found.notes.append(f"the loads are not the same: A had {a}, {letters[1]} {b}")
    slo = baseline.slo or other.slo
    names = _names([*parts[0], *parts[1]]) if only is None else list(only)
    estimates = tuple([part.estimates(slo, {*names, *LENGTHS}) for part in side] for side in parts)
    if any(map(cautions.brief, parts)):
        if found.repeats[0] > 1 and found.repeats[1] > 1:
            estimates = tuple([_without_noise(one) for one in side] for side in estimates)
        else:
            found.notes += cautions.few_rounds(parts, letters)
    rows = partial(
        _rows, estimates=estimates, letters=letters, requests=found.requests,
        simulated=baseline.simulated and other.simulated,
        not_judged=_not_judged(parts),
    )  # fmt: skip
    found.rows = rows(names, level=level, keep_absent=only is not None, judge=found.same_load)
    lengths = rows(list(LENGTHS), level=_OTHER_WORK, judge=False)
    found.notes += [_other_work(row, letters[1]) for row in lengths if _apart(row, found.requests)]
    if only is None:
        found.rows += lengths + _resources(parts)
    cautions.mark_definitions(found, baseline.side, other.side)
    cautions.mark_mixed_gaps(found, parts)
    cautions.mark_unanswered(found, letters)
    cautions.mark_few_rounds(found, parts)
    cautions.mark_from_due(found)
    return found


def _not_judged(parts: Sequence[Sequence[Part]]) -> dict[str, str]:
    """Figures that chance and the service do not make, and why."""
    whole = [part for side in parts for part in side]
    return dict.fromkeys(RATES, _LOAD_MADE) if all(part.keeps_up for part in whole) else {}


def _names(parts: Sequence[Part]) -> list[str]:
    latencies = [f"{metric}_{s}" for metric in metrics_of(parts) for s in JUDGED]
    return [*latencies, *RATES, *SHARES]


def _without_noise(estimates: Estimates) -> Estimates:
    """As if nothing were known of it, so that the spread of repeats is all there is to go by."""
    return {
        name: one if name in SHARES else replace(one, ladder=None)
        for name, one in estimates.items()
    }


def _rows(
    names: Sequence[str],
    *,
    estimates: Sequence[Sequence[Estimates]],
    letters: tuple[str, str],
    requests: tuple[int, int],
    simulated: bool,
    not_judged: Mapping[str, str],
    level: float = difference.LEVEL,
    keep_absent: bool = False,
    judge: bool = True,
) -> list[Row]:
    """A row for each figure that either side has; those that both have are set against chance."""
    sides = [{name: _all(name, side) for name in names} for side in estimates]
    both = [name for name in names if sides[0][name] and sides[1][name]]
    set_against = [name for name in both if name not in not_judged]
    changes = difference.apart(
        [sides[0][name] for name in set_against],
        [sides[1][name] for name in set_against],
        [
            _floor(name, [*sides[0][name], *sides[1][name]], simulated=simulated)
            for name in set_against
        ],
        drift=1.0 if simulated else DRIFT,
        level=level,
    )
    known = dict(zip(set_against, changes, strict=True))
    rows = []
    for name in names:
        a, b = (_typical(side[name], share=name in SHARES) for side in sides)
        if a is None and b is None and not keep_absent:
            continue
        row = Row(figure=name, label=label(name), form=form(name), a=a, b=b)
        if name in known:
            _judge(row, known[name], requests, judge=judge)
        elif name in both:
            row.change_ratio, row.note = _change_ratio(row), not_judged[name]
        else:
            lacking = [each for each, v in zip(letters, (a, b), strict=True) if v is None]
            row.note = f"not measured on {' and '.join(lacking)}"
        rows.append(row)
    return rows


def _floor(figure: str, runs: Sequence[Estimate], *, simulated: bool) -> float:
    if figure in LENGTHS:
        return FLOOR_LENGTHS
    usual = FLOOR_SIMULATED if simulated else FLOOR
    if figure in SHARES:  # most at a half; where none or all do, runs are alike
        share = sum(one.value for one in runs) / len(runs)
        return usual * 2 * math.sqrt(share * (1 - share))
    return usual if simulated else FLOORS.get(figure.rpartition("_")[2], usual)


def _change_ratio(row: Row) -> float:
    assert row.a is not None  # noqa: S101 (a change has two sides)
    assert row.b is not None  # noqa: S101
    return row.b - row.a if row.figure in SHARES else row.b / row.a - 1


def _judge(row: Row, change: Change | None, requests: tuple[int, int], *, judge: bool) -> None:
    share = row.figure in SHARES
    row.change_ratio = _change_ratio(row)
    if change is None:
        row.note = _TOO_SHORT if 0 < min(requests) < difference.FEWEST else _NO_NOISE
        return
    lacking = [times * n for times, n in zip(change.more, requests, strict=True) if times > 1]
    row.requests_wanted = rounded_up(max(lacking)) if lacking else None
    low, high = change.size - change.below, change.size + change.above
    if share and math.isfinite(low) and math.isfinite(high):
        low, high = max(low, -1.0), min(high, 1.0)
    row.low, row.high = (_ratio(value, share=share) for value in (low, high))
    row.smallest_ratio = _ratio(change.seen, share=share)
    if row.low is None and row.high is None:
        row.note = TOO_FEW
        return
    row.floor_ratio = change.floor
    if judge:
        row.verdict = judgement(row.figure, low, high)


def _ratio(size: float, *, share: bool) -> float | None:
    if not math.isfinite(size):
        return None
    return size if share else math.expm1(min(size, 50.0))


def _all(name: str, side: Sequence[Estimates]) -> list[Estimate]:
    """The figure in every repeat; none where one lacks it."""
    found = [one[name] for one in side if name in one]
    return found if len(found) == len(side) else []


def _typical(estimates: Sequence[Estimate], *, share: bool) -> float | None:
    if not estimates:
        return None
    if len(estimates) == 1:
        return estimates[0].value
    middle = math.fsum(one.at for one in estimates) / len(estimates)
    return middle if share else math.exp(middle)


def _apart(row: Row, requests: tuple[int, int]) -> bool:
    if row.low is not None or row.high is not None:
        return (row.low or 0) > 0 or (row.high or 0) < 0
    if row.change_ratio is None or min(requests) == 0:
        return False
    error = math.sqrt(sum(1 / n for n in requests))
    return abs(math.log1p(row.change_ratio)) > _PLAIN_ERRORS * error


def _other_work(row: Row, side: str) -> str:
    more = "more" if (row.change_ratio or 0) > 0 else "fewer"
    what = row.label.removesuffix(", mean")
    size = f"{100 * abs(row.change_ratio or 0):.1f} %"
    return f"{side} had {size} {more} {what} a request: it did other work"


def _resources(parts: Sequence[Sequence[Part]]) -> list[Row]:
    """What sources told of engine, GPUs and host. Judged only by repeats, where it has a side that
    is the better."""
    sides: list[dict[str, list[float]]] = []
    for side in parts:
        told: dict[str, list[float]] = {}
        for part in side:
            for resource in part.summary.resources if part.summary is not None else []:
                for name, value in resource.figures.items():
                    if value is not None and math.isfinite(value):
                        told.setdefault(f"{resource.kind} {name}", []).append(value)
        sides.append(told)
    rows = []
    for name in sides[0]:
        if name in sides[1]:
            a, b = (sum(side[name]) / len(side[name]) for side in sides)
            row = Row(figure=name, label=name, form="resource", a=a, b=b)
            row.change_ratio = b / a - 1 if a > 0 else None
            if name.endswith(_LOWER_IS_BETTER) and min(sides[0][name] + sides[1][name]) > 0:
                _judge_spread(row, sides[0][name], sides[1][name])
            rows.append(row)
    return rows


def _judge_spread(row: Row, a: Sequence[float], b: Sequence[float]) -> None:
    """By the spread of repeats alone."""
    logs = [[difference.Estimate(v, math.log(v)) for v in side] for side in (a, b)]
    (change,) = difference.apart([logs[0]], [logs[1]], [0.0])
    row.a, row.b = (_typical(side, share=False) for side in logs)
    _judge(row, change, (0, 0), judge=True)


def _method(sides: Sequence[Loaded]) -> list[str]:
    repeated = max(len(side.side.paths) for side in sides) > 1
    usual, p95, p99 = (f"{100 * x:g} %" for x in (FLOOR, FLOORS["p95"], FLOORS["p99"]))
    floor = f"{usual} ({p95} at P95, {p99} at P99)"
    if all(side.simulated for side in sides):
        floor = f"{100 * FLOOR_SIMULATED:g} %"
    between = f"beyond that, runs of one configuration are taken to differ by {floor}"
    held = "intervals hold with 95 % confidence for all figures of a pair of sides at once"
    return [
        f"{held}; the noise of a run is read from blocks of it in time order",
        between
        + (", corrected by the repeats" if repeated else "; repeats would tell by how much"),
        "'seen from' is the smallest change that would have been shown with a probability of 80 %",
    ]
