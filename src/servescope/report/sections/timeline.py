"""What client, engine and machine did, on one axis of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from servescope import token_times
from servescope.analysis.evidence import Evidence
from servescope.errors import shorten
from servescope.records import ABSENT, ANSWERED, CANCELLED, OUTCOMES
from servescope.report.content import Plot, Section
from servescope.report.curves import amounts, averaged, in_flight, round_step, rounded
from servescope.report.shown import names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servescope.telemetry import Series

    Floats = NDArray[np.float64]

PLACE = 70
_ROW_PX = 130
_GAP_PX = 30
_ABOVE_PX = 44
"""Room for what stands above the first row: its title, the names of the stages."""
_LEAST_LABELLED, _LEAST_UPRIGHT = 0.2, 0.03
"""Share of the width that each stage has where their names stand above them; else they stand
upright at its line, where it has at least the other."""
_MOST_LETTERS = 20
_GAUGES = (
    ("running_requests", 1, "running, engine", "1"),
    ("waiting_requests", 1, "waiting, engine", "2"),
    ("kv_use_ratio", 2, "KV cache", "3"),
    ("gpu_busy_ratio", 3, "GPU", "4"),
    ("gpu_power_w", 4, "GPU", "4"),
    ("cpu_busy_ratio", 5, "CPU", "6"),
)
"""What sources tell, the row that it belongs to, its name there and its colour."""
_ROWS = (
    ("output tokens/s", "~s"),
    ("requests in flight", "~s"),
    ("KV cache in use", ".0%"),
    ("GPU busy", ".0%"),
    ("GPU power, W", "~s"),
    ("CPU busy, all cores", ".0%"),
    ("failed requests/s", "~s"),
)


def section(evidence: Evidence) -> Section | None:
    """Stacked plots, those of them for which there are readings."""
    columns = evidence.columns.where(evidence.columns.stage >= 0)
    ended = token_times.ended_ns(columns)
    sent = columns.sent_ns != ABSENT
    if not sent.any() or ended.max() <= columns.sent_ns[sent].min():
        return None
    start_ns = min(columns.sent_ns[sent].min(), ended[ended != ABSENT].min())
    start_s, end_s = int(start_ns) / 1e9, int(ended.max()) / 1e9
    step = round_step(end_s - start_s)
    inner = np.arange(np.floor(start_s / step) + 1, np.ceil(end_s / step)) * step
    inside = (inner > start_s + step / 4) & (inner < end_s - step / 4)
    edges = np.concatenate(([start_s], inner[inside], [end_s]))
    lines = [*_of_client(evidence, edges), *_of_sources(evidence, edges)]
    plot = _plot(evidence, lines, (start_s, end_s), step)
    return Section(name="timeline", title="Over time", plots=[plot])


class _Line(NamedTuple):
    row: int
    name: str
    colour: str
    t_s: Floats
    value: Floats
    held: bool = False
    """Readings, each of which holds until the next: steps."""


def _of_client(evidence: Evidence, edges: Floats) -> Iterator[_Line]:
    columns = evidence.columns.where(evidence.columns.stage >= 0)
    answered = columns.answered()
    middle = (edges[1:] + edges[:-1]) / 2
    if len(answered) and not (answered.output_tokens == ABSENT).any():
        tokens = token_times.arriving_tokens(answered)
        yield _Line(0, "tokens/s, client", "0", middle, amounts(answered.chunk_ns, tokens, edges))
    sent = columns.sent_ns != ABSENT
    ended = token_times.ended_ns(columns)
    until = np.where(ended == ABSENT, round(float(edges[-1]) * 1e9), ended)
    flying = in_flight(columns.sent_ns[sent], until[sent], edges)
    yield _Line(1, "in flight, client", "0", middle, flying)
    fine = [OUTCOMES.index(name) for name in (*ANSWERED, CANCELLED)]
    for kind in np.setdiff1d(columns.outcome, fine).tolist():
        when = until[columns.outcome == kind]  # also of those that could not be sent
        rate = amounts(when, np.ones(len(when)), edges)
        yield _Line(6, OUTCOMES[kind], "failed", middle, rate)


def _of_sources(evidence: Evidence, edges: Floats) -> Iterator[_Line]:
    telemetry = evidence.telemetry
    generated = [series.rate() for series in telemetry.named("generated_tokens")]
    yield from _lines(generated, 0, "tokens/s, engine", "1", edges)
    for name, row, label, colour in _GAUGES:
        found = [series for series in telemetry.named(name) if "core" not in series.labels]
        yield from _lines(found, row, label, colour, edges, held=True)


def _lines(
    found: list[Series],
    row: int,
    label: str,
    colour: str,
    edges: Floats,
    *,
    held: bool = False,
) -> Iterator[_Line]:
    """The same quantity of each source that tells of it; named after it where there are several."""
    sources = {series.source for series in found}
    for series in found:
        gpu = series.labels.get("gpu")
        parts = [label if gpu is None else f"{label} {gpu}"]
        if len(sources) > 1:
            parts.append(series.source.removeprefix("prometheus:"))
        points = averaged(series.t_s, series.value, edges)
        yield _Line(row, ", ".join(parts), colour, *points, held=held)


def _plot(evidence: Evidence, lines: list[_Line], span: tuple[float, float], step: float) -> Plot:
    told = Counter(line.row for line in lines)
    rows = sorted(told)
    gap = _GAP_PX / (_ROW_PX * len(rows))
    tall = (1 + gap) / len(rows)
    layout: dict[str, Any] = {
        "height": _ROW_PX * len(rows) + 110,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "xaxis": {
            "range": span,
            "title": {"text": "seconds since the run began"},
            "anchor": "y" if len(rows) == 1 else f"y{len(rows)}",
            "ticksuffix": "s",
        },
        "annotations": [],
        "shapes": [],
        "legend": {"y": 1 + _ABOVE_PX / (_ROW_PX * len(rows))},
    }
    for k, row in enumerate(rows):
        title, form = _ROWS[row]
        top = 1 - k * tall
        axis = f"yaxis{k + 1}" if k else "yaxis"
        layout[axis] = {
            "domain": [max(top - tall + gap, 0), top],
            "rangemode": "tozero",
            "tickformat": form,
            "nticks": 4,
            **({"range": [0, 1.05]} if form == ".0%" else {}),
        }
        layout["annotations"].append(
            {
                "text": title,
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": top,
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 12, "colour": "muted"},
            }
        )
    _mark_stages(evidence, layout, span)
    return Plot(
        name="over-time",
        title="Throughput, requests and resources over time",
        caption=f"All rows share the axis of time; the client's are means over {step:g} s. Read "
        "downwards: what the machine did while the users waited.",
        traces=[_trace(rows, line, several=told[line.row] > 1) for line in lines],
        layout=layout,
        csv_header=["row", "series", "t_s", "value"],
        csv_rows=[
            [_ROWS[line.row][0], line.name, *point]
            for line in lines
            for point in zip(rounded(line.t_s), rounded(line.value), strict=True)
        ],
    )


def _trace(rows: list[int], line: _Line, several: bool) -> dict[str, Any]:
    k = rows.index(line.row)
    client = line.row == 0 and line.colour == "0"
    return {
        "type": "scatter",
        "mode": "lines",
        "name": line.name,
        "x": rounded(line.t_s),
        "y": rounded(line.value),
        "yaxis": f"y{k + 1}" if k else "y",
        "line": {"colour": line.colour, "width": 1.5, **({"shape": "hv"} if line.held else {})},
        "showlegend": several,
        **({"fill": "tozeroy", "fillcolour": f"{line.colour}@0.12"} if client else {}),
    }


def _mark_stages(evidence: Evidence, layout: dict[str, Any], span: tuple[float, float]) -> None:
    stages = evidence.summary.stages
    if len(stages) < 2:
        return
    wide = span[1] - span[0]
    windows = [w for stage in stages if (w := stage.figures.get("window"))]
    least = min((w["end_s"] - w["start_s"] for w in windows), default=0.0)
    place: dict[str, Any] = {"yshift": 18, "yanchor": "bottom"}
    if least < _LEAST_LABELLED * wide:
        place = {"textangle": -90, "yanchor": "top"}
    for name, stage in zip(names(evidence), stages, strict=True):
        window = stage.figures.get("window")
        if window is None:
            continue
        layout["shapes"].append(
            {
                "type": "line",
                "yref": "paper",
                "x0": window["start_s"],
                "x1": window["start_s"],
                "y0": 0,
                "y1": 1,
                "line": {"colour": "muted@0.6", "width": 1, "dash": "dot"},
            }
        )
        if window["end_s"] - window["start_s"] >= _LEAST_UPRIGHT * wide:
            layout["annotations"].append(
                {
                    "text": shorten(name, _MOST_LETTERS),
                    "x": window["start_s"],
                    "yref": "paper",
                    "y": 1,
                    "xanchor": "left",
                    "bgcolour": "paper@0.6",
                    **place,
                    "showarrow": False,
                    "font": {"size": 11, "colour": "muted"},
                }
            )
