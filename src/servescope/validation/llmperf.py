"""LLMPerf (Emerging-AI): A100 against RTX 4090 with SGLang 0.3.0.

Source: its charts. The lengths of its tasks are not published, so no time of theirs can be
predicted; ratios can, with tasks assumed as their names say: a multiple-choice question is a prompt
and a few tokens, a text to be written a short prompt and a long answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import Deployment

SOURCES = ("LLMPerf (Emerging-AI)",)

REQUESTS = 500
LENGTHS = {"MC": (512, 16), "TKG": (128, 512)}
"""Tokens of a prompt and an answer. Assumed."""
UNKNOWN = "not predicted: token lengths are not published"
SHARED = "not predicted: two servers on one GPU"


def capacity(gpu: str, tp: int, task: str) -> float:
    """Output tokens a second when all come at once: what a saturated server does."""
    prompt, output = LENGTHS[task]
    served = Deployment(
        engine="sglang",
        model="qwen2-72b" if tp > 1 else "qwen2-7b",
        weights="int4" if tp > 1 else "fp16",
        gpu=gpu,
        tp=tp,
        utilization=0.88,
        has_server=False,
    ).serve(np.full(REQUESTS, prompt), np.full(REQUESTS, output))
    return served.output_rate


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
