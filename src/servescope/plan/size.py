"""Which tensor-parallel size: enough memory for KV first, then what speed it buys.

Sizes are compared by what one GPU of them serves, since a smaller replica leaves GPUs for others:
within the SLO if there is one, or else with all replicas full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.engine.deployment import deploy
from servescope.plan.error_bars import ErrorBar, error_bar
from servescope.plan.memory import Memory, memory, would_fit
from servescope.plan.rate import Rate, highest_rate
from servescope.plan.workload import (
    front_end_busy,
    largest_batch,
    saturated,
    shorter,
    statistic,
    unserved,
    with_users,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine.config import EngineConfig
    from servescope.goodput import Bound
    from servescope.plan.workload import Workload

_TIE = 0.05
"""Sizes whose GPUs serve as much to within this are alike: then the smaller is taken."""
_ALONE = 200
"""Requests of one user."""
BUSY = 0.95
"""A front end that is busy to this share of the time is what limits throughput."""
_FEW = 0.5
"""KV for less than this share of the batch that the engine would have: memory is what it lacks."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of one size, or the group of them that is declared."""

    tp: int
    gpus: int
    memory: Memory
    why_not: str = ""
    """Why it serves none of the requests, though the model fits."""
    batch: int = 0
    """Sequences of mean length that the KV cache of a replica holds, or that it has at most."""
    alone_tpot_s: float = 0.0
    """Of one request alone."""
    alone_ttft_s: float = 0.0
    requests_per_s: float = 0.0
    """When full."""
    output_tokens_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    front_end: float = 0.0
    """The share of the time in which front ends are busy then."""
    rate: Rate | None = None
    """Within the SLO; None without one, or where a smaller size's GPUs serve more within it than
    this one's when full, so that no search is needed."""
    error: ErrorBar | None = None

    @property
    def serves(self) -> bool:
        """Whether the model fits, and the KV cache holds such requests."""
        return self.memory.fits and not self.why_not

    @property
    def per_gpu(self) -> float:
        """Requests per second of one GPU: within the SLO if that was searched, or at most."""
        served = self.rate.requests_per_s if self.rate else self.requests_per_s
        return served / self.gpus


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
    """Try sizes and take one. Raises BadInput where the model fits, but no request is served."""
    tried: list[Size] = []
    for tp in sizes:
        sized = msgspec.structs.replace(config, tp=tp)
        one = size(sized, workload, context_tokens)
        rivals = [each.per_gpu for each in tried if each.rate]
        if bounds and one.serves and (1 - _TIE) * one.per_gpu > max(rivals, default=0.0):
            full = one.requests_per_s
            rate = highest_rate(sized, workload, bounds, seeds=1, full_per_s=full)
            one = msgspec.structs.replace(one, rate=rate)
        tried.append(one)
    fit = [one for one in tried if one.memory.fits]
    if not fit:
        return Choice(sizes=tried, tp=None, reasons=[would_fit(config, sizes)])
    serving = [one for one in fit if one.serves]
    if not serving:
        raise shorter(workload, fit[-1].why_not)
    known = [one for one in serving if one.rate or not bounds]
    most = max(one.per_gpu for one in known)
    chosen = next(one for one in known if one.per_gpu >= (1 - _TIE) * most)
    return Choice(sizes=tried, tp=chosen.tp, reasons=_reasons(tried, chosen))


def size(config: EngineConfig, workload: Workload, context_tokens: int) -> Size:
    """What one replica of a size is like, but for what it serves within an SLO."""
    held = memory(config, context_tokens)
    if not held.fits:
        return Size(tp=held.tp, gpus=config.gpus, memory=held)
    deployment = deploy(config)
    if why_not := unserved(deployment, workload):
        return Size(tp=held.tp, gpus=config.gpus, memory=held, why_not=why_not)
    full = saturated(config, workload)
    alone = with_users(deployment, workload, 1, requests=_ALONE)
    return Size(
        tp=held.tp,
        gpus=config.gpus,
        memory=held,
        batch=largest_batch(deployment, workload),
        alone_tpot_s=statistic(alone.tpot_s, "p50"),
        alone_ttft_s=statistic(alone.ttft_s, "p50"),
        requests_per_s=full.requests_per_s,
        output_tokens_per_s=full.output_tokens_per_s,
        input_tokens_per_s=full.input_tokens_per_s,
        front_end=front_end_busy(full, config),
        error=error_bar(config, "throughput"),
    )


def _reasons(tried: Sequence[Size], chosen: Size) -> list[str]:
    """Why this one: what smaller ones lack, and what larger ones would buy."""
    said = [f"{one.why_not}." for one in tried if one.why_not]
    if not chosen.per_gpu:
        none = "No size meets the SLO, even with one request at a time"
        return [f"{none}: what follows is of tp={chosen.tp}.", *said]
    what = "serves within the SLO" if chosen.rate else "serves when full"
    for one in tried:
        if one is chosen or not one.serves:
            continue
        if not one.per_gpu:
            said.append(f"tp={one.tp} misses the SLO even with one request at a time.")
        elif one.tp < chosen.tp:
            ratio = chosen.per_gpu / one.per_gpu
            least = "at least " * bool(chosen.rate and not one.rate)
            lack = _lack(one, chosen)
            gain = f"{least}{ratio:.2f} times what one of tp={one.tp} does."
            said += [*filter(None, [lack]), f"A GPU of tp={chosen.tp} {what} {gain}"]
        else:
            faster = chosen.alone_tpot_s / one.alone_tpot_s if one.alone_tpot_s else 1.0
            most = "at most " * bool(chosen.rate and not one.rate)
            said.append(
                f"tp={one.tp} makes a request alone {faster:.2f} times as fast "
                f"({one.alone_tpot_s * 1e3:.1f} ms a token, not {chosen.alone_tpot_s * 1e3:.1f}), "
                f"but one of its GPUs {what} {most}{one.per_gpu / chosen.per_gpu:.2f} times as "
                "much."
            )
    if chosen.front_end > BUSY:
        said.append(
            "When full, the API server's process limits it: more GPUs a replica do not help; run "
            "more replicas or API servers."
        )
    if not said:
        said.append("No other " + ("that was asked for fits." if tried[1:] else "was asked for."))
    return said


def _lack(one: Size, chosen: Size) -> str:
    if one.batch < _FEW * chosen.batch:
        share = one.memory.weight_bytes / one.memory.memory_bytes if one.memory.memory_bytes else 0
        return (
            f"With tp={one.tp} the weights take {share:.0%} of the memory, and the KV cache holds "
            f"only {one.batch} sequences of this length, not {chosen.batch}."
        )
    return ""
