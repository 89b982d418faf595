"""The figures as tables: stages side by side, latencies with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from servescope.analysis.evidence import Evidence
from servescope.metrics import from_due_differs
from servescope.records import COMPLETED
from servescope.report.content import Cell, Column, Estimate, Form, Section, Table
from servescope.report.labels import COUNTS, LATENCIES, SHOWN_IF_DIFFERENT, STATISTICS
from servescope.report.shown import names
from servescope.summary import StageSummary

PLACE = 120
_NEARLY = 0.95
_RATES = (
    ("requests_per_s", "requests/s"),
    ("output_tokens_per_s", "output tokens/s"),
    ("total_tokens_per_s", "input + output tokens/s"),
    ("peak_output_tokens_per_s", "peak output tokens/s"),
    ("goodput_requests_per_s", "goodput, requests/s"),
)


def section(evidence: Evidence) -> Section | None:
    """All figures that the other sections draw from."""
    named = list(zip(names(evidence), evidence.summary.stages, strict=True))
    if not named:
        return None
    tables = [_stages(named), _targets(named), *_latencies(named), *_counts(named)]
    slo: list[list[Cell]] = [
        [name, bound.bound, bound.value, "met" if bound.met else "missed"]
        for name, stage in named
        for bound in stage.slo
    ]
    if slo:
        columns = [
            Column(title="stage"),
            Column(title="bound"),
            Column(title="value", form="seconds"),
        ]
        tables.append(Table(title="SLO", columns=[*columns, Column(title="verdict")], rows=slo))
    return Section(
        name="figures",
        title="Figures",
        sentences=[
            f"No part of {name} could be judged steady: {stage.unsteady}."
            for name, stage in named
            if stage.unsteady
        ],
        tables=[t for t in tables if t.rows],
    )


def _stages(named: list[tuple[str, StageSummary]]) -> Table:
    rates = [(key, title) for key, title in _RATES if any(s.figures.get(key) for _, s in named)]
    asked = any(stage.asked_per_s for _, stage in named)
    rows: list[list[Cell]] = []
    for name, stage in named:
        rows.append(_row(name, stage, stage.figures, rates, asked=asked))
        if stage.steady is not None and _cut(stage):
            rows.append(_row(f"{name}, steady part", stage, stage.steady, rates, asked=asked))
    return Table(
        title="Stages",
        columns=[
            Column(title="stage"),
            Column(title="time", form="seconds"),
            Column(title="completed", form="count"),
            Column(title="others", form="count"),
            *[Column(title="asked/s", form="number")] * asked,
            *(Column(title=title, form="number") for _, title in rates),
            Column(title="in flight, mean", form="number"),
            Column(title="most", form="count"),
        ],
        rows=rows,
    )


def _targets(named: list[tuple[str, StageSummary]]) -> Table:
    """Each target's part, where there are several."""
    rows: list[list[Cell]] = []
    for name, stage in named:
        for part in stage.targets:
            found = msgspec.to_builtins(part.figures)
            ttft, e2e = found.get("ttft_s") or {}, found.get("e2e_s") or {}
            done = part.outcomes.get(COMPLETED, 0)
            rates = [found.get("requests_per_s"), found.get("output_tokens_per_s")]
            times = [ttft.get("p50"), ttft.get("p99"), e2e.get("p50")]
            others = sum(part.outcomes.values()) - done
            rows.append([part.target, name, done, others, *rates, *times])
    titles: list[tuple[str, Form]] = [
        *(("target", "text"), ("stage", "text"), ("completed", "count"), ("others", "count")),
        *(("requests/s", "number"), ("output tokens/s", "number")),
        *(("TTFT P50", "seconds"), ("TTFT P99", "seconds"), ("end-to-end P50", "seconds")),
    ]
    columns = [Column(title=title, form=form) for title, form in titles]
    return Table(title="Targets", columns=columns, rows=rows)


def _row(
    name: str,
    stage: StageSummary,
    figures: dict[str, Any],
    rates: list[tuple[str, str]],
    *,
    asked: bool,
) -> list[Cell]:
    window, flying = figures.get("window"), figures.get("concurrency") or {}
    whole = figures is stage.figures
    done = stage.outcomes.get(COMPLETED, 0)
    return [
        name,
        window["end_s"] - window["start_s"] if window else None,
        done if whole else None,
        sum(stage.outcomes.values()) - done if whole else None,
        *[stage.asked_per_s if whole else None] * asked,
        *(figures.get(key) for key, _ in rates),
        flying.get("mean"),
        flying.get("max"),
    ]


def _cut(stage: StageSummary) -> bool:
    """Whether the steady part is less than nearly all of the stage."""
    whole, part = stage.figures.get("window"), (stage.steady or {}).get("window")
    return bool(whole and part and _span_s(part) < _NEARLY * _span_s(whole))


def _span_s(window: dict[str, Any]) -> float:
    return float(window["end_s"] - window["start_s"])


def _latencies(named: list[tuple[str, StageSummary]]) -> list[Table]:
    differs = any(from_due_differs(stage.figures) for _, stage in named)
    reasoned = any(stage.figures.get("reasoning_tokens") for _, stage in named)
    hidden = {"ttfo_s"} if not reasoned else set()  # the first token is the first of the output
    hidden |= set() if differs else set(SHOWN_IF_DIFFERENT)
    kinds = [(key, label) for key, label in LATENCIES if key not in hidden]
    return _tables("Latencies, with 95 % intervals", named, kinds, "seconds")


def _counts(named: list[tuple[str, StageSummary]]) -> list[Table]:
    kinds = [(key, key.replace("_", " ")) for key, _ in COUNTS]
    return _tables("Tokens of a request, with 95 % intervals", named, kinds, "number")


def _tables(
    title: str,
    named: list[tuple[str, StageSummary]],
    kinds: Sequence[tuple[str, str]],
    form: Form,
) -> list[Table]:
    """Of one stage a table with a row a figure; of several a table a figure with a row a stage.

    Figures that are zero throughout are left out.
    """
    found: list[tuple[str, list[list[Cell]]]] = []
    for key, label in kinds:
        figures = [(name, msgspec.to_builtins(stage.figures.get(key))) for name, stage in named]
        there = [(name, figure) for name, figure in figures if figure is not None]
        if any(figure["max"] for _, figure in there):
            mark = " (estimated)" if any(figure.get("estimated") for _, figure in there) else ""
            rows = [_statistics(name, figure) for name, figure in there]
            found.append((label + mark, rows))
    if len(named) == 1:
        whole = [[label, *row[1:]] for label, (row,) in found]
        return [_table(title, "figure", whole, form)] if whole else []
    return [_table(f"{label[:1].upper()}{label[1:]}", "stage", rows, form) for label, rows in found]


def _statistics(name: str, figure: dict[str, Any]) -> list[Cell]:
    cells: list[Cell] = []
    for statistic in STATISTICS:
        low, high = (figure.get("ci95") or {}).get(statistic) or (None, None)
        cells.append(Estimate(figure[statistic], low, high))
    return [name, figure["n"], *cells]


def _table(title: str, first: str, rows: list[list[Cell]], form: Form) -> Table:
    columns = [
        Column(title=first),
        Column(title="n", form="count"),
        *(Column(title=s.upper() if s.startswith("p") else s, form=form) for s in STATISTICS),
    ]
    return Table(title=title, columns=columns, rows=rows)
