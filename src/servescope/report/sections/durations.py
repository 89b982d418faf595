"""Execution times of each stage side by side, as violins."""

from __future__ import annotations

import numpy as np

from servescope.analysis.evidence import Evidence
from servescope.errors import shorten
from servescope.report.content import Plot, Section
from servescope.report.curves import rounded, thinned
from servescope.report.shown import limit_lines, stages, time_axis

PLACE = 50
_MOST_NAMES, _MOST_LETTERS = 24, 24
"""Names below the axis, upright in a narrow window; of more stages every so many has one."""


def section(evidence: Evidence) -> Section | None:
    """The shape of the end-to-end latency at each rate."""
    kept = [(stage, stage.values("e2e_s")[0]) for stage in stages(evidence)]
    kept = [(stage, values) for stage, values in kept if len(values)]
    if not kept:
        return None
    named = kept[:: -(-len(kept) // _MOST_NAMES)]
    traces, rows = [], []
    for stage, values in kept:
        shown = rounded(thinned(np.sort(values)))
        rows += [[stage.name, value] for value in shown]
        traces.append(
            {
                "type": "violin",
                "name": stage.name,
                "x0": stage.name,
                "y": shown,
                "scalemode": "width",
                "spanmode": "hard",
                "points": False,
                "box": {"visible": True, "width": 0.12},
                "meanline": {"visible": False},
                "line": {"colour": stage.colour, "width": 1.5},
                "fillcolour": f"{stage.colour}@0.3",
                "hoverinfo": "y+name",
                "showlegend": False,
            }
        )
    plot = Plot(
        name="violins",
        title="Execution time by stage",
        caption="How the end-to-end latency of the answers of each stage is spread: wide where "
        "many are; the box holds the middle half, its line is the median. Two bulges are two kinds "
        "of requests, or two states of the server.",
        traces=traces,
        layout={
            "xaxis": {
                "type": "category",
                "tickvals": [stage.name for stage, _ in named],
                "ticktext": [shorten(stage.name, _MOST_LETTERS) for stage, _ in named],
            },
            "yaxis": {
                **time_axis("end-to-end latency", [values for _, values in kept]),
                "rangemode": "tozero",
            },
            "shapes": limit_lines(
                evidence, "e2e_s", axis="y", most=max(float(v.max()) for _, v in kept)
            ),
        },
        csv_header=["stage", "e2e_s"],
        csv_rows=rows,
    )
    return Section(name="durations", title="Execution times", plots=[plot])
