"""How many tokens the KV cache holds."""

from __future__ import annotations

from servescope.catalog import Model


def kv_tokens(
    model: Model,
    memory_bytes: float,
    *,
    utilization: float = 0.9,
    weights: str = "fp16",
    kv_dtype: str = "fp16",
    tp: int = 1,
    pp: int = 1,
    activation_bytes: float = 0.0,
) -> int:
    """Tokens whose keys and values fit beside the weights; 0 where not even those do.

    (utilization x memory - weights - activations) / bytes of a token, each on the GPU that holds
    most of them. `memory_bytes` are those of one GPU (`Gpu.memory_bytes`); `activation_bytes` is
    mostly `Model.activation_bytes(...)`, and 0 gives the 'theoretical' capacity. Raises BadInput
    naming `dtype` or `kv_dtype`.
    """
    free = utilization * memory_bytes - model.weight_bytes(weights, tp, pp) - activation_bytes
    return max(0, int(free / model.kv_bytes_per_token(kv_dtype, tp, pp)))
