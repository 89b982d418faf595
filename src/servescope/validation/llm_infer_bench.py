"""llm-infer-bench (2023): vLLM, TGI and LightLLM with Llama-2 on A800s; table and CDFs.

Source: L1aoXingyu/llm-infer-bench, `benchmark_llm_serving.py` and the scripts beside it. Its draws
are replayed: lengths and gaps come from its seed. A prompt's ids are drawn one by one from the
tokenizer's vocabulary before the lengths of answers are, so the vocabulary decides those. Runs of
LightLLM's latency name no tokenizer: OPT's is the default, in whose vocabulary 1.9 tokens of Llama
are one, and other answers are drawn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from servescope.engine.config import EngineConfig
from servescope.engine.deployment import Deployment
from servescope.engine.replay import Replayed
from servescope.validation.cells import Cell, Row, Setup, grouped
from servescope.validation.deployment import deployed, serve

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCES = ("llm-infer-bench", "llm-infer-bench CDF (digitised)")

SEED = 0xCADE
REQUESTS = 1000
MEAN_ANSWER, LEAST_ANSWER = 128, 10
LLAMA_IDS, OPT_IDS = 32_000, 50_265
LLAMA_TOKENS_OF_OPT = 1.9
BOS = 1
"""Each server puts it before the prompt; the client does not count it."""

ENGINES = {
    "TGI 1.0.2": "tgi-1.0",
    "vLLM 28873a2 (0.1.4+)": "vllm-0.1",
    "LightLLM 718e6d6": "lightllm-2023",
}


class Workload(NamedTuple):
    """Lengths as the client counts them, and when requests are sent."""

    prompts: NDArray[np.int64]
    outputs: NDArray[np.int64]
    arrivals_s: NDArray[np.float64]


@cache
def draw(
    shortest: int, longest: int, most: int, rate: float | None = None, ids: int = LLAMA_IDS
) -> Workload:
    """Prompts of so many tokens, answers of at most `most`, all at once or `rate` a second."""
    rng = random.Random(SEED)  # noqa: S311 (a workload)
    prompts = [rng.randint(shortest, longest) for _ in range(REQUESTS)]
    for _ in range(sum(prompts)):
        rng.randint(10, ids - 1)
    answers = np.random.RandomState(rng.randint(0, 10**6))
    outputs: list[int] = []
    while len(outputs) < REQUESTS:
        tokens = round(answers.exponential(MEAN_ANSWER))
        if tokens <= most:
            outputs.append(max(LEAST_ANSWER, tokens))
    arrivals = np.zeros(REQUESTS)
    if rate is not None:  # it sleeps after each request
        arrivals[1:] = np.cumsum(answers.exponential(1 / rate, REQUESTS))[:-1]
    return Workload(np.array(prompts), np.array(outputs), arrivals)


def workload(engine: str, text: str) -> Workload:
    """The workload that a row's text names, with prompts in tokens of Llama."""
    if text.startswith("burst"):
        return draw(512, 512, int(_number(r"<= (\d+)", text)))
    rate = _number(r"Poisson (\d+)/s", text)
    if engine != "lightllm-2023":
        return draw(128, 384, 512, rate)
    drawn = draw(128, 384, 512, rate, OPT_IDS)
    longer = np.round(LLAMA_TOKENS_OF_OPT * drawn.prompts).astype(int)
    return drawn._replace(prompts=longer)


def deployment(engine: str, model: str, tp: int) -> Deployment:
    """What served it, with every engine's limits as they are by default."""
    size = "70b" if "70b" in model else "13b"
    return deployed(
        EngineConfig(engine=engine, model=f"llama-2-{size}", gpu="a800-sxm-80gb", tp=tp)
    )


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for run in grouped(rows, "engine", "gpus", "source", "workload"):
        row = run[0]
        served, drawn = _run(ENGINES[row.engine], row.model.partition("-chat")[0], *_keys(row))
        setup = Setup(
            engine=row.engine,
            gpu="A800",
            model=row.model,
            tp=int(row.tp),
            workload=row.workload.partition(",")[0] + _cap(row),
        )
        for row in run:
            yield Cell.of(row, setup, _figure(row.metric, served, drawn))


def _keys(row: Row) -> tuple[int, str]:
    text = row.workload if row.workload.startswith("burst") else row.workload.partition(",")[0]
    return int(row.tp), text


@cache
def _run(engine: str, model: str, tp: int, text: str) -> tuple[Replayed, Workload]:
    drawn = workload(engine, text)
    made = deployment(engine, model, tp)
    return serve(made, drawn.prompts + BOS, drawn.outputs, arrivals_s=drawn.arrivals_s), drawn


def _figure(metric: str, served: Replayed, drawn: Workload) -> float:
    if metric.startswith("CDF"):
        return float(np.mean(served.e2e_s <= _number(r"<=([\d.]+)", metric)))
    if metric.startswith("throughput"):
        return float(drawn.prompts.sum() + drawn.outputs.sum()) / served.makespan_s
    if metric == "median e2e":
        return float(np.median(served.e2e_s))
    return float(np.median(served.e2e_s / drawn.outputs))


def _cap(row: Row) -> str:
    found = re.search(r"<= \d+", row.workload)
    return f", answers {found[0]}" if found else ""


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in {text!r}")
    return float(found[1])
