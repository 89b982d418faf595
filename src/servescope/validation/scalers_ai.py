"""Scalers AI: Llama-2-70B on four A100s with vLLM 0.2.6 behind Ray Serve, on one node and on two.

Source: its table of Locust runs. A closed loop; prompts of 14 to 40 tokens; answers of at most 256,
of which some stop early: tokens over requests are 222 to 254. P95 token latency is P95 / 256.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from servescope import catalog
from servescope.engine.config import EngineConfig
from servescope.engine.deployment import Deployment
from servescope.engine.replay import Replayed
from servescope.validation.cells import Cell, Row, Setup, grouped
from servescope.validation.deployment import deployed, output_rate, serve
from servescope.validation.lengths import SEED, often_cut

SOURCES = ("Scalers AI distributed inference",)

MODEL, TP = "llama-2-70b", 4
MOST_ANSWER, MEAN_ANSWER = 256, 230
REQUESTS_OF_A_USER = 12
NO_MEAN = "not predicted: an average over a whole run, pauses and start included"


def deployment(nodes: int, batch: int) -> Deployment:
    """Its engine: `max_num_seqs` is the batch."""
    config = EngineConfig(
        engine="vllm-0.2",
        model=MODEL,
        gpu="a100-sxm-80gb",
        tp=TP,
        nodes=nodes,
        max_num_seqs=batch,
    )
    return deployed(config)


def run(nodes: int, users: int) -> Replayed:
    """What its Locust users saw."""
    count = users * REQUESTS_OF_A_USER
    prompts = np.random.default_rng(SEED).integers(14, 41, count)
    outputs = often_cut(MEAN_ANSWER, MOST_ANSWER, count)
    return serve(deployment(nodes, users), prompts, outputs, users=users)


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for own in grouped(rows, "hardware", "workload"):
        row = own[0]
        apart = "2+2" in row.hardware
        users = re.search(r"(\d+) users", row.workload)
        setup = Setup(
            engine="vLLM 0.2.6",
            gpu="A100, 2 + 2 over a network" if apart else "A100",
            model=row.model,
            tp=TP,
            workload=f"{users[1]} users" if users else row.workload,
        )
        served = run(2 if apart else 1, int(users[1])) if users else None
        for row in own:
            if served is None:
                yield Cell.of(
                    row, setup, _alone(row.metric), NO_MEAN if "util" in row.metric else ""
                )
            else:
                yield Cell.of(row, setup, _figure(row.metric, served))


def _figure(metric: str, served: Replayed) -> float:
    steady = served.makespan_s
    found = {
        "RPS": len(served.tokens) / steady,
        "output tokens/s": output_rate(served),
        "P95 token latency (= P95/256)": 1e3 * float(np.percentile(served.e2e_s, 95)) / MOST_ANSWER,
    }
    if metric in found:
        return found[metric]
    return float(np.percentile(served.e2e_s, float(metric.partition(" ")[0].removeprefix("P"))))


def _alone(metric: str) -> float | None:
    """What is measured beside the requests: bits between the nodes, a second and direction."""
    if not metric.startswith("network"):
        return None
    users, shape = 32, catalog.model(MODEL)
    served = run(2, users)
    ring = 2 * (TP - 1) / TP * users * shape.hidden * 2
    step_s = served.decode_s / max(1, served.totals.steps - served.prompt_steps)
    return 2 * shape.layers * ring * 8 / step_s / 1e9
