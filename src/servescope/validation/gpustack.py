"""GPUStack's performance lab: Qwen3-14B on one A100, 1000 requests at once and the like.

Source: gpustack/gpustack, docs/performance-lab/qwen3-14b/a100.md: vLLM 0.11.0, SGLang 0.5.5 and
TensorRT-LLM 1.2.0rc1 at their defaults under `vllm bench serve`. Of ShareGPT's lengths the means
alone are known. In the table some rows bear the name above them: those of section 3 are
TensorRT-LLM's, and of the other cases the first four are vLLM's, the last four TensorRT-LLM's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from servescope.engine.config import EngineConfig
from servescope.engine.deployment import Deployment
from servescope.engine.replay import Replayed
from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import deployed, like, output_rate, serve, tpot_s
from servescope.validation.gaps import inter_token_times
from servescope.validation.lengths import log_normal

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCES = ("GPUStack performance lab",)

TEMPLATE_S = 10.2e-3
"""What vLLM 0.11.0's chat endpoint takes longer than that for completions: it parses the model's
chat template anew for each request (`resolve_chat_template_kwargs`; a later release remembers it).
CPU time of its API server on an EPYC 9005 with Qwen3's template: 11.6 ms a request, and 1.4."""

MOST_PROMPT, MOST_ANSWER = 1024, 1024
"""`vllm bench` leaves out longer prompts of ShareGPT; prompt and answer come to 2048 at most."""


def deployment(engine: str, weights: str, max_num_batched_tokens: int | None) -> Deployment:
    """A server at its defaults."""
    config = EngineConfig(
        engine=engine,
        model="qwen3-14b",
        gpu="a100-sxm-80gb",
        dtype=weights,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=40_960,
    )
    if engine != "vllm":
        return deployed(config)
    # vLLM 0.11 did not yet schedule a step while the one before ran.
    made = deployed(config, overheads={"hidden": 0.0})
    made.front_end = made.front_end._replace(intake_s=TEMPLATE_S)
    return made


def lengths(count: int, prompt: float, output: float) -> tuple[NDArray[np.int64], ...]:
    """Prompts and answers with these means: all alike where they are round, else ShareGPT's."""
    if _is_sharegpt(count, prompt):
        return (
            log_normal(prompt, count, MOST_PROMPT, stream=1),
            log_normal(output, count, MOST_ANSWER, stream=2),
        )
    return np.full(count, round(prompt)), np.full(count, round(output))


def _is_sharegpt(count: int, prompt: float) -> bool:
    return count == 1000 and prompt > 200


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    others = 0
    for run in _runs(rows):
        row = run[0]
        count, prompt, output = (_number(name, row.workload) for name in ("n", "in", "out"))
        engine, weights, most, shown = _engine(row, others)
        others += _section(row).startswith("Other")
        drawn = lengths(int(count), prompt / count, output / count)
        made = deployment(engine, weights, most)
        served, gaps_s = serve(made, *drawn), inter_token_times(made, *drawn)
        shape = f"{count:.0f} x {prompt / count:.0f}/{output / count:.0f}"
        if _is_sharegpt(int(count), prompt / count):
            shape = f"{count:.0f} of ShareGPT"
        setup = Setup(engine=shown, gpu="A100", model=row.model, workload=shape)
        for row in run:
            yield Cell.of(row, setup, _figure(row.metric, served, gaps_s), like=like(made))


def _runs(rows: list[Row]) -> list[list[Row]]:
    """Each run's figures, the duration first."""
    runs: list[list[Row]] = []
    for row in rows:
        if row.metric.startswith("Benchmark"):
            runs.append([])
        runs[-1].append(row)
    return runs


def _section(row: Row) -> str:
    return row.workload.split(" | ")[1]


def _engine(row: Row, others: int) -> tuple[str, str, int | None, str]:
    """Policy, weights, budget of tokens and name; `others` of the other cases came before."""
    section = _section(row)
    if section.startswith("Other"):
        name = "vLLM" if others < 4 else "TensorRT-LLM"
        return name.lower(), "fp16", None, name
    if section.startswith("3"):
        most = 16_384 if "out=201631" in row.workload else 32_768
        return "tensorrt-llm", "fp16", most, f"TensorRT-LLM ({most} tokens)"
    name, _, narrow = row.engine.partition(" ")
    return name.lower(), {"": "fp16", "FP8": "fp8", "AWQ": "int4"}[narrow], None, row.engine


def _figure(metric: str, served: Replayed, gaps_s: NDArray[np.float64]) -> float:
    if metric.startswith("Benchmark"):
        return served.makespan_s
    if metric.startswith("Request"):
        return len(served.tokens) / served.makespan_s
    if metric.startswith("Output"):
        return output_rate(served)
    statistic, what, *_ = metric.split()
    # Inter-token times are those of all answers together: one counts as often as it has some.
    values = 1e3 * {"TTFT": served.ttft_s, "TPOT": tpot_s(served), "ITL": gaps_s}[what]
    if statistic == "Mean":
        return float(values.mean())
    return float(np.percentile(values, 50 if statistic == "Median" else 99))


def _number(name: str, text: str) -> float:
    found = re.search(rf"\b{name}=([\d.]+)", text)
    if found is None:
        raise ValueError(f"no {name}= in {text!r}")
    return float(found[1])
