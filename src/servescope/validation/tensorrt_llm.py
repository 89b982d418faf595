"""TensorRT-LLM's own tables: static batches and first tokens (v0.6.1), in-flight batching (v0.1x).

Sources: NVIDIA/TensorRT-LLM, docs/source/performance.md of v0.6.1 and perf-overview.md, which says
how many requests each pair of lengths was measured with, that the cache takes 95 % of what is left,
that contexts are chunked, and that nothing is evicted. FP8 engines have an FP8 cache. Requests were
made by a benchmark in C++ beside the engine.
"""

from __future__ import annotations

from collections.abc import Iterator

from servescope.engine.config import EngineConfig
from servescope.engine.deployment import Deployment
from servescope.validation.cells import Cell, Row, Setup
from servescope.validation.deployment import deployed, like, output_rate, serve

STATIC, IN_FLIGHT = "TensorRT-LLM docs, static", "TensorRT-LLM docs, in-flight batching"
FIRST_TOKEN = "TensorRT-LLM docs, first token"  # noqa: S105 (no secret)
SOURCES = (STATIC, IN_FLIGHT, FIRST_TOKEN)

GPUS = {
    "H100-SXM": "h100-sxm-80gb",
    "H200-SXM": "h200-sxm-141gb",
    "A100-80G": "a100-sxm-80gb",
    "L40S": "l40s",
}
MODELS = {"gptj-6b": "gpt-j-6b", "llama-7b": "llama-2-7b", "llama3-8b": "llama-3.1-8b"}
REQUESTS = {"128/128": 30_000, "128/2048": 3000, "500/2000": 3000, "1000/1000": 3000,
            "2048/128": 3000, "20000/2000": 1000}  # fmt: skip
"""The other pairs of lengths: 1500."""


def deployment(
    model: str,
    gpu: str,
    tp: int,
    *,
    kv_tokens: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> Deployment:
    """An engine of these tables; fp8 is in the model's name."""
    name, narrow = model.removesuffix("-fp8"), model.endswith("-fp8")
    number = "fp8" if narrow else "fp16"
    config = EngineConfig(
        engine="tensorrt-llm",
        model=MODELS[name],
        gpu=GPUS[gpu],
        tp=tp,
        dtype=number,
        kv_dtype=number,
        memory_utilization=0.95,
        max_model_len=1 << 16,
        kv_tokens=kv_tokens,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    return deployed(config, has_server=False)


def predict(rows: list[Row]) -> Iterator[Cell]:
    """All cells."""
    for row in rows:
        model, gpu, tp, *lengths = row.workload.split()
        size = int(tp.removeprefix("tp"))
        setup = Setup(
            engine="TensorRT-LLM", gpu=gpu, model=model, tp=size, workload=" ".join(lengths)
        )
        figure = _figure(row.source, model, gpu, size, lengths)
        yield Cell.of(row, setup, figure, like=like(deployment(model, gpu, size)))


def _figure(source: str, model: str, gpu: str, tp: int, lengths: list[str]) -> float:
    if source == FIRST_TOKEN:
        prompt = int(lengths[0].removeprefix("in"))
        return 1e3 * float(serve(deployment(model, gpu, tp), [prompt], [1]).first_s[0])
    prompt, output = map(int, lengths[-1].split("/"))
    if source == IN_FLIGHT:
        count = REQUESTS.get(lengths[-1], 1500)
        return output_rate(serve(deployment(model, gpu, tp), [prompt] * count, [output] * count))
    # A static batch: there was room for it, and all its prompts were computed together.
    batch = int(lengths[0].removeprefix("b"))
    room = batch * (prompt + output + 32)  # whole blocks
    made = deployment(model, gpu, tp, kv_tokens=room, max_num_batched_tokens=batch * prompt)
    return output_rate(serve(made, [prompt] * batch, [output] * batch)) / tp
