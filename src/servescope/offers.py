"""The stages of a trial, their loads drawn, and what must be refused before the first request."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from servescope.client import machine
from servescope.errors import BadInput
from servescope.experiment import DEFAULT_LIMIT, Plan, Trial
from servescope.load import Closed, Later, Limit, Load, Open
from servescope.loads.sweep import Rate
from servescope.loads.trace import FromTrace
from servescope.seeds import generator
from servescope.stage import most_connections
from servescope.store import Stage

LINE_BYTES, TOKEN_BYTES, USUAL_TOKENS = 600, 8, 256
MODEST_CONNECTIONS, MODEST_RATE = 16, 4.0
"""What a public address may get from somebody who does not say that it is theirs."""


@dataclass
class Offer:
    """A stage and its load."""

    stage: Stage
    load: Load | Later
    limit: Limit
    seed_index: int
    drawn: Open | Closed | None = None
    """None where the load depends on the stages before it."""


class _Wanted(NamedTuple):
    load: Load | Later
    limit: Limit
    seed_index: int
    warmup: bool = False
    probe: bool = False
    cache: str | None = None


def offers(plan: Plan) -> list[Offer]:
    """Every stage, its load drawn where it can be. Raises BadInput."""
    found = []
    for load, limit, seed_index, warmup, probe, cache in _wanted(plan):
        stage = Stage(load=str(load), open=True, warmup=warmup, probe=probe, cache=cache)
        found.append(Offer(stage, load, limit, seed_index))
        if hasattr(load, "offer"):
            draw(plan, found[-1], cast("Load", load))
    return found


def _wanted(plan: Plan) -> Iterator[_Wanted]:
    """Warm-up is the first load once more, with a limit of its own."""
    shift = 0
    if plan.warmup is not None:
        shift = 1
        yield _Wanted(plan.loads[0], plan.warmup, 0, warmup=True)
    for k, load in enumerate(plan.loads):
        passes: list[str | None] = [*plan.trial.repeat_cache] or [None]
        # A trace has an end of its own.
        whole = isinstance(load, FromTrace) and plan.limit is DEFAULT_LIMIT
        for cache in passes:
            limit, probe = Limit() if whole else plan.limit, _is_probe(plan, k)
            yield _Wanted(load, limit, k + shift, probe=probe, cache=cache)


def _is_probe(plan: Plan, k: int) -> bool:
    """Whether a load is one of the two from which a sweep's rates are settled."""
    return hasattr(plan.loads[k], "offer") and any(
        isinstance(load, Rate) for load in plan.loads[k + 1 : k + 3]
    )


def draw(plan: Plan, offer: Offer, load: Load) -> None:
    """Draw the load of a stage and note in the stage what it is. Raises BadInput."""
    stage, trial = offer.stage, plan.trial
    drawn = load.offer(offer.limit, generator(plan.seed, "arrivals", offer.seed_index))
    stage.load = f"{load}, {stage.cache} cache" if stage.cache else str(load)
    offer.drawn = drawn
    if isinstance(drawn, Open):
        if not len(drawn.due_ns):
            raise BadInput("--load", str(load), "offers no request in this time; want longer")
        stage.rate = drawn.rate
        cap = trial.max_concurrency
        if cap is not None and cap < len(trial.targets) and not trial.each:
            want = f"want at least one for each of the {len(trial.targets)} targets"
            raise BadInput("--max-concurrency", cap, want)
        return
    if trial.max_concurrency is not None:
        want = f"goes with an open load; {load} has its own"
        raise BadInput("--max-concurrency", trial.max_concurrency, want)
    if drawn.users < len(trial.targets) and not trial.each:
        want = f"want at least one user for each of the {len(trial.targets)} targets"
        raise BadInput("--load", str(load), want)
    stage.open, stage.users = False, drawn.users


def settle(plan: Plan, offer: Offer, requests_per_s: list[float]) -> None:
    """Draw a load that depends on what the stages before it came to. Raises BadInput."""
    later = cast("Later", offer.load)
    draw(plan, offer, later.settle(requests_per_s))


def allow_files(found: list[Offer], trial: Trial) -> None:
    """Raise the limit on open files. Raises BadInput if a load wants more connections than fit."""
    for offer in found:
        if offer.drawn is not None:
            machine.allow_connections(offer.drawn, str(offer.load), trial)


def room_bytes(plan: Plan, found: list[Offer]) -> int:
    """About what the results will take: a line a request, and what waits to be read for it."""
    tokens = (plan.output_tokens.largest() if plan.output_tokens else None) or USUAL_TOKENS
    requests = sum(
        len(offer.drawn.due_ns) if isinstance(offer.drawn, Open) else offer.limit.requests or 0
        for offer in found
        if isinstance(offer.drawn, Open) or offer.limit.duration_s is None
    )
    times = len(plan.trial.targets) if plan.trial.each else 1
    return requests * times * (LINE_BYTES + TOKEN_BYTES * tokens)


def _is_public(address: str) -> bool:
    """Whether it is, or may be: only a proxy knows what stands behind another name."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return address != "localhost"


def check_ownership(trial: Trial, found: list[Offer], address: str) -> None:
    """A public address is loaded more than modestly only by someone who says that it is theirs."""
    if trial.i_own_this or not _is_public(address):
        return
    for offer in found:
        drawn = offer.drawn
        if drawn is None:
            continue
        rate = drawn.rate if isinstance(drawn, Open) else None
        if (
            most_connections(drawn, trial.max_concurrency) > MODEST_CONNECTIONS
            or (rate or 0) > MODEST_RATE
        ):
            want = f"{address} is a public address: want --i-own-this for such a load"
            raise BadInput("--load", offer.stage.load, want)
