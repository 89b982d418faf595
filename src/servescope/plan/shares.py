"""Where the time of a deployment goes, and what a better part of it would buy.

Shares are of the time in steps: by phase, and by resource. Two of the limits are no part of a step
and have a reading of their own: the KV cache keeps requests out of it, the front end stands before
it. Where limits tie, shares mislead; the elasticity says by how many per cent throughput
rises when one constant is one per cent better, by simulating again with it 10 % better.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from servescope.engine import FS
from servescope.engine.cost import LinearCost
from servescope.engine.costs import Network, Roofline
from servescope.engine.deployment import deploy, hardware, settle
from servescope.plan.error_bars import ErrorBar, error_bar
from servescope.plan.workload import front_end_busy, tapers, to_fill, with_users

if TYPE_CHECKING:
    from collections.abc import Callable

    from servescope.catalog import Gpu, Overheads
    from servescope.engine import Step
    from servescope.engine.config import EngineConfig
    from servescope.engine.cost import Cost
    from servescope.engine.scheduler import Engine
    from servescope.plan.workload import Floats, Served, Workload

    On = tuple[Gpu, Overheads]

BETTER = 1.1
"""How much better a constant is made."""
_LEAST_NOISE = 0.05
"""Of an elasticity: other draws of the requests differ by no more, even where both halves agree
better (standard deviations of eight draws in eight deployments, but for one of 0.06, where the
halves say 0.10, and one of 0.27, whose users come in waves for good, where they say 0.13)."""
_FULL = 0.95
"""Of the KV blocks held: then the KV cache is what keeps others waiting."""
_LINEAR = ("step", "prefill", "sequence", "context")


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Of one replica, or the group that is declared, with so many users."""

    users: int
    output_tokens_per_s: float
    phases: dict[str, float]
    """prefill and decode: shares of the time in steps. Of a step with both, prefill is what it
    takes longer than its decodes alone."""
    resources: dict[str, float]
    """Likewise: compute, hbm_weights, hbm_kv, interconnect, host. Without a GPU: the constants."""
    busy: float
    """The share of all time that is in steps."""
    kv_full: float
    """The share of the time in steps in which requests wait and the KV cache is full."""
    front_end: float
    """The share of all time in which the front end is busy."""
    elasticity: dict[str, float]
    """By limit: compute, hbm_weights, hbm_kv, kv_capacity, interconnect (bandwidth of links and of
    the network between nodes), host and front_end; transfer, where some only compute prompts.
    Without a GPU: the constants and kv_capacity."""
    noise: float
    """How far they may be off by chance: what other draws were found to differ by, or more where
    the first and the second half of the time do."""
    error: ErrorBar

    @property
    def limit(self) -> str:
        """What throughput depends on most."""
        return max(self.elasticity, key=lambda name: self.elasticity[name])


def shares(config: EngineConfig, workload: Workload, users: int | None = None) -> Shares:
    """Simulate a closed loop, by default one that keeps a replica full.

    Nobody is refused: in a closed loop, a limit to the queue only sends users round and round.
    """
    config = msgspec.structs.replace(settle(config), max_waiting=None)
    deployment = deploy(config)
    users = users or to_fill(deployment, workload)
    told = _Told(deployment.cost)

    def watch(engine: Engine) -> Engine:
        return cast("Engine", _Watched(engine, told.note))

    served = with_users(deployment, workload, users, watch=watch)
    whole, makespan_s = max(told.seconds, 1e-12), served.replayed.makespan_s
    engines = config.replicas + config.prefill_replicas
    elasticity, noise = _elasticities(config, workload, users, _speed(served, users))
    return Shares(
        users=users,
        output_tokens_per_s=served.output_tokens_per_s,
        phases={
            "prefill": told.prefill_s / whole,
            "decode": (told.seconds - told.prefill_s) / whole,
        },
        resources={name: spent / whole for name, spent in told.resources.items()},
        busy=min(1.0, told.seconds / engines / makespan_s),
        kv_full=told.kv_full_s / whole,
        front_end=front_end_busy(served, config),
        elasticity=elasticity,
        noise=noise,
        error=error_bar(config, "throughput"),
    )


class _Watched:
    """An engine whose steps somebody is told of."""

    def __init__(self, engine: Engine, note: Callable[[Engine, Step], None]) -> None:
        self._engine, self._note = engine, note

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever an engine has)
        return getattr(self._engine, name)

    def step(self, until_fs: int, arrival_fs: int) -> Step | None:
        step = self._engine.step(until_fs, arrival_fs)
        if step is not None:
            self._note(self._engine, step)
        return step


class _Told:
    """Steps added up."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self.seconds = self.prefill_s = self.kv_full_s = 0.0
        self.resources: dict[str, float] = {}

    def note(self, engine: Engine, step: Step) -> None:
        """One step, or several alike, whose context is that of the middle one."""
        count, decoding = step.count, step.decoding + step.padding_sequences
        context = step.context + decoding * (count + 1) / 2 if decoding else 0.0
        self.seconds += step.duration_s
        seats = engine.max_num_seqs - len(engine.batch)
        if engine.queue and seats > 0 and engine.kv_used_ratio > _FULL:
            self.kv_full_s += step.duration_s
        if isinstance(self._cost, Roofline):
            spent = self._roofline(self._cost, step, context)
        elif isinstance(self._cost, LinearCost):
            spent = self._linear(self._cost, engine.config, step, context)
        for name, seconds in spent.items():
            self.resources[name] = self.resources.get(name, 0.0) + seconds

    def _roofline(self, cost: Roofline, step: Step, context: float) -> dict[str, float]:
        decoding = step.decoding + step.padding_sequences
        if not step.prompts:
            parts = cost.parts(decoding, decoding, 0, context, decoding).resources
            scale = step.duration_s / sum(parts.values())
            return {name: seconds * scale for name, seconds in parts.items()}
        if decoding:
            alone = cost.duration_s(decoding, decoding, 0, context, decoding)
        self.prefill_s += step.duration_s - (alone if decoding else 0.0)
        tokens = step.prefill_tokens + step.padding_tokens + decoding
        sampled = len(step.begun) + decoding
        parts = cost.parts(tokens, step.sequences, step.pairs, context, sampled).resources
        scale = step.duration_s / sum(parts.values())
        return {name: seconds * scale for name, seconds in parts.items()}

    def _linear(
        self, cost: LinearCost, config: EngineConfig, step: Step, context: float
    ) -> dict[str, float]:
        count, each = step.count, {name: config.cost_s(name) for name in _LINEAR}
        spent = {
            "step": each["step"] * count,
            "prefill": each["prefill"] * (step.prefill_tokens + step.padding_tokens),
            "sequence": cost.sequences(step.sequences) / FS * count,
            "context": each["context"] * (count * context + step.prompt_context),
        }
        if step.prompts:
            alone = 0.0
            if step.decoding:
                batch_s = cost.sequences(step.decoding) / FS
                alone = each["step"] + batch_s + each["context"] * context
            self.prefill_s += step.duration_s - alone
        return spent


# --- elasticity -----------------------------------------------------------------------------------


def _elasticities(
    config: EngineConfig, workload: Workload, users: int, before: Floats
) -> tuple[dict[str, float], float]:
    """d ln throughput / d ln constant, with the same users and requests; and the noise."""
    halves = [_LEAST_NOISE]

    def again(changed: EngineConfig, on: On | None = None, times: float = BETTER) -> float:
        speed = _speed(with_users(deploy(changed, on), workload, users), users)
        whole, *half = np.log(speed / before) / math.log(times)
        halves.append(float(abs(half[0] - half[1]) / 2))
        return float(whole)

    tokens = deploy(config).kv_tokens
    more = msgspec.structs.replace(config, kv_tokens=round(tokens * BETTER))
    if config.gpu is None:
        found = {
            name: again(msgspec.structs.replace(config, **{name: config.cost_s(name) / BETTER}))
            for name in _LINEAR
        }
        return found | {"kv_capacity": again(more)}, max(halves)
    same = msgspec.structs.replace(config, kv_tokens=tokens)
    gpu, overheads = hardware(config)

    def wider(network: str, *links: str) -> float:
        """The setting of a network and the GPU's links reach more; or less, where a network that
        reaches more would be another kind, of less latency."""
        reach = getattr(same, network)
        alike = Network.of(reach).latency_s == Network.of(BETTER * reach).latency_s
        times = BETTER if alike else 1 / BETTER
        changed = msgspec.structs.replace(same, **{network: times * reach})
        reached = {name: times * getattr(gpu, name) for name in links}
        return again(changed, (msgspec.structs.replace(gpu, **reached), overheads), times)

    found = {name: again(same, on) for name, on in _better(gpu, overheads).items()}
    found["interconnect"] = wider("network_bytes_per_s", "nvlink_bytes_per_s", "pcie_bytes_per_s")
    if config.prefill_replicas:
        found["transfer"] = wider("transfer_bytes_per_s")
    larger = msgspec.structs.replace(gpu, memory_bytes=round(gpu.memory_bytes * BETTER))
    found["kv_capacity"] = again(more, (larger, overheads))
    return found, max(halves)


def _speed(served: Served, users: int) -> Floats:
    """Output tokens per second: of the whole, and of each half of the time."""
    each = (tapers(served.replayed.end_s, users, parts) for parts in (1, 2))
    return np.concatenate([one @ served.replayed.tokens for one in each])


def _better(gpu: Gpu, overheads: Overheads) -> dict[str, On]:
    """GPU and engine with one limit 10 % better each."""
    reach = gpu.efficiency

    def kernels(*names: str) -> On:
        faster = {name: getattr(reach, name) * BETTER for name in names if getattr(reach, name)}
        better = msgspec.structs.replace(reach, **faster)
        return msgspec.structs.replace(gpu, efficiency=better), overheads

    host = {
        name: getattr(overheads, name) / BETTER
        for name in overheads.__struct_fields__
        if name.endswith("_s") and name not in _FRONT
    }
    front = {name: getattr(overheads, name) / BETTER for name in _FRONT}
    return {
        "compute": kernels("compute", "prefill_attention", "fp8_compute"),
        "hbm_weights": kernels("hbm"),
        "hbm_kv": kernels("decode_attention"),
        "host": (gpu, msgspec.structs.replace(overheads, **host)),
        "front_end": (gpu, msgspec.structs.replace(overheads, **front)),
    }


_FRONT = ("request_s", "token_s")
