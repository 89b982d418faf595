"""LLMPerf (Emerging-AI): A100 against RTX 4090 with SGLang 0.3.0.

Source: its charts, and the README of Emerging-AI/LLMPerf. The lengths of its tasks are not
published, so no time of theirs can be predicted; ratios can, with lengths assumed as the README
says: MC, multiple choice, has small prompts and answers, TKG, the extraction of a temporal
knowledge graph, large ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from servescope.engine.config import EngineConfig
from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import deployed, output_rate, serve

SOURCES = ("LLMPerf (Emerging-AI)",)

LENGTHS = {"MC": (100, 100), "TKG": (2000, 500)}
"""Tokens of a prompt and an answer. Assumed."""
USERS = 100
"""In flight: MC's published rates times its times are 37 to 140."""
REQUESTS = 1000
UNKNOWN = "not predicted: token lengths are not published"
SHARED = "not predicted: two servers on one GPU"


def capacity(gpu: str, tp: int, task: str) -> float:
    """Output tokens a second with so many requests in flight."""
    prompt, output = LENGTHS[task]
    config = EngineConfig(
        engine="sglang",
        model="qwen2-72b" if tp > 1 else "qwen2-7b",
        dtype="int4" if tp > 1 else "fp16",
        gpu=gpu,
        tp=tp,
    )
    # SGLang 0.3 scheduled between steps; 0.4 was the first to do so during them, for 1.1 times the
    # throughput (https://lmsys.org/blog/2024-12-04-sglang-v0-4/).
    made = deployed(config, has_server=False, overheads={"hidden": 0.0})
    served = serve(made, np.full(REQUESTS, prompt), np.full(REQUESTS, output), users=USERS)
    return output_rate(served)


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for row in rows:
        words = row.workload.replace("A100/4090 ", "").split()
        tp = int(row.tp or words[1].removeprefix("tp") if "tp" in row.workload else row.tp or 1)
        setup = Setup(
            engine=row.engine, gpu=row.hardware, model=row.model, tp=tp, workload=" ".join(words)
        )
        if row.metric != "ratio":
            yield Cell.of(row, setup, None, UNKNOWN)
        elif words[0] not in LENGTHS:
            yield Cell.of(row, setup, None, SHARED)
        else:
            of_a100, of_4090 = (capacity(gpu, tp, words[0]) for gpu in ("a100", "rtx-4090"))
            yield Cell.of(row, setup, of_a100 / of_4090, f"published: {row.value}")
