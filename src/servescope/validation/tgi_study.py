"""A study of TGI with InternLM-20B on V100, A100 and A40 (November 2023).

Source: its charts and tables. 250 requests of ShareGPT from 10, 50 or 100 users, to TGI with
kernels of LightLLM and a clock around every operator. These clocks run on the host, which launches
kernels one by one and is what everything waits for: decode takes 45 to 58 ms on every GPU and size.
So shares of operators are those of launches; of all-reduces, what they come to in a run tests the
number of steps alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from servescope import catalog
from servescope.engine.config import EngineConfig
from servescope.engine.costs import kv_tokens
from servescope.engine.deployment import Deployment
from servescope.engine.replay import Replayed
from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import deployed, like, serve
from servescope.validation.lengths import log_normal

SOURCES = ("TGI dynamic performance study (InternLM-20B)",)

MODEL = "internlm-20b"
GPUS = {
    "V100-32G": "v100-32gb",
    "A100-40G": "a100-sxm-40gb",
    "A100": "a100-sxm-40gb",
    "A100 (40G per chart)": "a100-sxm-40gb",
    "A40-48G": "a40",
    "A40": "a40",
}
LAYER_S = 0.75e-3
"""Launching a layer, clocks included: decode's 45 ms over 60 layers."""
REQUESTS = 250
MEAN_PROMPT = 161
"""Of ShareGPT, as the paper of vLLM has it (Kwon et al., SOSP 2023)."""
MEAN_ANSWER = 110
"""No source. From one cell, all-reduces in decode on two A100 with 10 users: their time over that
of a step gives the steps, and ten users' tokens are these."""
MOST_ANSWER = 1024
"""What each asks for, and TGI sets aside. No source: with less, two GPUs would not have needed more
steps than four."""
ALL_REDUCE_SHARE = {"prefill": 0.21, "decode": 0.20}
"""Of the launches, from the study's table of shares."""
HOST_TIMED = "not predicted: timed on the host, so it counts launches"


def deployment(gpu: str, tp: int) -> Deployment:
    """TGI as it was instrumented: no clock but its layers' launches, and LightLLM's attention."""
    software = {
        "layer_s": LAYER_S,
        "tp_step_s": 0.0,
        "tp_sequence_s": 0.0,
        "decode_attention": catalog.engine("lightllm-2023").decode_attention,
    }
    config = EngineConfig(engine="tgi-1.0", model=MODEL, gpu=GPUS[gpu], tp=tp, max_model_len=2048)
    return deployed(config, overheads=software)


@cache
def run(gpu: str, tp: int, users: int) -> Replayed:
    """One run."""
    prompts = log_normal(MEAN_PROMPT, REQUESTS, 1024, stream=1)
    outputs = log_normal(MEAN_ANSWER, REQUESTS, 512, stream=2)
    asked = [MOST_ANSWER] * REQUESTS
    return serve(deployment(gpu, tp), prompts, outputs, users=users, most_tokens=asked)


def theoretical_batch(gpu: str, tp: int, context_tokens: int) -> int:
    """Contexts that fit beside the weights into the memory as it is sold, and nothing else."""
    memory = catalog.gpu(GPUS[gpu]).memory_gb * 1e9
    return kv_tokens(catalog.model(MODEL), memory, utilization=1.0, tp=tp) // context_tokens


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for row in rows:
        tp = int(row.tp)
        users = re.search(r"(\d+) users", row.workload)
        setup = Setup(
            engine="TGI", gpu=row.hardware.split()[0], model=row.model, tp=tp,
            workload=f"{users[1]} users" if users else row.workload,
        )  # fmt: skip
        near = like(deployment(row.hardware, tp))
        if row.metric == "theoretical max batch":
            yield Cell.of(row, setup, theoretical_batch(row.hardware, tp, 2048), like=near)
        elif "share" in row.metric:
            yield Cell.of(row, setup, None, HOST_TIMED)
        else:
            served = run(row.hardware, tp, int(users[1]) if users else 50)
            yield Cell.of(row, setup, _figure(row.metric, served), like=near)


def _figure(metric: str, served: Replayed) -> float:
    if metric == "mean batch":
        return float(served.tokens.sum() - len(served.tokens)) / (
            served.totals.steps - served.prompt_steps
        )
    phase = "prefill" if "prefill" in metric else "decode"
    seconds = served.prompt_s if phase == "prefill" else served.decode_s
    steps = served.prompt_steps if phase == "prefill" else served.totals.steps - served.prompt_steps
    if metric.startswith("all_reduce"):
        return ALL_REDUCE_SHARE[phase] * LAYER_S * catalog.model(MODEL).layers * steps
    return 1e3 * seconds / max(steps, 1)
