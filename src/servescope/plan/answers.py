"""All questions about a deployment, asked together; and deployments side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from servescope import __version__
from servescope.engine.config import EngineConfig, parse
from servescope.engine.deployment import deploy, hardware, settle
from servescope.errors import BadInput
from servescope.plan.cost import Cost, cost
from servescope.plan.error_bars import FITTED, ErrorBar, error_bar
from servescope.plan.fleet import Fleet, Traffic, fleet
from servescope.plan.memory import SIZES, Memory, memory
from servescope.plan.rate import Rate, highest_rate
from servescope.plan.shares import Shares, shares
from servescope.plan.size import Choice, Size, choose, size
from servescope.plan.workload import DRAWN, too_long
from servescope.plugins import one_of

if TYPE_CHECKING:
    from servescope.goodput import Bound
    from servescope.plan.workload import Workload

UTILIZATIONS = (0.2, 0.4, 0.9)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be planned."""

    config: EngineConfig
    workload: Workload
    sizes: tuple[int, ...] = ()
    """Tensor-parallel sizes to choose from; none: those of `SIZES` that the model allows."""
    bounds: tuple[Bound, ...] = ()
    traffic: Traffic | None = None
    context_tokens: int = 2048
    price_per_gpu_hour: float | None = None
    """None: the catalogue's."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One memory utilisation."""

    memory_utilization: float
    memory: Memory
    why_not: str
    """Why it serves none of the requests, though the model fits."""
    output_tokens_per_s: float | None
    """When full; None where it serves nothing."""
    error: ErrorBar | None = None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. What follows `choice` is for the size chosen; None where nothing fits."""

    schema: int = 1
    servescope: str = __version__
    target: str
    """As a `sim:` target."""
    input_tokens: str
    output_tokens: str
    mean_input_tokens: float
    mean_output_tokens: float
    seed: int
    slo: list[str]
    choice: Choice
    rate: Rate | None = None
    """None without an SLO."""
    traffic: Traffic | None = None
    fleet: Fleet | None = None
    """None without traffic, where not even one request at a time is served within the SLO, or where
    `MOST_REPLICAS` are not enough."""
    costs: list[Cost] = []
    utilization: list[Setting] = []
    shares: Shares | None = None
    refused: float = 0.0
    """The share of the requests that are longer than what it can ever serve; the answers are for
    the others."""
    longest: int | None = None
    """Tokens of the longest prompt and answer together that it serves; some engines limit prompts,
    too."""
    latency_error: ErrorBar | None = None
    replicas: int = 1
    prefill_replicas: int = 0
    """Of a group, which stands for one replica in all questions where several are declared."""

    @property
    def unit(self) -> str:
        """What is meant where one is asked about, and what fleets have more of."""
        return _unit(self.replicas, self.prefill_replicas)


def _unit(replicas: int, prefill_replicas: int) -> str:
    return "group" if replicas + prefill_replicas > 1 else "replica"


def answer(question: Question) -> Answers:
    """Ask them all. Raises BadInput where a setting is wrong."""
    config, workload, bounds = question.config, question.workload, question.bounds
    sizes = sizes_of(question)
    choice = choose(config, sizes, workload, bounds, question.context_tokens)
    about: dict[str, Any] = {
        "replicas": config.replicas,
        "prefill_replicas": config.prefill_replicas,
        "input_tokens": str(workload.inputs),
        "output_tokens": str(workload.outputs),
        "mean_input_tokens": workload.means[0],
        "mean_output_tokens": workload.means[1],
        "seed": workload.seed,
        "slo": [bound.text for bound in bounds],
        "choice": choice,
        "traffic": question.traffic,
    }
    if choice.tp is None:
        return Answers(target=str(config), **about)
    config = msgspec.structs.replace(config, tp=choice.tp)
    chosen = next(one for one in choice.sizes if one.tp == choice.tp)
    rate = highest_rate(config, workload, bounds, known=chosen.rate) if bounds else None
    needed = _needed(question, config, chosen)
    traffic, users = question.traffic, None
    if traffic and needed and traffic.users:
        users = -(-traffic.users // needed.replicas)
    deployment = deploy(config)
    return Answers(
        target=str(config),
        refused=float(too_long(deployment, *workload.draw(DRAWN)).mean()),
        longest=deployment.longest,
        rate=rate,
        fleet=needed,
        costs=_costs(question, config, chosen, rate, needed),
        utilization=_utilizations(question, config, chosen),
        shares=shares(config, workload, users),
        latency_error=error_bar(config, "latency"),
        **about,
    )


def _needed(question: Question, config: EngineConfig, chosen: Size) -> Fleet | None:
    """None without traffic, or where no number that can be simulated is enough."""
    if question.traffic is None or (chosen.rate is not None and not chosen.rate.requests_per_s):
        return None
    return fleet(
        config,
        question.workload,
        question.traffic,
        question.bounds,
        full_per_s=chosen.requests_per_s,
        each_per_s=chosen.rate.requests_per_s if chosen.rate else None,
    )


def sizes_of(question: Question) -> list[int]:
    """The sizes to try: those asked for, or else those of `SIZES` that can be. Raises BadInput
    where one asked for cannot be, or none."""
    settled = settle(question.config)
    if settled.calibration is not None or settled.gpu is None:
        wrong = [size for size in question.sizes if size != settled.tp]
        if wrong:
            want = f"want {settled.tp}, that of the calibration: its constants do not transfer to"
            raise BadInput("--tp", wrong[0], f"{want} other sizes")
        return [settled.tp]
    asked = question.sizes or ((settled.tp,) if settled.tp > 1 else ())
    found: list[int] = []
    impossible: list[BadInput] = []
    for tp in asked or SIZES:
        try:
            memory(msgspec.structs.replace(settled, tp=tp), question.context_tokens)
            found.append(tp)
        except BadInput as error:
            if error.field not in ("tp", "nodes"):
                raise
            impossible.append(BadInput("--tp", tp, error.want) if asked else error)
    if impossible and (asked or not found):
        raise impossible[0]
    return found


def _costs(
    question: Question,
    config: EngineConfig,
    full: Size,
    rate: Rate | None,
    needed: Fleet | None,
) -> list[Cost]:
    price = _price_per_gpu_hour(question, config)
    if price is None:
        return []
    error = error_bar(config, "throughput")
    name = _unit(config.replicas, config.prefill_replicas)
    tokens = (full.input_tokens_per_s, full.output_tokens_per_s)
    found = [cost(price, config.gpus, *tokens, at=f"one {name}, always full", error=error)]
    if rate is not None and rate.requests_per_s:
        served = (each * rate.requests_per_s / full.requests_per_s for each in tokens)
        at = f"one {name}, as much as the SLO allows"
        found.append(cost(price, config.gpus, *served, at=at, error=error))
    if needed is not None:
        both = (needed.input_tokens_per_s, needed.output_tokens_per_s)
        at = f"{needed.traffic} on {needed.replicas} {name}{'s' * (needed.replicas > 1)}"
        found.append(cost(price, needed.gpus, *both, at=at, error=error))
    return found


def _price_per_gpu_hour(question: Question, config: EngineConfig) -> float | None:
    """What is paid, or the catalogue's; None where neither is known."""
    settled, price = settle(config), question.price_per_gpu_hour
    if price is None and settled.gpu is not None:
        return hardware(settled)[0].price_per_hour
    return price


def _utilizations(question: Question, config: EngineConfig, chosen: Size) -> list[Setting]:
    settled = settle(config)
    own = settled.memory_utilization
    if own is None or settled.kv_tokens is not None:  # nothing depends on it
        return []

    def at(share: float) -> Size:
        if share == own:
            return chosen
        changed = msgspec.structs.replace(config, memory_utilization=share)
        return size(changed, question.workload, question.context_tokens)

    sizes = {share: at(share) for share in sorted({*UTILIZATIONS, own})}
    return [
        Setting(
            memory_utilization=share,
            memory=one.memory,
            why_not=one.why_not,
            output_tokens_per_s=one.output_tokens_per_s if one.serves else None,
            error=chosen.error,
        )
        for share, one in sizes.items()
    ]


# --- side by side ---------------------------------------------------------------------------------


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of several deployments."""

    label: str
    target: str
    price_per_gpu_hour: float | None = None
    why_not: str = ""
    """Why it serves nothing; what follows is then empty."""
    tp: int | None = None
    gpus: int | None = None
    """Of one replica, or of the group that is declared."""
    output_tokens_per_s: float | None = None
    """Of all those, when full."""
    ratio: float | None = None
    """Of that to the first side's that has one."""
    per_gpu: float | None = None
    """Requests per second of one GPU: within the SLO if there is one, or else when full."""
    alone_tpot_s: float | None = None
    front_end: float = 0.0
    """The share of the time in which front ends are busy when full."""
    kv_tokens: int | None = None
    """Of one replica; None where nothing said how many."""
    sequences: int | None = None
    """Of `context_tokens` each: as many as its KV cache holds, or as it has at most."""
    per_million_tokens: float | None = None
    """Dollars for tokens in and out, at `per_gpu`."""
    fleet: Fleet | None = None
    """For the traffic, if there is any; None where no number that can be simulated is enough."""
    error: ErrorBar | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Sides that differ in one setting."""

    setting: str
    context_tokens: int
    slo: list[str]
    traffic: Traffic | None
    sides: list[Side]


def compare(question: Question, field: str, text: str) -> Comparison:
    """Lay the values of 'SETTING=a,b' side by side; raises BadInput naming `field`."""
    key, equals, values = text.partition("=")
    known = ["engine", *(name for name in EngineConfig.__struct_fields__ if name != "engine")]
    if key not in known:
        raise BadInput(field, text, f"want SETTING=a,b with SETTING {one_of(key, known)}")
    if not equals or not all(values.split(",")):
        raise BadInput(field, text, f"want SETTING=a,b such as {key}=a,b")
    if question.config.calibration is not None and key in FITTED:
        want = f"want another setting: a calibration is of one {key}"
        raise BadInput(field, text, want)
    sides: list[Side] = []
    wrong: list[BadInput] = []
    for value in values.split(","):
        try:
            side = _side(question, field, key, value, next((s for s in sides if s.tp), None))
        except BadInput as error:  # of this side alone, if it is not the value that is wrong
            if error.field in (field, key):
                raise
            wrong.append(error)
            label = f"{key}={value}"
            side = Side(label=label, target=label, why_not=error.want)
        sides.append(side)
    if len(wrong) == len(sides):
        raise wrong[0]
    return Comparison(
        setting=key,
        context_tokens=question.context_tokens,
        slo=[bound.text for bound in question.bounds],
        traffic=question.traffic,
        sides=sides,
    )


def _side(question: Question, field: str, key: str, value: str, first: Side | None) -> Side:
    changed = EngineConfig(engine=value) if key == "engine" else parse(field, f"?{key}={value}")
    own: dict[str, Any] = {key: getattr(changed, key)}
    sizes = question.sizes
    if key == "tp":
        sizes = (changed.tp,)
    try:
        config = msgspec.structs.replace(question.config, **own)
    except ValueError as error:
        raise BadInput(field, f"{key}={value}", str(error)) from None
    question = msgspec.structs.replace(question, config=config, sizes=sizes)
    context, workload = question.context_tokens, question.workload
    choice = choose(config, sizes_of(question), workload, question.bounds, context)
    price = _price_per_gpu_hour(question, config)
    about: dict[str, Any] = {
        "label": f"{key}={value}",
        "price_per_gpu_hour": price,
        "tp": choice.tp,
    }
    if choice.tp is None:
        return Side(target=str(config), why_not="does not fit", **about)
    found = next(one for one in choice.sizes if one.tp == choice.tp)
    per_hour = (price or 0.0) * found.gpus
    busy = found.rate.requests_per_s / found.requests_per_s if found.rate else 1.0
    tokens_per_s = (found.input_tokens_per_s + found.output_tokens_per_s) * busy
    held = min(found.memory.sequences, found.memory.max_num_seqs)
    before = first.output_tokens_per_s if first else found.output_tokens_per_s
    return Side(
        target=str(msgspec.structs.replace(config, tp=choice.tp)),
        gpus=found.gpus,
        output_tokens_per_s=found.output_tokens_per_s,
        ratio=found.output_tokens_per_s / before if before else None,
        per_gpu=found.per_gpu,
        alone_tpot_s=found.alone_tpot_s,
        front_end=found.front_end,
        kv_tokens=None if found.memory.assumed else found.memory.kv_tokens,
        sequences=None if found.memory.assumed else held,
        fleet=_needed(question, msgspec.structs.replace(config, tp=choice.tp), found),
        per_million_tokens=per_hour / (tokens_per_s * 3600e-6) if per_hour * busy else None,
        error=found.error,
        **about,
    )
