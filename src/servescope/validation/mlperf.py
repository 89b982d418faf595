"""MLPerf Inference v4.1: Llama-2-70B, offline, with TensorRT-LLM.

Source: its results. Tensor-parallel size, batch and share of the cache are the submitters' own
(mlcommons/inference_results_v4.1, closed/*/configs/llama2-70b/Offline/custom.py). The data set is
24,576 requests of OpenOrca with at most 1024 tokens of prompt and of answer; answers have 294.45 on
average (mlcommons/inference, language/llama2-70b/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from servescope.engine.config import EngineConfig
from servescope.engine.deployment import Deployment
from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import deployed, like, output_rate, serve
from servescope.validation.lengths import log_normal

SOURCES = ("MLPerf inference v4.1",)

MEAN_ANSWER, MOST = 294.45, 1024
MEAN_PROMPT = MEAN_ANSWER
"""No source: as long as the answers."""
REQUESTS_OF_A_REPLICA = 4000


class Submission(NamedTuple):
    """What a submitter ran."""

    gpu: str
    gpus: int
    tp: int
    batch: int
    cache: float
    """Of the memory that weights and activations leave."""


SUBMISSIONS = {
    "Dell": Submission("h100", 4, tp=2, batch=896, cache=0.90),
    "HPE": Submission("h100", 8, tp=2, batch=896, cache=0.95),
    "Fujitsu": Submission("l40s", 8, tp=4, batch=1024, cache=0.90),
}


def deployment(run: Submission) -> Deployment:
    """One replica of it."""
    config = EngineConfig(
        engine="tensorrt-llm",
        model="llama-2-70b",
        gpu=run.gpu,
        tp=run.tp,
        dtype="fp8",
        kv_dtype="fp8",
        memory_utilization=run.cache,
        max_num_seqs=run.batch,
    )
    return deployed(config, has_server=False)


def of_all_gpus(run: Submission) -> float:
    """Output tokens a second."""
    one = serve(
        deployment(run),
        log_normal(MEAN_PROMPT, REQUESTS_OF_A_REPLICA, MOST, stream=1),
        log_normal(MEAN_ANSWER, REQUESTS_OF_A_REPLICA, MOST, stream=2),
    )
    return run.gpus // run.tp * output_rate(one)


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for row in rows:
        run = SUBMISSIONS[row.model]
        setup = Setup(
            engine="TensorRT-LLM", gpu=f"{run.gpus} x {run.gpu.upper()}", model="llama2-70b",
            workload="offline",
        )  # fmt: skip
        yield Cell.of(row, setup, of_all_gpus(run), like=like(deployment(run)))
