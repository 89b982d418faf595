"""MLPerf Inference v4.1: Llama-2-70B, offline, with TensorRT-LLM.

Source: its results. The data set is 24,576 requests of OpenOrca with at most 1024 tokens of prompt
and of answer; answers have 294.45 on average (mlcommons/inference, language/llama2-70b/README.md).
How submitters split the model is not in the table: two GPUs a replica on H100, four in a pipeline
on L40S, is what fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import Deployment
from servescope.validation.lengths import log_normal

SOURCES = ("MLPerf inference v4.1",)

MEAN_ANSWER, MOST = 294.45, 1024
MEAN_PROMPT = 155
"""No source: about half of the answers."""
REQUESTS_OF_A_REPLICA = 4000


def output_rate(gpu: str, gpus: int) -> float:
    """Output tokens a second of all GPUs."""
    on_nvlink = gpu != "l40s"
    size = 2 if on_nvlink else 4
    one = Deployment(
        engine="tensorrt-llm",
        model="llama-2-70b",
        gpu=gpu,
        tp=2 if on_nvlink else 1,
        pp=1 if on_nvlink else 4,
        weights="fp8",
        kv_dtype="fp8",
        utilization=0.95,
        of_rest=True,
        has_server=False,
    ).serve(
        log_normal(MEAN_PROMPT, REQUESTS_OF_A_REPLICA, MOST, stream=1),
        log_normal(MEAN_ANSWER, REQUESTS_OF_A_REPLICA, MOST, stream=2),
    )
    return gpus // size * one.output_rate


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for row in rows:
        found = re.search(r"(\d)x(\w+)", row.workload)
        if found is None:
            raise ValueError(f"no GPUs in {row.workload!r}")
        gpus, gpu = int(found[1]), found[2].lower()
        setup = Setup(
            engine="TensorRT-LLM", gpu=f"{gpus} x {found[2]}", model="llama2-70b",
            workload="offline",
        )  # fmt: skip
        yield Cell.of(row, setup, output_rate(gpu, gpus))
