"""How many tokens the KV cache holds."""

from __future__ import annotations

from typing import Literal

from servescope.catalog import Model


def kv_tokens(
    model: Model,
    memory_bytes: float,
    *,
    utilization: float = 0.9,
    memory_of: Literal["all", "static", "rest"] = "all",
    weights: str = "fp16",
    kv_dtype: str = "fp16",
    tp: int = 1,
    pp: int = 1,
    activation_bytes: float = 0.0,
) -> int:
    """Tokens whose keys and values fit beside the weights; 0 where not even those do.

    Bytes that are free over those of a token, each on the GPU that holds most of them.
    `memory_bytes` are those of one GPU (`Gpu.memory_bytes`); `memory_of` says what the utilization
    is a share of (`Overheads.memory_of`); `activation_bytes` is mostly
    `Model.activation_bytes(...)`, and 0 gives the 'theoretical' capacity. Raises BadInput naming
    `dtype` or `kv_dtype`.
    """
    held = model.weight_bytes(weights, tp, pp)
    free = {
        "all": utilization * memory_bytes - held - activation_bytes,
        "static": utilization * memory_bytes - held,
        "rest": utilization * (memory_bytes - held - activation_bytes),
    }[memory_of]
    return max(0, int(free / model.kv_bytes_per_token(kv_dtype, tp, pp)))
