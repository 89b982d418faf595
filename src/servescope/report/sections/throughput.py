"""Throughput against latency over the stages, with the SLO and the knee."""

from __future__ import annotations

from typing import Any

import msgspec

from servescope.analysis.evidence import Evidence
from servescope.report.content import Plot, Section
from servescope.report.shown import Shown, limit_lines, line, stages, time_axis

PLACE = 60
_FIGURES = (("ttft_s", "TTFT"), ("itl_s", "ITL"), ("e2e_s", "End-to-end"))
_STATISTICS = (("p50", "P50", "0", "circle"), ("p99", "P99", "1", "diamond"))


def section(evidence: Evidence) -> Section | None:
    """What latency each rate costs; nothing where there is but one stage."""
    measured = [s for s in stages(evidence) if s.summary.figures.get("requests_per_s")]
    if len(measured) < 2:
        return None
    measured.sort(key=lambda stage: float(stage.summary.figures["requests_per_s"]))
    plots = [p for figure in _FIGURES if (p := _plot(evidence, measured, *figure)) is not None]
    return Section(name="throughput", title="Throughput against latency", plots=plots)


def _plot(evidence: Evidence, measured: list[Shown], figure: str, label: str) -> Plot | None:
    kept = [stage for stage in measured if stage.summary.figures.get(figure)]
    if len(kept) < 2:
        return None
    rates = [float(stage.summary.figures["requests_per_s"]) for stage in kept]
    found = [msgspec.to_builtins(stage.summary.figures[figure]) for stage in kept]
    traces: list[dict[str, Any]] = []
    for statistic, name, colour, symbol in _STATISTICS:
        spans = [one["ci95"][statistic] or (one[statistic],) * 2 for one in found]
        values = [one[statistic] for one in found]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{label} {name}",
                "x": rates,
                "y": values,
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - v for v, (_, high) in zip(values, spans, strict=True)],
                    "arrayminus": [v - low for v, (low, _) in zip(values, spans, strict=True)],
                    "thickness": 1,
                    "width": 3,
                    "colour": f"{colour}@0.5",
                },
                "text": [stage.name for stage in kept],
                "line": {"colour": colour, "width": 2},
                "marker": {"symbol": symbol, "size": 8, "colour": colour},
                "hovertemplate": "%{text}<br>%{x:.3~g} requests/s, %{y:.3s}s<extra></extra>",
            }
        )
    return Plot(
        name=f"throughput-{figure.removesuffix('_s')}",
        title=f"{label} at the throughput reached",
        caption="A point a stage: the requests answered per second (horizontal) and the latency "
        "that came with them (vertical), bars are 95 % intervals. Where the curve turns upwards "
        "the server is saturated.",
        choice=label,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "requests/s reached"}, "rangemode": "tozero"},
            "yaxis": {**time_axis(label, [], log=False), "rangemode": "tozero"},
            "shapes": _lines(evidence, figure, most=max(one["p99"] for one in found)),
        },
        csv_header=["stage", "requests_per_s", "output_tokens_per_s"]
        + [f"{figure.removesuffix('_s')}_{statistic}_s" for statistic, *_ in _STATISTICS],
        csv_rows=[
            [stage.name, rate, stage.summary.figures.get("output_tokens_per_s")]
            + [one[statistic] for statistic, *_ in _STATISTICS]
            for stage, rate, one in zip(kept, rates, found, strict=True)
        ],
    )


def _lines(evidence: Evidence, figure: str, most: float) -> list[dict[str, Any]]:
    """The bounds, and the knee where the analysis saw one."""
    knees = [line("x", rate, "knee", "muted") for rate in _knees(evidence)]
    return [*limit_lines(evidence, figure, axis="y", most=most), *knees]


def _knees(evidence: Evidence) -> list[float]:
    """The throughput of the stages where a sweep has its knee."""
    summary = evidence.summary
    reached = {stage.number: stage.figures.get("requests_per_s") for stage in summary.stages}
    knees = [f.evidence for f in summary.findings if "knee_from" in f.evidence]
    found = (reached.get(int(float(proof["stage"] or 0))) for proof in knees)
    return [rate for rate in found if rate is not None]
