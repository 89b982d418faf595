"""Latency CDFs by stage: TTFT, ITL, end-to-end."""

from __future__ import annotations

from typing import Any

from servescope.analysis.evidence import Evidence
from servescope.report.content import Plot, Section
from servescope.report.curves import cumulative, rounded
from servescope.report.shown import limit_lines, stages, time_axis

PLACE = 40
_FIGURES = (
    ("ttft_s", "TTFT", "Time to first token"),
    ("itl_s", "ITL", "Inter-token latency"),
    ("e2e_s", "End-to-end", "End-to-end latency"),
    ("tpot_s", "TPOT", "Time per output token"),
)


def section(evidence: Evidence) -> Section | None:
    """One plot for each latency that was measured; the reader chooses."""
    plots = [plot for figure in _FIGURES if (plot := _plot(evidence, *figure)) is not None]
    return Section(name="latency", title="Latency", plots=plots) if plots else None


def _plot(evidence: Evidence, figure: str, short: str, title: str) -> Plot | None:
    traces: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    seen = []
    for stage in stages(evidence):
        values, weights = stage.values(figure)
        if not len(values):
            continue
        x, y = cumulative(values, weights)
        seen.append(x)
        shown, share = rounded(x), rounded(y)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": stage.name,
                "x": shown,
                "y": share,
                "line": {"colour": stage.colour, "width": 2, "shape": "hv"},
                "hovertemplate": "%{y:.2%} within %{x:.3s}s",
            }
        )
        rows += [[stage.name, *point] for point in zip(shown, share, strict=True)]
    if not traces:
        return None
    return Plot(
        name=f"cdf-{figure.removesuffix('_s')}",
        title=f"{title} by stage",
        caption=f"Share of {'tokens' if figure == 'itl_s' else 'answers'} (vertical) whose "
        f"{title.lower()} was at most the time below (horizontal). Further left "
        "and steeper is better.",
        choice=short,
        traces=traces,
        layout={
            "xaxis": time_axis(title, seen),
            "yaxis": {
                "tickformat": ".0%",
                "range": [0, 1.02],
                "title": {"text": "share at or below"},
            },
            "shapes": limit_lines(evidence, figure, axis="x", most=max(float(x[-1]) for x in seen)),
        },
        csv_header=["stage", figure, "share_at_or_below"],
        csv_rows=rows,
    )
