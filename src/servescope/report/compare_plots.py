"""The plots of a comparison: each figure's change, and figures over the loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servescope.analysis.comparison import (
    SHARES,
    Comparison,
    Pair,
    Row,
    change,
    interval,
    letter,
)
from servescope.report import changes
from servescope.report.content import Plot, Section

_TONES = {"better": "good", "worse": "bad", "no difference shown": "muted"}
_SYMBOLS = {"better": "circle", "worse": "diamond", "no difference shown": "line-ns-open"}
_BEFORE_AFTER = (
    ("ttft_p50", "TTFT P50"),
    ("ttft_p99", "TTFT P99"),
    ("itl_p50", "ITL P50"),
    ("e2e_p99", "End-to-end P99"),
    ("output_tokens_per_s", "Output tokens/s"),
)
_ROW_PX = 26


def forest(k: int, name: str, pair: Pair, *, several: bool) -> Plot | None:
    """Each relative change with its interval around none."""
    rows = [
        r
        for r in changes.judged(pair)
        if r.change_ratio is not None and r.figure not in SHARES and r.verdict
    ]
    if not rows:
        return None
    frame = _frame(rows)
    beyond = frame[1] - frame[0]
    traces = []
    for verdict, tone in _TONES.items():
        chosen = [row for row in rows if row.verdict == verdict]
        if chosen:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": verdict,
                    "x": [100 * (row.change_ratio or 0.0) for row in chosen],
                    "y": [row.label for row in chosen],
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [_arm(row.change_ratio, row.high, beyond) for row in chosen],
                        "arrayminus": [_arm(row.low, row.change_ratio, beyond) for row in chosen],
                        "thickness": 2,
                        "width": 5,
                        "colour": tone,
                    },
                    "marker": {"colour": tone, "size": 9, "symbol": _SYMBOLS[verdict]},
                    "text": [f"{change(row)} ({interval(row) or 'no limit'})" for row in chosen],
                    "hovertemplate": "%{y}: %{text}<extra></extra>",
                }
            )
    traces += _arrows(rows, frame)
    return Plot(
        name=f"changes-{k + 1}",
        title=f"Change from A to {letter(pair.side)} at {name}",
        caption="A row a figure: the change, and the interval that it lies in with 95 % confidence "
        "for all figures at once. Where the interval holds 0, no difference is shown. One that "
        "leaves the frame is that wide; with an arrow there it has no limit on that side.",
        choice=name if several else "",
        traces=traces,
        layout={
            "height": 110 + _ROW_PX * len(rows),
            "xaxis": {
                "title": {"text": f"change from A to {letter(pair.side)}"},
                "ticksuffix": " %",
                "range": frame,
            },
            "yaxis": {
                "autorange": "reversed",
                "categoryorder": "array",
                "categoryarray": [row.label for row in rows],
                "dtick": 1,
            },
            "shapes": [
                {
                    "type": "line",
                    "x0": 0,
                    "x1": 0,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"colour": "muted", "width": 1},
                }
            ],
        },
        csv_header=["figure", "a", "b", "change_ratio", "low", "high", "verdict", "smallest_ratio"],
        csv_rows=[
            [r.figure, r.a, r.b, r.change_ratio, r.low, r.high, r.verdict, r.smallest_ratio]
            for r in changes.judged(pair)
        ],
    )


def _arrows(rows: Sequence[Row], frame: list[float]) -> list[dict[str, Any]]:
    """At the edge of the frame, where an interval has no limit."""
    left, right = frame
    traces = []
    for side, x, symbol in (("lower", left, "triangle-left"), ("upper", right, "triangle-right")):
        open_ = [row for row in rows if (row.low if side == "lower" else row.high) is None]
        if open_:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"no {side} limit",
                    "showlegend": False,
                    "cliponaxis": False,
                    "x": [x for _ in open_],
                    "y": [row.label for row in open_],
                    "marker": {
                        "colour": [_TONES[row.verdict or ""] for row in open_],
                        "size": 11,
                        "symbol": symbol,
                    },
                    "hovertemplate": f"%{{y}}: no {side} limit<extra></extra>",
                }
            )
    return traces


def _frame(rows: Sequence[Row]) -> list[float]:
    """The axis's range: all changes, and of the intervals what leaves them to be told apart."""
    changes = [row.change_ratio or 0.0 for row in rows]
    room = max(0.1, 2 * max(map(abs, changes)))
    ends = [end for row in rows for end in (row.low, row.high) if end is not None]
    low, high = max(min(ends, default=0.0), -room), min(max(ends, default=0.0), room)
    low, high = min(low, *changes, 0.0), max(high, *changes, 0.0)
    margin = 0.04 * (high - low)
    return [100 * (low - margin), 100 * (high + margin)]


def _arm(low: float | None, high: float | None, beyond: float) -> float:
    """Its length; where there is no limit it leaves the frame."""
    return beyond if low is None or high is None else 100 * (high - low)


def before_after(comparison: Comparison) -> Section | None:
    """Each figure over the loads, a line a side; nothing for a single load."""
    plots = []
    for figure, label in _BEFORE_AFTER:
        plot = _over_loads(comparison, figure, label)
        if plot is not None:
            plots.append(plot)
    return Section(name="loads", title="Before and after", plots=plots) if plots else None


def _over_loads(comparison: Comparison, figure: str, label: str) -> Plot | None:
    values: list[dict[str, float]] = [{} for _ in comparison.sides]
    for pair in comparison.pairs:
        row = pair.row(figure)
        if row is not None and row.a is not None and row.b is not None:
            values[0][pair.load] = row.a
            values[pair.side][pair.load] = row.b
    loads = list(values[0])
    if len(loads) < 2:
        return None
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{letter(k)}: {name}",
            "x": [load for load in loads if load in values[k]],
            "y": [values[k][load] for load in loads if load in values[k]],
            "line": {"colour": str(k), "width": 2, "dash": "dot" if k == 0 else "solid"},
            "marker": {"colour": str(k), "size": 8, "symbol": "circle" if k else "circle-open"},
        }
        for k, name in enumerate(changes.names(comparison))
    ]
    times = {"tickformat": "~s", "ticksuffix": "s"} if not figure.endswith("_per_s") else {}
    return Plot(
        name=f"loads-{figure.replace('_', '-')}",
        title=f"{label} by load",
        caption="A point a load that both sides have; dots join those of the baseline, A.",
        choice=label,
        traces=traces,
        layout={
            "xaxis": {"type": "category", "title": {"text": "load"}},
            "yaxis": {"title": {"text": label}, "rangemode": "tozero", **times},
        },
        csv_header=["load", *(letter(k) for k in range(len(values)))],
        csv_rows=[[load, *(each.get(load) for each in values)] for load in loads],
    )
