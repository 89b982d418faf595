"""Runs against a baseline: what differs, by how much, and whether chance alone would do it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from servescope.analysis import difference
from servescope.analysis.comparison import (
    JUDGED,
    LENGTHS,
    RATES,
    SHARES,
    STATISTICS,
    Comparison,
    Difference,
    Pair,
    Row,
    Side,
    SideDoubt,
    form,
    judgement,
    label,
    letter,
)
from servescope.analysis.sides import Loaded, metrics_of, read
from servescope.goodput import METRICS

if TYPE_CHECKING:
    from servescope.analysis.difference import Change, Estimate
    from servescope.analysis.estimates import Estimates
    from servescope.analysis.sides import Part

__all__ = ["Comparison", "Difference", "Pair", "Row", "Side", "SideDoubt", "compare", "read"]

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
_NO_NOISE = "not judged: one run a side, and nothing in it tells the noise of this"


def compare(sides: Sequence[Loaded], only: Collection[str] | None = None) -> Comparison:
    """Each side against the first. `only`: these figures; the intervals hold for them alone."""
    baseline = sides[0]
    shown, pairs = [msgspec.structs.replace(one.side) for one in sides], list[Pair]()
    for number, other in enumerate(sides[1:], 1):
        loads, side = _loads(baseline, other), shown[number]
        side.missing = [load for load in baseline.parts if load not in dict(loads)]
        side.unmatched = [load for load in other.parts if load not in dict(loads).values()]
        side.notes = [*side.notes, *_cautions(baseline, other)]
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
    if a != b:
        found.notes.append(f"the loads are not the same: A had {a}, {letters[1]} {b}")
    slo = baseline.slo or other.slo
    names = _names([*parts[0], *parts[1]]) if only is None else list(only)
    estimates = tuple([part.estimates(slo, {*names, *LENGTHS}) for part in side] for side in parts)
    if any(map(_brief, parts)):
        if found.repeats[0] > 1 and found.repeats[1] > 1:
            estimates = tuple([_without_noise(one) for one in side] for side in estimates)
        else:
            found.notes += _few_rounds(parts, letters)
    rows = partial(
        _rows, estimates=estimates, letters=letters,
        simulated=baseline.simulated and other.simulated,
    )  # fmt: skip
    found.rows = rows(names, level=level, keep_absent=only is not None)
    lengths = rows(list(LENGTHS), level=_OTHER_WORK, judge=False)
    found.notes += [_other_work(row, letters[1]) for row in lengths if _apart(row)]
    if only is None:
        found.rows += lengths + _resources(parts)
    _mark_definitions(found, baseline.side, other.side)
    _mark_mixed_gaps(found, parts)
    _mark_unanswered(found, letters)
    return found


def _names(parts: Sequence[Part]) -> list[str]:
    latencies = [f"{metric}_{s}" for metric in metrics_of(parts) for s in JUDGED]
    return [*latencies, *RATES, *SHARES]


def _brief(side: Sequence[Part]) -> bool:
    """Whether the noise of its runs cannot be read from themselves: a burst is one round."""
    rounds = [part.rounds for part in side if part.rounds]
    return bool(rounds) and min(rounds) < difference.ROUNDS * difference.FEWEST_BLOCKS


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
    simulated: bool,
    level: float = difference.LEVEL,
    keep_absent: bool = False,
    judge: bool = True,
) -> list[Row]:
    """A row for each figure that either side has; those that both have are set against chance."""
    sides = [{name: _all(name, side) for name in names} for side in estimates]
    both = [name for name in names if sides[0][name] and sides[1][name]]
    changes = difference.apart(
        [sides[0][name] for name in both],
        [sides[1][name] for name in both],
        [_floor(name, [*sides[0][name], *sides[1][name]], simulated=simulated) for name in both],
        drift=1.0 if simulated else DRIFT,
        level=level,
    )
    known = dict(zip(both, changes, strict=True))
    rows = []
    for name in names:
        a, b = (_typical(side[name], share=name in SHARES) for side in sides)
        if a is None and b is None and not keep_absent:
            continue
        row = Row(figure=name, label=label(name), form=form(name), a=a, b=b)
        if name in known:
            _judge(row, known[name], judge=judge)
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


def _judge(row: Row, change: Change | None, *, judge: bool) -> None:
    assert row.a is not None  # noqa: S101 (a change has two sides)
    assert row.b is not None  # noqa: S101
    share = row.figure in SHARES
    row.change_ratio = row.b - row.a if share else row.b / row.a - 1
    if change is None:
        row.note = _NO_NOISE
        return
    low, high = change.size - change.below, change.size + change.above
    if share and math.isfinite(low) and math.isfinite(high):
        low, high = max(low, -1.0), min(high, 1.0)
    row.low, row.high = (_ratio(value, share=share) for value in (low, high))
    row.smallest_ratio = _ratio(change.seen, share=share)
    if row.low is None and row.high is None:
        row.note = "too few requests to judge it"
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


def _apart(row: Row) -> bool:
    return (row.low or 0) > 0 or (row.high or 0) < 0


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
    _judge(row, change, judge=True)


# --- what to mind ---------------------------------------------------------------------------------


def _mark_definitions(pair: Pair, a: Side, b: Side) -> None:
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


def _few_rounds(parts: Sequence[Sequence[Part]], letters: tuple[str, str]) -> list[str]:
    for side, name in zip(parts, letters, strict=True):
        if _brief(side):
            rounds = min(part.rounds for part in side if part.rounds)
            many = f"{name}'s requests were only {rounds:.1f} rounds of those in flight"
            advice = "repeat both sides, or send more requests"
            return [f"{many}, which says little of the noise: {advice}"]
    return []


def _mark_unanswered(pair: Pair, letters: tuple[str, str]) -> None:
    """A figure that is missing because nothing came back is said to be so."""
    silent = [name for name, n in zip(letters, pair.requests, strict=True) if not n]
    if silent:
        for row in pair.rows:
            if row.a is None or row.b is None:
                row.note = f"nothing was answered on {' and '.join(silent)}"


def _mark_mixed_gaps(pair: Pair, parts: Sequence[Sequence[Part]]) -> None:
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


def _cautions(a: Loaded, b: Loaded) -> list[str]:
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


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What `--json` prints."""
    found: dict[str, Any] = msgspec.to_builtins(comparison)
    return {"schema": 1, **found}
