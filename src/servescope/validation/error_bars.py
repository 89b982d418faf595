"""The error bars of `servescope plan`, from sources that no engine was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from servescope.plan.error_bars import NODES, PIPELINE, UNMEASURED
from servescope.validation.cells import Cell

FEWEST = 5
"""Of fewer figures, their errors say nothing about those to come."""
METRICS = ("throughput", "latency", "kv_tokens")
WIDEST = (UNMEASURED, NODES, PIPELINE)
"""Classes of which too little was measured: they have the widest error bars of all."""

HEADER = """\
# How far predictions of this kind were from measurements, made by `make validate`: the median and
# the ninetieth percentile of the larger of predicted over measured and measured over predicted,
# less 1, by the nearest class of deployment and by metric. Sources that an engine's constants were
# fitted to are left out; of others, single figures were used (docs/accuracy.md says which).
#
# Mechanisms were chosen with most of these figures in view, so others will be further off. Hence
# the wider of two: what is found here, and what a study before this project could promise. That has
# no P90 for pcie, tp8, narrow and moe: 2.5 times the median there, as of dense models. Of fewer
# than five figures, the study's stand. Where next to nothing was measured (of a GPU's
# architecture, of several nodes, of pipeline stages), the widest of all these.
"""


class Promise(NamedTuple):
    """What the study before this project says of a class: median and P90 by metric."""

    words: str
    throughput: tuple[float, float] = (0.20, 0.50)
    latency: tuple[float, float] = (0.20, 0.50)
    kv_tokens: tuple[float, float] = (0.03, 0.10)


STUDY = {
    "dense": Promise(
        "dense 16-bit model, one GPU or up to four on NVLink", (0.10, 0.25), (0.15, 0.35)
    ),
    "pcie": Promise("tensor parallel over PCIe"),
    "tp8": Promise("more than four GPUs a replica"),
    "narrow": Promise("weights of 8 bits or fewer"),
    "moe": Promise("mixture of experts", kv_tokens=(0.05, 0.15)),
    UNMEASURED: Promise("next to no measurement of this GPU's architecture"),
    NODES: Promise("several nodes, of which the one published run decided the network's constants"),
    PIPELINE: Promise("pipeline stages, of which no measurement is published"),
    "calibrated": Promise("calibrated on this server", (0.03, 0.20), (0.03, 0.20), (0.01, 0.03)),
}


def path() -> Path:
    """Where they are kept."""
    return Path(str(resources.files("servescope.plan") / "error_bars.toml"))


def rows(cells: Sequence[Cell]) -> dict[str, str]:
    """By class, its row of the file. One needs traces: without them it is the study's alone."""
    return {like: "\n".join(_row(like, cells)) for like in STUDY}


def write(cells: Sequence[Cell]) -> None:
    """Bring the file up to date; without traces, all of it but what comes from them."""
    found = rows(cells)
    if not any(cell.like == "calibrated" for cell in cells):
        kept = path().read_text("utf-8").split("\n\n")
        found["calibrated"] = kept[-1].rstrip("\n")
    path().write_text("\n\n".join([HEADER.rstrip("\n"), *found.values()]) + "\n", "utf-8")


def _row(like: str, cells: Sequence[Cell]) -> Iterator[str]:
    bars = {metric: _bar(like, metric, cells) for metric in METRICS}
    if like in WIDEST:
        others = [other for other in STUDY if other != "calibrated"]
        for metric in METRICS:
            bars[metric] = _Bar.widest([_bar(other, metric, cells) for other in others])
    yield "[[error]]"
    yield f'like = "{like}"'
    for metric, bar in bars.items():
        yield f"{metric} = [{bar.p50:.2f}, {bar.p90:.2f}]  # {bar.told}"
    counts = [f"{bar.figures} published figures of {m}" for m, bar in bars.items() if bar.figures]
    source = f"from {' and '.join(counts)}; a study's where wider" if counts else "from a study"
    source = "so the widest of all classes" if like in WIDEST else source
    yield f'source = "{STUDY[like].words}, {source}"'


class _Bar(NamedTuple):
    p50: float
    p90: float
    told: str = "study"
    figures: int = 0

    @classmethod
    def widest(cls, bars: Sequence[_Bar]) -> _Bar:
        p50, p90 = max(bar.p50 for bar in bars), max(bar.p90 for bar in bars)
        return cls(p50, p90, told="the widest of all classes")


def _bar(like: str, metric: str, cells: Sequence[Cell]) -> _Bar:
    """The wider of the study's and of what is found of a class."""
    p50, p90 = promised = getattr(STUDY[like], metric)
    own = [cell for cell in cells if cell.like == like and _metric(cell) == metric]
    ratios = np.array([_off(cell) for cell in own])
    if len(ratios) < FEWEST:
        return _Bar(p50, p90)
    found = float(np.median(ratios)), float(np.percentile(ratios, 90))
    told = f"{len(ratios)} figures: {found[0]:.2f}, {found[1]:.2f}; study: "
    told += ", ".join(f"{value:.2f}" for value in promised)
    return _Bar(max(p50, found[0]), max(p90, found[1]), told, len(ratios))


def _metric(cell: Cell) -> str | None:
    """What its error is one of, if any."""
    if cell.metric == "theoretical max batch":
        return "kv_tokens"
    if cell.is_share or "all_reduce" in cell.metric or "duration" in cell.metric:
        return None  # operators of a run; the same once more, as of throughput
    if "/s" in cell.metric or "/s" in cell.unit:
        return "throughput"
    return "latency" if cell.unit in ("s", "ms") or "ms" in cell.metric else None


def _off(cell: Cell) -> float:
    """As error bars are laid around a prediction: half as much is as far off as twice."""
    assert cell.predicted is not None  # noqa: S101 (a class has none without)
    return max(cell.predicted / cell.published, cell.published / cell.predicted) - 1
