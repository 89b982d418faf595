"""Settings become engines: what follows from the model, the GPU and the engine's own defaults."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from servescope.engine.calibration import read
from servescope.engine.config import UNNAMED
from servescope.engine.cost import LinearCost
from servescope.engine.disaggregation import NO_TRANSFER, Transfer
from servescope.engine.front_end import NO_FRONT_END, FrontEndCost
from servescope.engine.policies import policies, policy
from servescope.engine.routers import ROUTERS
from servescope.engine.scheduler import FOREVER
from servescope.errors import BadInput
from servescope.plugins import one_of

if TYPE_CHECKING:
    from servescope.catalog import Gpu, Model, Overheads
    from servescope.engine.config import EngineConfig
    from servescope.engine.cost import Cost
    from servescope.engine.scheduler import Engine

SEQUENCES, TOKENS = 256, 16384
"""In a batch and in a step, when memory is set aside for activations, where neither settings nor
the policy have a limit."""
_OF_A_GPU = (
    *("tp", "pp", "nodes", "dtype", "kv_dtype", "memory_utilization"),
    *("network_bytes_per_s", "transfer_bytes_per_s"),
)
"""Settings that say nothing without a GPU."""


class Deployment:
    """Engines alike that serve one model. What `config` left open is said by the attributes."""

    def __init__(
        self,
        declared: EngineConfig,
        config: EngineConfig,
        cost: Cost,
        front_end: FrontEndCost = NO_FRONT_END,
        transfer: Transfer = NO_TRANSFER,
    ) -> None:
        self.declared, self.cost, self._config = declared, cost, config
        self.front_end = front_end
        """Of each replica. None where costs are linear or calibrated, since it is then within the
        turnaround, and none of engines whose API server shares their own process."""
        self.transfer = transfer
        """Of KV from those who compute prompts, if some only do that."""
        one = self.engine()
        self.model, self.wire, self.max_waiting = config.model, config.wire, config.max_waiting
        self.kv_blocks, self.block_tokens = one.kv.capacity, one.block_tokens
        self.max_num_seqs, self.max_model_len = one.max_num_seqs, one.max_model_len
        self.prefix_cache = one.kv.prefix_cache
        self.longest = one.longest
        """Tokens of the longest prompt and answer that can ever be served."""

    def engine(self) -> Engine:
        """One replica, fresh."""
        return policy(self._config.policy)(self._config, self.cost)

    def engines(self) -> list[Engine]:
        """All replicas that answer, fresh."""
        return [self.engine() for _ in range(self._config.replicas)]

    def prefill_engines(self) -> list[Engine]:
        """All replicas that only compute prompts, fresh."""
        return [self.engine() for _ in range(self._config.prefill_replicas)]

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of a replica holds."""
        return self.kv_blocks * self.block_tokens


def calibrated(config: EngineConfig) -> EngineConfig:
    """The settings with those of its calibration, if it has one; raises BadInput."""
    return config if config.calibration is None else read(config.calibration).settled(config)


def settle(config: EngineConfig) -> EngineConfig:
    """The settings with those of its calibration, if it has one; with a GPU, the format of weights
    and the share of memory that follow from model, GPU and engine. Raises BadInput."""
    config = calibrated(config)
    if config.gpu is None:
        return config
    from servescope import catalog  # noqa: PLC0415 (only where a GPU is named)

    if config.model == UNNAMED:
        want = "want a model with a gpu: a name of `servescope plan --list`, or a path to a"
        raise BadInput("model", "", f"{want} config.json")
    model, gpu = catalog.model(config.model), catalog.gpu(config.gpu)
    share = config.memory_utilization or _overheads(config).memory_utilization
    dtype = catalog.weight_format(config.dtype, model, gpu)
    return msgspec.structs.replace(config, dtype=dtype, memory_utilization=share)


def hardware(config: EngineConfig) -> tuple[Gpu, Overheads]:
    """GPU and engine of the catalogue, with the constants of the calibration if there is one.

    Raises BadInput where the catalogue lacks a name; for settings that name a GPU.
    """
    from servescope import catalog  # noqa: PLC0415 (only where a GPU is named)

    found = catalog.gpu(config.gpu or ""), _overheads(config)
    return found if config.calibration is None else read(config.calibration).apply(*found)


def _overheads(config: EngineConfig) -> Overheads:
    from servescope import catalog  # noqa: PLC0415 (only where a GPU is named)

    if config.engine == "llamacpp":  # has vLLM's scheduler here, but neither its host nor kernels
        known = ", ".join(catalog.names()["engines"])
        want = f"want one of {known} with a gpu: without one, calibrate llama.cpp on your server"
        raise BadInput("engine", config.engine, want)
    return catalog.engine(config.policy)


def deploy(declared: EngineConfig, on: tuple[Gpu, Overheads] | None = None) -> Deployment:
    """Work out what settings leave open.

    `on` stands for what `hardware` finds. Raises BadInput where the catalogue lacks a name, or the
    model does not fit.
    """
    config, kind = settle(declared), policy(declared.policy)
    _check(config, kind)
    if config.gpu is None:
        return Deployment(declared, _limited(config, kind), LinearCost.of(config))
    from servescope import catalog  # noqa: PLC0415 (only where a GPU is named)
    from servescope.engine.costs import Network, roofline_of  # noqa: PLC0415

    model, (gpu, overheads) = catalog.model(config.model), on or hardware(config)
    config = _limited(config, kind, gpu)
    tp, pp, weights, kv_dtype = config.tp, config.pp, config.dtype, config.kv_dtype
    cost = roofline_of(
        model,
        gpu,
        overheads,
        weights=weights,
        kv_dtype=kv_dtype,
        tp=tp,
        pp=pp,
        nodes=config.nodes,
        network=Network.of(config.network_bytes_per_s),
    )
    room = _room(config, kind, model, gpu, overheads)
    longest = config.max_model_len or model.context_tokens
    concrete = msgspec.structs.replace(config, kv_tokens=room, max_model_len=longest)
    front_end = NO_FRONT_END
    if config.calibration is None:
        front_end = FrontEndCost(overheads.request_s, overheads.token_s)
    token_bytes = model.kv_bytes_per_token(kv_dtype, tp, pp)
    adapter = Network.of(config.transfer_bytes_per_s)
    transfer = Transfer(token_bytes / adapter.bytes_per_s, adapter.latency_s)
    return Deployment(declared, concrete, cost, front_end, transfer)


def _limited(config: EngineConfig, kind: type[Engine], gpu: Gpu | None = None) -> EngineConfig:
    """With the limits that the engine takes on that GPU, where it has one and they are left open.

    Today's vLLM has no more sequences in a batch than tokens in a step (v0.19,
    vllm/engine/arg_utils.py), and refuses to start with more (vllm/config/scheduler.py).
    """
    limits = {} if gpu is None else kind.limits_on(gpu)
    left_open = {k: v for k, v in limits.items() if getattr(config, k) is None}
    found = msgspec.structs.replace(config, **left_open)
    tokens = found.max_num_batched_tokens or kind.max_num_batched_tokens
    sequences = found.max_num_seqs or kind.max_num_seqs
    if config.engine != "vllm" or sequences <= tokens:
        return found
    if config.max_num_seqs is None:
        return msgspec.structs.replace(found, max_num_seqs=tokens)
    want = f"want {sequences} or more, as many as max_num_seqs: vLLM does not start with fewer"
    raise BadInput("max_num_batched_tokens", str(tokens), want)


def _room(
    config: EngineConfig, kind: type[Engine], model: Model, gpu: Gpu, overheads: Overheads
) -> int:
    """Tokens of the KV cache: those asked for, if there can be so many, or what the engine finds
    room for. BadInput names `gpu` where the weights leave too little."""
    from servescope.engine.costs import kv_tokens  # noqa: PLC0415 (only where a GPU is named)

    weights, tp, pp = config.dtype, config.tp, config.pp
    beside = partial(
        kv_tokens,
        model,
        gpu.memory_bytes,
        weights=weights,
        kv_dtype=config.kv_dtype,
        tp=tp,
        pp=pp,
    )
    tokens = config.max_num_batched_tokens or _limit(kind.max_num_batched_tokens, TOKENS)
    sequences = config.max_num_seqs or _limit(kind.max_num_seqs, SEQUENCES)
    room = config.kv_tokens or beside(
        utilization=config.memory_utilization or overheads.memory_utilization,
        memory_of=overheads.memory_of,
        activation_bytes=model.activation_bytes(tokens, sequences, tp),
    )
    # What an engine reports may be more than is reckoned here, so what is asked for is held against
    # all that the driver reports, with nothing but the weights beside it: nobody can have more.
    most = beside(utilization=1.0)
    block_tokens = config.block_tokens or kind.block_tokens
    if not block_tokens <= room <= most:
        need, there = model.weight_bytes(weights, tp, pp) / 1e9, gpu.memory_bytes / 1e9
        left = "nothing is left for the KV cache"
        if room < block_tokens <= most:
            left = f"with memory_utilization={config.memory_utilization:g} {left}"
        elif room > most >= block_tokens:
            left = f"{most} tokens fit beside them, not kv_tokens={room}"
        want = f"its weights take {need:.1f} GB of each GPU's {there:.1f} GB, and {left}"
        raise BadInput("gpu", config.gpu or "", f"want more memory for {model.name}: {want}")
    return room


def _limit(of_policy: int, otherwise: int) -> int:
    return of_policy if of_policy < FOREVER else otherwise


def _check(config: EngineConfig, kind: type[Engine]) -> None:
    """What settings must be for this engine, beyond what they must be for any."""
    if config.router not in ROUTERS:
        raise BadInput("router", config.router, f"want {one_of(config.router, ROUTERS)}")
    block_tokens = config.block_tokens or kind.block_tokens
    if config.kv_tokens is not None and config.kv_tokens < block_tokens:
        raise BadInput("kv_tokens", str(config.kv_tokens), f"want a block at least: {block_tokens}")
    for field in msgspec.structs.fields(config):
        said = getattr(config, field.name)
        if config.gpu is None and field.name in _OF_A_GPU and said != field.default:
            raise BadInput(field.name, str(said), "want it with a gpu: without one it says nothing")
    if config.prefill_replicas and (config.gpu is None or not kind.disaggregates):
        able = ", ".join(name for name, one in policies().items() if one.disaggregates)
        want = f"want one of {able}, on a gpu: others do not compute prompts on replicas apart"
        raise BadInput("prefill_replicas", str(config.prefill_replicas), want)
