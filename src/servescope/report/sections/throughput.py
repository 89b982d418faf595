"""Throughput against latency over the stages, with the SLO and the knee."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from servescope.analysis.evidence import Evidence
from servescope.report.content import Plot, Section
from servescope.report.shown import Shown, limit_lines, line, stages, time_axis

PLACE = 60
_FIGURES = (("ttft_s", "TTFT"), ("itl_s", "ITL"), ("e2e_s", "End-to-end"))
_STATISTICS = (("p50", "P50", "0", "circle"), ("p99", "P99", "1", "diamond"))
_DASHES = ("solid", "dash", "dot", "dashdot")
"""Of one curve and the next."""


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
    traces = _traces(kept, figure, label)
    seen = np.array([one[statistic] for one in found for statistic, *_ in _STATISTICS])
    return Plot(
        name=f"throughput-{figure.removesuffix('_s')}",
        title=f"{label} at the throughput reached",
        caption="A point a stage: the requests answered per second (horizontal) and the latency "
        "that came with them (vertical), bars are 95 % intervals. Stages of one kind are joined. "
        "Where a curve turns upwards the server is saturated.",
        choice=label,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "requests/s reached"}, "rangemode": "tozero"},
            "yaxis": {**time_axis(label, [seen]), "rangemode": "tozero"},
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


def _traces(kept: list[Shown], figure: str, label: str) -> list[dict[str, Any]]:
    """A curve for the stages of each kind; one that is alone in its kind is a point with its name.

    What one user, or very many, came to is on no curve of rates, and a warm cache on no cold one's.
    """
    kinds: dict[tuple[str, str | None], list[Shown]] = {}
    for stage in kept:
        load = stage.summary.load.partition(":")[0]
        kinds.setdefault((load, stage.offered.cache), []).append(stage)
    curves = sorted(kinds.items(), key=lambda pair: len(pair[1]) < 2)
    joined = [kind for kind, of_kind in curves if len(of_kind) > 1]
    differs = [len(set(words)) > 1 for words in zip(*joined, strict=True)]
    middle = max(float(stage.summary.figures["requests_per_s"]) for stage in kept) / 2
    traces = []
    for k, (kind, of_kind) in enumerate(curves):
        told = [word for word, needed in zip(kind, differs, strict=False) if needed and word]
        said = "".join(f", {word}" for word in told)
        for statistic, name, colour, symbol in _STATISTICS:
            trace = _trace(of_kind, figure, statistic, colour)
            trace["name"] = f"{label} {name}{said}"
            trace["showlegend"] = k < max(len(joined), 1)
            if len(of_kind) == 1 and statistic == "p99":
                trace["mode"] = "markers+text"
                side = "left" if trace["x"][0] > middle else "right"
                trace["textposition"] = f"middle {side}"
            trace["line"]["dash"] = _DASHES[k % len(_DASHES)]
            trace["marker"]["symbol"] = symbol
            traces.append(trace)
    return traces


def _trace(stages: list[Shown], figure: str, statistic: str, colour: str) -> dict[str, Any]:
    found = [msgspec.to_builtins(stage.summary.figures[figure]) for stage in stages]
    spans = [one["ci95"][statistic] or (one[statistic],) * 2 for one in found]
    values = [one[statistic] for one in found]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(stages) > 1 else "markers",
        "x": [float(stage.summary.figures["requests_per_s"]) for stage in stages],
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
        "text": [stage.name for stage in stages],
        "textfont": {"colour": "muted", "size": 11},
        "line": {"colour": colour, "width": 2},
        "marker": {"size": 8, "colour": colour},
        "hovertemplate": "%{text}<br>%{x:.3~g} requests/s, %{y:.3s}s<extra></extra>",
    }


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
