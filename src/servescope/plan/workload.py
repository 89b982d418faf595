"""What is asked of a deployment, and what comes of it in simulation.

All that is compared is served the same requests at the same times, but for the rate: the numbers
behind them are drawn once (common random numbers), so that a difference is none of chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope import lengths
from servescope.engine.replay import replay
from servescope.errors import BadInput
from servescope.lengths import Lengths
from servescope.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from servescope.engine.config import EngineConfig
    from servescope.engine.deployment import Deployment
    from servescope.engine.replay import Replayed
    from servescope.engine.scheduler import Engine
    from servescope.goodput import Bound

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

WARMUP = 0.1
"""The share of the first requests that is left out: a load begins with an empty engine."""
_FEWEST, _MOST = 2000, 20000
"""Requests of a simulation."""
_ROUNDS = 8
"""Of a closed loop, so many requests a user."""


class Workload(msgspec.Struct, frozen=True):
    """Lengths of prompts and answers, and the seed of what is drawn."""

    inputs: Lengths
    outputs: Lengths
    seed: int = 0

    def draw(self, requests: int) -> tuple[Ints, Ints]:
        """Tokens of prompts and answers, shape (n,) each: those that `servescope run` would ask."""
        return (
            _draw(self.inputs, self.seed, "input", requests),
            _draw(self.outputs, self.seed, "output", requests),
        )

    def gaps(self, requests: int) -> Floats:
        """Times between arrivals of a Poisson process of rate 1."""
        return generator(self.seed, "plan gaps").standard_exponential(requests)

    @property
    def means(self) -> tuple[float, float]:
        """Mean tokens of a prompt and of an answer."""
        prompts, outputs = self.draw(_FEWEST)
        return float(prompts.mean()), float(outputs.mean())


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a load. Times in seconds, shape (n,), those of the warm-up left out."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    tokens: Ints
    requests_per_s: float
    """Answered while the load was on."""
    input_tokens_per_s: float
    output_tokens_per_s: float
    replayed: Replayed

    def value_s(self, bound: Bound) -> float:
        """The figure that a bound of an SLO is on. Raises BadInput where replaying has none."""
        per_token = self.e2e_s / np.maximum(self.tokens, 1)
        known = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        known |= {"ttft_from_due": self.ttft_s, "e2e_from_due": self.e2e_s}
        known |= {"normalized_latency": per_token, "ttfo": self.ttft_s}
        if bound.metric not in known:
            want = "want bounds on ttft, tpot or e2e: times of single tokens are not planned with"
            raise BadInput("--slo", bound.text, want)
        return statistic(known[bound.metric], bound.statistic or "max")

    def missed(self, bounds: Sequence[Bound]) -> Bound | None:
        """The first bound that is not met."""
        values = ((bound, np.array([self.value_s(bound)])) for bound in bounds)
        return next((bound for bound, value in values if not bound.met_by(value)[0]), None)


def statistic(values: Floats, name: str) -> float:
    """The `mean`, the `max` or a percentile such as `p99`; 0 of nothing (no answer has a TPOT)."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0
    if name in ("mean", "max"):
        return float(getattr(known, name)())
    return float(np.percentile(known, float(name.removeprefix("p"))))


def at_rate(deployment: Deployment, workload: Workload, rate: float, requests: int) -> Served:
    """Requests come at so many per second."""
    prompts, outputs = workload.draw(requests)
    sent_s = np.cumsum(workload.gaps(requests)) / rate
    replayed = _replayed(deployment, prompts, outputs, arrivals_s=sent_s)
    return _served(replayed, prompts, (sent_s[0], sent_s[-1]))


def with_users(
    deployment: Deployment,
    workload: Workload,
    users: int,
    *,
    requests: int | None = None,
    watch: Callable[[Engine], Engine] | None = None,
) -> Served:
    """So many users each ask again when they have an answer; `watch` wraps each engine."""
    requests = requests or enough(users)
    prompts, outputs = workload.draw(requests)
    if users > 1:
        outputs = _begun(outputs, users, workload.seed)
    replayed = _replayed(deployment, prompts, outputs, users=users, watch=watch)
    # Users may come in waves, so whole rounds are counted; not the first two, which began with an
    # empty engine, nor the last, when the first user has nothing more to ask.
    ended = np.sort(replayed.end_s[~np.isnan(replayed.end_s)])
    rounds = len(ended) // users
    first, last = (2 * users, (rounds - 1) * users) if rounds > 3 else (1, len(ended))
    window = (ended[first - 1], ended[last - 1]) if len(ended) else (0.0, 0.0)
    return _served(replayed, prompts, window, skip=users if users > 1 else 0)


def enough(users: int) -> int:
    """Requests for a closed loop to settle."""
    return min(max(_ROUNDS * users, _FEWEST // 4), max(_MOST, 4 * users))


def requests_for(in_flight: float) -> int:
    """Requests of an open load that has so many in flight: several times as many."""
    return int(min(max(_FEWEST, 10 * in_flight), _MOST))


def front_end_busy(served: Served, config: EngineConfig) -> float:
    """The share of the time in which front ends are busy."""
    replayed = served.replayed
    return min(1.0, replayed.front_end_s / config.replicas / max(replayed.makespan_s, 1e-12))


def unit(config: EngineConfig) -> EngineConfig:
    """What is meant where one replica is asked about: one; or the declared group, where some only
    compute prompts."""
    return config if config.prefill_replicas else msgspec.structs.replace(config, replicas=1)


def to_fill(deployment: Deployment, workload: Workload) -> int:
    """Users that are enough to keep all replicas as busy as they can be."""
    prompt, output = workload.means
    fit = deployment.kv_tokens / (prompt + output / 2)
    batch = max(1, min(deployment.max_num_seqs, int(fit)))
    return max(2, batch * 5 // 4) * deployment.declared.replicas


def saturated(deployment: Deployment, workload: Workload) -> Served:
    """As much as it can serve: there is always someone waiting."""
    served = with_users(deployment, workload, to_fill(deployment, workload))
    if not served.requests_per_s:
        longest, means = deployment.longest, sum(workload.means)
        want = f"want shorter ones: it serves up to {longest} tokens, prompt and answer together"
        raise BadInput("--input-tokens", f"{means:.0f} with the answer", want)
    return served


def _replayed(
    deployment: Deployment,
    prompts: Ints,
    outputs: Ints,
    *,
    arrivals_s: ArrayLike | None = None,
    users: int | None = None,
    watch: Callable[[Engine], Engine] | None = None,
) -> Replayed:
    answering, prefill = deployment.engines(), deployment.prefill_engines()
    if watch is not None:
        answering, prefill = [watch(one) for one in answering], [watch(one) for one in prefill]
    return replay(
        answering,
        prompts,
        outputs,
        arrivals_s=arrivals_s,
        users=users,
        router=deployment.declared.router,
        front_end=deployment.front_end,
        prefill=prefill,
        transfer=deployment.transfer,
    )


def _draw(law: Lengths, seed: int, purpose: str, requests: int) -> Ints:
    return _drawn(law, seed, purpose, 1 << requests.bit_length())[:requests]


@lru_cache(maxsize=32)
def _drawn(law: Lengths, seed: int, purpose: str, requests: int) -> Ints:
    return np.array([lengths.at(law, seed, purpose, k) for k in range(requests)], np.int64)


def _begun(outputs: Ints, users: int, seed: int) -> Ints:
    """The first answer of each user as if a part of it had been given before.

    Or else all that began together would end together, wave after wave, where lengths are alike.
    """
    left = generator(seed, "plan phases").uniform(size=min(users, len(outputs)))
    begun = outputs.copy()
    begun[: len(left)] = np.ceil(begun[: len(left)] * (1 - left))
    return begun


def _served(
    replayed: Replayed, prompts: Ints, window: tuple[float, float], skip: int = 0
) -> Served:
    counted = np.arange(len(prompts)) >= max(skip, int(WARMUP * len(prompts)))
    counted &= ~np.isnan(replayed.end_s)
    sent, first, end = replayed.sent_s, replayed.first_s, replayed.end_s
    tokens = replayed.tokens
    with np.errstate(invalid="ignore"):
        tpot = np.where(tokens > 1, (end - first) / np.maximum(tokens - 1, 1), np.nan)
        inside = (end > window[0]) & (end <= window[1])
    span_s = max(window[1] - window[0], 1e-9) if inside.any() else np.inf
    return Served(
        ttft_s=(first - sent)[counted],
        tpot_s=tpot[counted],
        e2e_s=(end - sent)[counted],
        tokens=tokens[counted],
        requests_per_s=float(inside.sum() / span_s),
        input_tokens_per_s=float(prompts[inside].sum() / span_s),
        output_tokens_per_s=float(tokens[inside].sum() / span_s),
        replayed=replayed,
    )
