"""A deployment as a source describes it, with lengths and times of arrival run through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope import catalog
from servescope.engine.deployment import Deployment, deploy, hardware, settle
from servescope.engine.front_end import NO_FRONT_END
from servescope.engine.replay import Replayed, replay
from servescope.plan.error_bars import nearest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from servescope.engine.config import EngineConfig


def deployed(
    config: EngineConfig,
    *,
    has_server: bool = True,
    overheads: dict[str, float] | None = None,
    efficiency: dict[str, float] | None = None,
) -> Deployment:
    """What settings come to, with these constants of the engine and the GPU instead of the
    catalogue's.

    Contexts have at most 4096 tokens where nothing else is said. `has_server`: whether requests
    came through the engine's front end, or from a benchmark beside it.
    """
    gpu, software = hardware(config)
    software = msgspec.structs.replace(software, **(overheads or {}))
    reach = msgspec.structs.replace(gpu.efficiency, **(efficiency or {}))
    config = msgspec.structs.replace(
        config,
        turnaround=1e-3 if has_server else 1e-9,
        max_model_len=config.max_model_len or 4096,
    )
    made = deploy(config, (msgspec.structs.replace(gpu, efficiency=reach), software))
    if not has_server:
        made.front_end = NO_FRONT_END
    return made


def like(deployment: Deployment) -> str:
    """The class of deployment that its error bars are of."""
    config = settle(deployment.declared)
    model, gpu = catalog.model(config.model), catalog.gpu(config.gpu or "")
    return nearest(model, gpu, tp=config.tp, pp=config.pp, weights=config.dtype)


def serve(
    deployment: Deployment,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    *,
    arrivals_s: ArrayLike | None = None,
    users: int | None = None,
    most_tokens: ArrayLike | None = None,
) -> Replayed:
    """Have it serve requests that arrive at these times, or all at once, or from `users`."""
    if users is None and arrivals_s is None:
        arrivals_s = np.zeros(len(np.asarray(prompt_tokens)))
    return replay(
        deployment.engines(),
        prompt_tokens,
        output_tokens,
        arrivals_s=arrivals_s,
        users=users,
        most_tokens=most_tokens,
        front_end=deployment.front_end,
    )


def tpot_s(served: Replayed) -> NDArray[np.float64]:
    """Of each answer of two tokens or more, the mean time of those after the first."""
    more = served.tokens > 1
    gaps: NDArray[np.float64] = (served.end_s - served.first_s)[more] / (served.tokens[more] - 1)
    return gaps


def output_rate(served: Replayed) -> float:
    """Output tokens a second."""
    return float(served.tokens.sum()) / served.makespan_s
