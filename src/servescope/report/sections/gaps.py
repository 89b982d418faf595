"""What lies between two tokens, and between two chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from servescope.analysis.evidence import Evidence
from servescope.report.content import Plot, Section
from servescope.report.curves import histogram, rounded
from servescope.report.shown import Shown, limit_lines, stages, time_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PLACE = 90
_BINS = 120
_RIDGE_PX = 48
_HIGH = 0.9
"""Of what lies between a stage's base and the next one's."""
_FIGURES = (
    (
        "itl_s",
        "ITL",
        "Inter-token latency",
        "Share of tokens by the time since the one before; a chunk's is spread over its tokens.",
    ),
    (
        "icl_s",
        "ICL",
        "Inter-chunk latency",
        "Share of chunks by the time since the chunk before: what a user's screen shows.",
    ),
)


def section(evidence: Evidence) -> Section | None:
    """Histograms with bins of equal ratio, since the tails are long."""
    plots = [plot for figure in _FIGURES if (plot := _plot(evidence, *figure)) is not None]
    return Section(name="gaps", title="Between tokens", plots=plots) if plots else None


def _plot(evidence: Evidence, figure: str, short: str, title: str, caption: str) -> Plot | None:
    kept = [(stage, *stage.values(figure)) for stage in stages(evidence)]
    kept = [(stage, values, weights) for stage, values, weights in kept if (values > 0).any()]
    if not kept:
        return None
    # Chunks that came out of one read have gaps of nothing: they go into the lowest bin.
    low = min(float(np.quantile(values[values > 0], 0.001)) for _, values, _ in kept)
    high = max(float(values.max()) for _, values, _ in kept)
    edges = np.geomspace(max(low, 1e-6), max(high, low * 1.5, 1.5e-6) * 1.0001, _BINS + 1)
    traces: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    several = len(kept) > 1
    for k, (stage, values, weights) in enumerate(kept):
        share = rounded(histogram(values, edges, weights))
        traces += _ridge(stage, edges, share, k if several else None)
        bins = zip(rounded(edges[:-1]), rounded(edges[1:]), share, strict=True)
        rows += [[stage.name, *row] for row in bins]
    return Plot(
        name=f"gaps-{figure.removesuffix('_s')}",
        title=title,
        caption=f"{caption} More than one hump means more than one cause, such as decode steps "
        "that had to wait for a prefill.",
        choice=short,
        traces=traces,
        layout={
            "xaxis": time_axis(title, [edges], log=True),
            "yaxis": _places([stage.name for stage, *_ in kept])
            if several
            else {"tickformat": ".1~%", "rangemode": "tozero", "title": {"text": "share"}},
            "height": max(420, 120 + _RIDGE_PX * len(kept)),
            "shapes": limit_lines(evidence, figure, axis="x", most=high),
        },
        csv_header=["stage", "from_s", "to_s", "share"],
        csv_rows=rows,
    )


def _ridge(
    stage: Shown, edges: Floats, share: list[float | None], place: int | None
) -> list[dict[str, Any]]:
    """A histogram as a line of steps; of several, each stands as high on a base of its own."""
    shares = [value or 0.0 for value in (*share, share[-1])]
    base, scale = (0.0, 1.0) if place is None else (float(place), _HIGH / (max(shares) or 1.0))
    x = rounded(edges)
    ground = {
        "type": "scatter",
        "mode": "lines",
        "x": [x[0], x[-1]],
        "y": [base, base],
        "line": {"colour": stage.colour, "width": 0.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    steps = {
        "type": "scatter",
        "mode": "lines",
        "name": stage.name,
        "x": x,
        "y": [round(base + value * scale, 5) for value in shares],
        "customdata": shares,
        "line": {"shape": "hv", "colour": stage.colour, "width": 1.5},
        "fill": "tonexty",
        "fillcolour": f"{stage.colour}@0.3",
        "showlegend": False,
        "hovertemplate": "%{customdata:.2%} at %{x:.3s}s",
    }
    return [ground, steps]


def _places(names: list[str]) -> dict[str, Any]:
    """The axis of several histograms one above the other."""
    return {"tickvals": list(range(len(names))), "ticktext": names, "zeroline": False}
