"""Does a model fit, and how many sequences does what it leaves hold?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from servescope import catalog
from servescope.engine.costs import kv_tokens
from servescope.engine.deployment import deploy, hardware, settle
from servescope.errors import BadInput
from servescope.plan.error_bars import ErrorBar, error_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine.config import EngineConfig


SIZES = (1, 2, 4, 8)
"""Tensor-parallel sizes that are tried."""
_NARROWER = ("fp8", "int8", "int4")


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Of one replica; bytes are those of one GPU, the one that holds most."""

    tp: int
    gpus: int
    fits: bool
    why_not: str = ""
    memory_bytes: float = 0.0
    """As the driver reports it."""
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    """Left for the KV cache."""
    kv_bytes_per_token: float = 0.0
    kv_tokens: int = 0
    assumed: bool = False
    """Without a GPU: nothing said how many tokens, and the simulator's default stands for them."""
    context_tokens: int
    sequences: int = 0
    """Of `context_tokens` each, that the KV cache holds."""
    max_num_seqs: int = 0
    """That the engine has in a batch at most."""
    theoretical_sequences: int = 0
    """The same by memory as sold, all of it, with nothing beside the weights: an upper bound that
    papers reckon with."""
    error: ErrorBar | None = None
    """Of `kv_tokens`."""


def memory(config: EngineConfig, context_tokens: int) -> Memory:
    """What one replica's memory holds. Raises BadInput where a model has no such contexts, or its
    GPUs cannot be laid out so."""
    settled = settle(config)
    gpus = settled.tp * settled.pp
    about: dict[str, Any] = {"tp": settled.tp, "gpus": gpus, "context_tokens": context_tokens}
    if settled.gpu is None:
        found = deploy(config)
        return Memory(
            fits=True,
            kv_tokens=found.kv_tokens,
            assumed=settled.kv_tokens is None,
            sequences=found.kv_tokens // context_tokens,
            max_num_seqs=found.max_num_seqs,
            **about,
        )
    model, (gpu, _) = catalog.model(settled.model), hardware(settled)
    weights, kv_dtype, split = settled.dtype, settled.kv_dtype, (settled.tp, settled.pp)
    about |= {
        "memory_bytes": gpu.memory_bytes,
        "weight_bytes": model.weight_bytes(weights, *split),
        "kv_bytes_per_token": model.kv_bytes_per_token(kv_dtype, *split),
        "theoretical_sequences": kv_tokens(
            model,
            gpu.memory_gb * 1e9,
            utilization=1.0,
            weights=weights,
            kv_dtype=kv_dtype,
            tp=settled.tp,
            pp=settled.pp,
        )
        // context_tokens,
    }
    positions = max(model.context_tokens, settled.max_model_len or 0)
    if context_tokens > positions:
        want = f"want at most {positions}, as many as {model.name} has positions for"
        raise BadInput("--context", context_tokens, want)
    try:
        found = deploy(config)
    except BadInput as error:
        if error.field != "gpu":
            raise
        return Memory(fits=False, why_not=error.want.rpartition(": ")[2], **about)
    return Memory(
        fits=True,
        kv_bytes=found.kv_tokens * about["kv_bytes_per_token"],
        kv_tokens=found.kv_tokens,
        sequences=found.kv_tokens // context_tokens,
        max_num_seqs=found.max_num_seqs,
        error=error_bar(config, "kv_tokens"),
        **about,
    )


def would_fit(config: EngineConfig, tried: Sequence[int]) -> str:
    """For a model that does not fit: a larger tensor-parallel size, weights of fewer bits, the GPU
    with the smallest size (of those, the cheapest) on which it does."""
    heads = catalog.model(config.model).heads
    sizes = sorted({*tried, *(size for size in SIZES if not heads % size)})

    def least(**changed: Any) -> int | None:  # noqa: ANN401 (of any setting)
        other = msgspec.structs.replace(config, **changed)
        each = (size for size in sizes if _fits(msgspec.structs.replace(other, tp=size)))
        return next(each, None)

    found = [f"with tp={size}" for size in [least()] if size]
    formats = ((name, least(dtype=name)) for name in _NARROWER)
    found += [f"in {name} with tp={size}" for name, size in formats if size][:1]
    gpus = [catalog.gpu(name) for name in catalog.names()["gpus"]]
    on = [(size, gpu.price_per_hour, gpu.name) for gpu in gpus if (size := least(gpu=gpu.name))]
    found += [f"on {name} with tp={size}" for size, _, name in sorted(on)[:1]]
    if not found:
        return f"Nor would it with fewer bits or on another GPU, up to tp={sizes[-1]}."
    return f"It would fit {', or '.join(found)}."


def _fits(config: EngineConfig) -> bool:
    try:
        deploy(config)
    except BadInput:
        return False
    return True
