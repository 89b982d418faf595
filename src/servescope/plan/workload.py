"""What is asked of a deployment, and what comes of it in simulation.

All that is compared is served the same requests at the same times, but for the rate: the numbers
behind them are drawn once (common random numbers), so that a difference is none of chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from servescope import lengths
from servescope.engine import Work
from servescope.engine.deployment import deploy
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
_FEWEST, _MOST = 3000, 20000
"""Requests of a simulation of an open load."""
_TURNS = 10
"""So many times the requests in flight, at least."""
_ROUNDS, _FEWEST_ROUNDS = 8, 5
"""Of a closed loop, so many requests a user; the fewer where there are very many users."""
_LEAST_OF_ROUNDS, _MOST_OF_ROUNDS = 500, 12000
"""Requests of a closed loop; those of the fewest rounds may be more."""
DRAWN = 2000
"""Requests whose lengths are looked at."""


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
        prompts, outputs = self.draw(DRAWN)
        return float(prompts.mean()), float(outputs.mean())


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a load. Times in seconds, shape (n,), without the warm-up and without requests
    longer than what can ever be served. Requests that find the queue full are refused: they take
    for ever, so that they miss every bound on latency."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    tokens: Ints
    """Of the answers; 0 of those refused."""
    refused: float
    """The share of them that found the queue full."""
    requests_per_s: float
    """Answered while the load was on; those that come at a rate, in the long run."""
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
    with np.errstate(invalid="ignore"):  # between two that take for ever
        found = float(np.percentile(known, float(name.removeprefix("p"))))
    return math.inf if math.isnan(found) else found


def at_rate(
    deployment: Deployment,
    workload: Workload,
    rate: float,
    requests: int,
    full_per_s: float = math.inf,
) -> Served:
    """Requests come at so many per second; in the long run, no more than `full_per_s` of them are
    answered."""
    prompts, outputs = workload.draw(requests)
    sent_s = np.cumsum(workload.gaps(requests)) / rate
    replayed = _replayed(deployment, prompts, outputs, arrivals_s=sent_s)
    answered = ~np.isnan(replayed.end_s)
    most_per_s = full_per_s / max(1, int(answered.sum()))
    each_per_s = np.where(answered, min(rate / requests, most_per_s), 0.0)
    return _served(deployment, replayed, prompts, outputs, each_per_s)


def for_long(deployment: Deployment, workload: Workload, rate: float, full_per_s: float) -> Served:
    """Requests come at so many per second, enough of them to tell what comes of it in the long run.

    Ten times as many as are in flight, and, since a queue settles the more slowly the nearer it is
    to saturation (at `full_per_s`), more beside that.
    """
    load = min(rate / full_per_s, 1 - 1e-3)
    requests = int(min(max(_FEWEST, _TURNS / (1 - load) ** 2), _MOST))
    served = at_rate(deployment, workload, rate, requests, full_per_s)
    in_flight = rate * statistic(served.e2e_s[np.isfinite(served.e2e_s)], "mean")
    more = int(min(_TURNS * in_flight, _MOST))
    if more <= requests:
        return served
    return at_rate(deployment, workload, rate, more, full_per_s)


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
    (each_per_s,) = tapers(replayed.end_s, users)
    skip = users if users > 1 else 0
    return _served(deployment, replayed, prompts, outputs, each_per_s, skip=skip)


def tapers(end_s: Floats, users: int, parts: int = 1) -> Floats:
    """What each answer of a closed loop counts for in throughput, 1/s, shape (parts, n).

    Users may come in waves, of which a plain count has one more or one less by chance. So answers
    are weighed by a Hann window; neither the first two rounds are in it, which began with an empty
    engine, nor the last, when the first user has nothing more to ask. Several `parts` of that time,
    one after another, have a window each.
    """
    ended = np.sort(end_s[~np.isnan(end_s)])
    if len(ended) < 2:
        return np.zeros((parts, len(end_s)))
    rounds = len(ended) // users
    first, last = (2 * users, (rounds - 1) * users) if rounds > 3 else (1, len(ended))
    begin_s, part_s = ended[first - 1], max(ended[last - 1] - ended[first - 1], 1e-9) / parts
    within = (end_s - begin_s) / part_s - np.arange(parts)[:, None]
    weights = (1 - np.cos(2 * np.pi * within)) / part_s
    return np.where((within > 0) & (within <= 1), weights, 0.0)


def enough(users: int) -> int:
    """Requests for a closed loop to settle."""
    most = max(_MOST_OF_ROUNDS, _FEWEST_ROUNDS * users)
    return min(max(_ROUNDS * users, _LEAST_OF_ROUNDS), most)


def front_end_busy(served: Served, config: EngineConfig) -> float:
    """The share of the time in which front ends are busy."""
    replayed = served.replayed
    return min(1.0, replayed.front_end_s / config.replicas / max(replayed.makespan_s, 1e-12))


def largest_batch(deployment: Deployment, workload: Workload) -> int:
    """Sequences of mean length that a replica's KV cache holds, or that it has at most."""
    prompt, output = workload.means
    fit = deployment.kv_tokens / (prompt + output / 2)
    return max(1, min(deployment.max_num_seqs, int(fit)))


def to_fill(deployment: Deployment, workload: Workload) -> int:
    """Users that are enough to keep all replicas as busy as they can be."""
    each = max(2, largest_batch(deployment, workload) * 5 // 4)
    return each * deployment.declared.replicas


def saturated(config: EngineConfig, workload: Workload) -> Served:
    """As much as it can serve: there is always someone waiting, and nobody refused.

    Raises BadInput where requests are longer than what it can ever serve.
    """
    deployment = deploy(msgspec.structs.replace(config, max_waiting=None))
    served = with_users(deployment, workload, to_fill(deployment, workload))
    if not served.requests_per_s:
        raise shorter(workload, unserved(deployment, workload))
    return served


def unserved(deployment: Deployment, workload: Workload) -> str:
    """Why none of the requests can ever be served; '' where some can."""
    prompts, outputs = workload.draw(DRAWN)
    if not too_long(deployment, prompts, outputs).all():
        return ""
    declared, prompt, output = deployment.declared, int(prompts[0]), int(outputs[0])
    where = f"{declared.gpu} with tp={declared.tp}" if declared.gpu else "it"
    if prompt + output > deployment.longest:
        return f"{where} serves at most {deployment.longest:,} tokens, prompt and answer together"
    return f"{where} serves none of them: {_never(deployment.engine(), prompt, output)}"


def shorter(workload: Workload, why: str) -> BadInput:
    """What to raise where nothing that is asked for can be served."""
    asked = f"{sum(workload.means):.0f} with the answer"
    return BadInput("--input-tokens", asked, f"want shorter ones: {why}")


def too_long(deployment: Deployment, prompts: Ints, outputs: Ints) -> NDArray[np.bool_]:
    """Which requests can never be served, shape (n,)."""
    engine, each = deployment.engine(), zip(prompts.tolist(), outputs.tolist(), strict=True)
    return np.array([_never(engine, *tokens) is not None for tokens in each], np.bool_)


def _never(engine: Engine, prompt: int, output: int) -> str | None:
    """Why it could never be served."""
    try:
        engine.check(Work((), output, prompt_tokens=prompt))
    except ValueError as error:
        return str(error)
    return None


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
    deployment: Deployment,
    replayed: Replayed,
    prompts: Ints,
    outputs: Ints,
    each_per_s: Floats,
    *,
    skip: int = 0,
) -> Served:
    """`each_per_s` is what each request counts for in throughput."""
    counted = np.arange(len(prompts)) >= max(skip, int(WARMUP * len(prompts)))
    left = np.flatnonzero(np.isnan(replayed.end_s))
    counted[left] &= ~too_long(deployment, prompts[left], outputs[left])
    sent, first, end = (one[counted] for one in (replayed.sent_s, replayed.first_s, replayed.end_s))
    tokens, refused = replayed.tokens[counted], np.isnan(end)
    tpot = np.where(tokens > 1, (end - first) / np.maximum(tokens - 1, 1), np.nan)
    return Served(
        ttft_s=np.where(refused, np.inf, first - sent),
        tpot_s=np.where(refused, np.inf, tpot),
        e2e_s=np.where(refused, np.inf, end - sent),
        tokens=tokens,
        refused=float(refused.mean()) if len(refused) else 0.0,
        requests_per_s=float(each_per_s.sum()),
        input_tokens_per_s=float(each_per_s @ prompts),
        output_tokens_per_s=float(each_per_s @ replayed.tokens),
        replayed=replayed,
    )
