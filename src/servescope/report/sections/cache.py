"""Before and after: the same items with an empty and with a filled prefix cache."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from servescope.analysis.evidence import Evidence
from servescope.report.content import Cell, Column, Plot, Section, Table
from servescope.report.shown import Shown, stages, time_axis

PLACE = 100
_FIGURES = (
    ("ttft_s", "p50", "TTFT P50"),
    ("ttft_s", "p99", "TTFT P99"),
    ("itl_s", "p50", "ITL P50"),
    ("itl_s", "p99", "ITL P99"),
    ("e2e_s", "p50", "end-to-end P50"),
    ("e2e_s", "p99", "end-to-end P99"),
)


def section(evidence: Evidence) -> Section | None:
    """A plot and a table for each pair of passes."""
    found = stages(evidence)
    pairs = [
        (cold, warm)
        for cold, warm in pairwise(found)
        if cold.offered.cache == "cold" and warm.offered.cache == "warm"
    ]
    rows = [(k, cold, _figures(cold, warm)) for k, (cold, warm) in enumerate(pairs)]
    plots = [_plot(k, cold, figures, len(rows)) for k, cold, figures in rows if figures]
    tables = [_table(cold, figures) for _, cold, figures in rows if figures]
    if not plots:
        return None
    return Section(name="cache", title="Cold and warm cache", plots=plots, tables=tables)


def _figures(cold: Shown, warm: Shown) -> list[tuple[str, float, float]]:
    found = []
    for key, statistic, label in _FIGURES:
        sides = [msgspec.to_builtins(s.summary.figures.get(key)) for s in (cold, warm)]
        if all(sides):
            found.append((label, float(sides[0][statistic]), float(sides[1][statistic])))
    return found


def _plot(number: int, stage: Shown, figures: list[tuple[str, float, float]], several: int) -> Plot:
    labels = [label for label, *_ in figures]
    between: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for _, before, after in figures for x in (before, after, None)],
        "y": [y for label in labels for y in (label, label, None)],
        "line": {"colour": "muted", "width": 2},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    ends = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [figure[at] for figure in figures],
            "y": labels,
            "marker": {"colour": colour, "size": 11, "symbol": symbol},
            "hovertemplate": "%{y}: %{x:.3s}s<extra>%{fullData.name}</extra>",
        }
        for at, name, colour, symbol in ((1, "cold", "0", "circle"), (2, "warm", "1", "diamond"))
    ]
    return Plot(
        name=f"cache-{number}",
        title=f"{_load(stage)}: cold to warm",
        caption="The same requests twice: with the prefix cache emptied (circle), and again with "
        "what the first pass had left in it (diamond).",
        choice=_load(stage) if several > 1 else "",
        traces=[between, *ends],
        layout={
            "height": 90 + 42 * len(figures),
            "xaxis": time_axis(
                "", [np.array([value for _, *both in figures for value in both])], log=True
            ),
            "yaxis": {"autorange": "reversed", "type": "category"},
        },
        csv_header=["figure", "cold_s", "warm_s"],
        csv_rows=[list(figure) for figure in figures],
    )


def _table(stage: Shown, figures: list[tuple[str, float, float]]) -> Table:
    rows: list[list[Cell]] = [
        [label, before, after, after / before - 1 if before else None]
        for label, before, after in figures
    ]
    return Table(
        title=f"{_load(stage)}: what the cache is worth",
        columns=[
            Column(title="figure"),
            Column(title="cold", form="seconds"),
            Column(title="warm", form="seconds"),
            Column(title="change", form="change"),
        ],
        rows=rows,
    )


def _load(cold: Shown) -> str:
    """The load of both passes."""
    return cold.summary.load.removesuffix(", cold cache")
