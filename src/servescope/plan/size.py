"""Which tensor-parallel size: enough memory for KV first, then what speed it buys.

Sizes are compared by what one GPU of them serves, since a smaller replica leaves GPUs for others:
within the SLO if there is one, or else with all replicas full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.engine.deployment import deploy
from servescope.plan.error_bars import ErrorBar, error_bar
from servescope.plan.memory import Memory, memory
from servescope.plan.rate import highest_rate
from servescope.plan.workload import saturated, statistic, to_fill, with_users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine.config import EngineConfig
    from servescope.goodput import Bound
    from servescope.plan.workload import Workload

_TIE = 0.05
"""Sizes whose GPUs serve as much to within this are alike: then the smaller is taken."""
_ALONE = 200
"""Requests of one user."""
_FEW = 0.5
"""KV for less than this share of the batch that the engine would have: memory is what it lacks."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of one size."""

    tp: int
    gpus: int
    memory: Memory
    batch: float = 0.0
    """Sequences of mean length that the KV cache holds, or that the engine has at most."""
    alone_tpot_s: float = 0.0
    """Of one request alone."""
    alone_ttft_s: float = 0.0
    requests_per_s: float = 0.0
    """When full."""
    output_tokens_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    slo_requests_per_s: float | None = None
    """Within the SLO; None without one."""
    error: ErrorBar | None = None

    @property
    def per_gpu(self) -> float:
        """Requests per second of one GPU, within the SLO if there is one."""
        rate = self.slo_requests_per_s
        return (self.requests_per_s if rate is None else rate) / self.gpus


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes tried, the one to take, and why."""

    sizes: list[Size]
    tp: int | None
    """None: none fits."""
    reasons: list[str]


def choose(
    config: EngineConfig,
    sizes: Sequence[int],
    workload: Workload,
    bounds: Sequence[Bound] = (),
    context_tokens: int = 2048,
) -> Choice:
    """Try sizes and take one."""
    tried = [
        size(msgspec.structs.replace(config, tp=tp), workload, bounds, context_tokens)
        for tp in sizes
    ]
    fit = [one for one in tried if one.memory.fits]
    if not fit:
        return Choice(sizes=tried, tp=None, reasons=["It fits at none of these sizes."])
    most = max(one.per_gpu for one in fit)
    chosen = next(one for one in fit if one.per_gpu >= (1 - _TIE) * most)
    return Choice(sizes=tried, tp=chosen.tp, reasons=_reasons(fit, chosen, within=bool(bounds)))


def size(
    config: EngineConfig, workload: Workload, bounds: Sequence[Bound], context_tokens: int
) -> Size:
    """What one replica of a size is like."""
    config = msgspec.structs.replace(config, replicas=1)
    held = memory(config, context_tokens)
    if not held.fits:
        return Size(tp=held.tp, gpus=held.gpus, memory=held)
    deployment = deploy(config)
    full = saturated(deployment, workload)
    alone = with_users(deployment, workload, 1, requests=_ALONE)
    slo_rate = highest_rate(config, workload, bounds, seeds=1).requests_per_s if bounds else None
    return Size(
        tp=held.tp,
        gpus=held.gpus,
        memory=held,
        batch=to_fill(deployment, workload) * 4 / 5,
        alone_tpot_s=statistic(alone.tpot_s, "p50"),
        alone_ttft_s=statistic(alone.ttft_s, "p50"),
        requests_per_s=full.requests_per_s,
        output_tokens_per_s=full.output_tokens_per_s,
        input_tokens_per_s=full.input_tokens_per_s,
        slo_requests_per_s=slo_rate,
        error=error_bar(config, "throughput"),
    )


def _reasons(fit: Sequence[Size], chosen: Size, *, within: bool) -> list[str]:
    """Why this one: what smaller ones lack, and what larger ones would buy."""
    said = []
    what = "serves within the SLO" if within else "serves when full"
    for one in fit:
        if one is chosen:
            continue
        if not one.per_gpu:
            said.append(f"tp={one.tp} misses the SLO even with one request at a time.")
        elif one.tp < chosen.tp:
            ratio = chosen.per_gpu / one.per_gpu
            lack = _lack(one, chosen)
            gain = f"A GPU of tp={chosen.tp} {what} {ratio:.2f} times what one of tp={one.tp} does."
            said += [lack, gain] if lack else [gain]
        else:
            faster = chosen.alone_tpot_s / one.alone_tpot_s if one.alone_tpot_s else 1.0
            said.append(
                f"tp={one.tp} makes a request alone {faster:.2f} times as fast "
                f"({one.alone_tpot_s * 1e3:.1f} ms a token, not {chosen.alone_tpot_s * 1e3:.1f}), "
                f"but one of its GPUs {what} {one.per_gpu / chosen.per_gpu:.2f} times as much."
            )
    if not said:
        said.append("No other that was asked for fits.")
    return said


def _lack(one: Size, chosen: Size) -> str:
    if one.batch < _FEW * chosen.batch:
        share = one.memory.weight_bytes / one.memory.memory_bytes if one.memory.memory_bytes else 0
        return (
            f"With tp={one.tp} the weights take {share:.0%} of the memory, and the KV cache holds "
            f"only {one.batch:.0f} sequences of this length, not {chosen.batch:.0f}."
        )
    return ""
