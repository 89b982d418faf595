"""Published measurements, each beside what is predicted for it.

A file a source: how its workload is rebuilt, what it ran on, and which figure stands against which.
Nothing is tuned to a cell; constants live in the catalogue, each with what it was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable

from servescope.validation import (
    gpustack,
    llm_infer_bench,
    llmperf,
    mlperf,
    scalers_ai,
    tensorrt_llm,
    tgi_study,
    vllm_traces,
)
from servescope.validation.cells import Cell, Row, Setup, published
from servescope.validation.statistics import Errors, Order, errors, orders

__all__ = ["Cell", "Errors", "Order", "Row", "Setup", "errors", "orders", "published", "run"]

_TABLES = (llm_infer_bench, tensorrt_llm, gpustack, scalers_ai, tgi_study, llmperf, mlperf)


def run(sources: Iterable[str] | None = None, traces: str | None = None) -> list[Cell]:
    """Every published figure with its prediction, or those of some sources alone.

    Traces are read from the folder `traces`, or that of the environment; without one they are left
    out.
    """
    wanted = None if sources is None else set(sources)
    cells: list[Cell] = []
    for table in _TABLES:
        names = [name for name in table.SOURCES if wanted is None or name in wanted]
        found = list(table.predict([row for row in published() if row.source in names]))
        cells += [cell for name in names for cell in found if cell.source == name]
    told = (vllm_traces.NOTHING_FITTED, vllm_traces.ONE_CONSTANT)
    names = [name for name in told if wanted is None or name in wanted]
    found = list(vllm_traces.predict(traces)) if names else []
    return cells + [cell for name in names for cell in found if cell.source == name]
