"""How much the service takes: what the stages of one run show together.

Of open loads, up to which rate it keeps up, and what it comes to beyond. Of closed loads, from how
many users on more of them only wait. Of both, the knee, where throughput over latency is largest:
Kleinrock's power (*Power and deterministic rules of thumb for probabilistic problems in computer
communications*, ICC 1979); and the highest stage that met the SLO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from servescope.analysis.overload import pace, unanswered
from servescope.findings import Finding, Strength
from servescope.stats import Distribution
from servescope.units import format_seconds, three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.analysis.evidence import Evidence
    from servescope.goodput import Verdict

Proof = dict[str, float | str | None]

FULL = 0.95
"""Throughput has stopped rising where it is this part of the largest."""
KNEE_STAGES = 4
KNEE_CLEAR = 1.05
"""The power at the knee is so much above that at both ends of the sweep."""


class Point(NamedTuple):
    """One stage of a sweep."""

    stage: int
    load: str
    offered: float
    """Requests per second that were asked of an open load; users of a closed one."""
    answered: float
    """Requests per second answered over the whole stage, as the tables have it."""
    reached: float
    """The same over the stage, its steady part, or the second half of its arrivals, whichever is
    most: an engine that fills, and one that empties, show less than it can do."""
    keeps_up: bool | None
    """None where it cannot be told, and for closed loads."""
    latency_s: float | None
    """Mean end-to-end latency, in the steady part where there is one."""
    slo: list[Verdict]
    lost: str = ""
    """How many of its requests failed, where many did."""

    @property
    def power(self) -> float | None:
        """Throughput over latency."""
        return self.reached / self.latency_s if self.latency_s else None

    @property
    def within_slo(self) -> bool | None:
        """Whether it kept up and met every bound; None without bounds."""
        met = all(verdict.met for verdict in self.slo)
        return met and self.keeps_up is not False if self.slo else None


class Sweep(NamedTuple):
    """The stages of a run that differ in their load alone, by how much they ask."""

    open: bool
    cache: str | None
    """The pass over the same requests that they belong to, where there are several."""
    points: list[Point]

    @property
    def knee(self) -> Point | None:
        """Where power is largest; None where that is at an end of the sweep, or not plain."""
        powers = [point.power or 0.0 for point in self.points]
        if len(powers) < KNEE_STAGES:
            return None
        k = int(np.argmax(powers))
        ends = max(powers[0], powers[-1])
        return self.points[k] if powers[k] > KNEE_CLEAR * ends else None

    @property
    def unit(self) -> str:
        """What `offered` counts."""
        return "requests/s" if self.open else "users"


def sweeps(evidence: Evidence, over: Sequence[Finding] = ()) -> list[Sweep]:
    """The sweeps of a run: stages alike but for their rate, or their number of users.

    `over` are the findings of stages that are not kept up with.
    """
    overloaded = {finding.stage for finding in over}
    found: dict[tuple[bool, str | None], list[Point]] = {}
    for stage in evidence.summary.stages:
        offered = evidence.offered(stage.number)
        asked = offered.rate if offered.open else offered.users
        if not asked or offered.probe:
            continue
        columns = evidence.of_stage(stage.number)
        figures = stage.steady or stage.figures
        rates = [stage.figures["requests_per_s"], figures["requests_per_s"]]
        seen = pace(columns) if offered.open else None
        reached = max(rate or 0.0 for rate in (*rates, seen and seen.answers_per_s))
        e2e = figures.get("e2e_from_due_s" if offered.open else "e2e_s")
        point = Point(
            stage=stage.number,
            load=stage.load,
            offered=float(asked),
            answered=rates[0] or 0.0,
            reached=reached,
            keeps_up=False if stage.number in overloaded else (seen and seen.keeps_up) or None,
            latency_s=e2e.mean if isinstance(e2e, Distribution) else None,
            slo=stage.slo,
            lost=unanswered(stage),
        )
        found.setdefault((offered.open, offered.cache), []).append(point)
    return [
        Sweep(kind, cache, sorted(points, key=lambda point: point.offered))
        for (kind, cache), points in found.items()
    ]


def findings(evidence: Evidence, over: Sequence[Finding]) -> list[Finding]:
    """What the stages of a run show of the service's limits."""
    found: list[Finding] = []
    limits = _probed(evidence)
    for sweep in sweeps(evidence, over):
        if len({point.offered for point in sweep.points}) < 2:
            continue
        found += _limit(sweep, limits.get(sweep.cache)) if sweep.open else _full(sweep)
        found += _knee(sweep)
        found += _within_slo(sweep)
    return found


def _probed(evidence: Evidence) -> dict[str | None, tuple[int, float]]:
    """The limit that a sweep measured first: users of its probe and what they drew, by pass."""
    found: dict[str | None, tuple[int, float]] = {}
    for stage in evidence.summary.stages:
        offered, rate = evidence.offered(stage.number), stage.figures.get("requests_per_s")
        if offered.probe and (offered.users or 0) > 1 and rate:
            found[offered.cache] = (offered.users or 0, rate)
    return found


def _limit(sweep: Sweep, probed: tuple[int, float] | None) -> list[Finding]:
    """Up to which rate the service keeps up."""
    over = next((point for point in sweep.points if point.keeps_up is False), None)
    below = [point for point in sweep.points if over is None or point.offered < over.offered]
    kept = [point for point in below if point.keeps_up]
    proof: Proof = {}
    if probed is not None:
        proof = {"probe_users": float(probed[0]), "probe_requests_per_s": probed[1]}
    if over is None:
        if not kept:
            return []
        top, last = kept[-1], sweep.points[-1]
        sentence = f"up to {three_digits(top.offered)} requests/s the service keeps up; "
        if probed is not None:
            sentence += f"{probed[0]:,} users drew {three_digits(probed[1])}, about its limit"
        elif top is not last:
            sentence += f"whether at {three_digits(last.offered)}, so few requests do not tell"
        else:
            sentence += "its limit was not reached"
        proof |= {"kept_up": top.offered}
        return [_finding(sweep, sentence, top.stage, top.offered, proof=proof)]
    beyond = f"at {three_digits(over.offered)} it answers {three_digits(over.answered)}"
    if over.lost:
        beyond += f", and {over.lost}"
    proof |= {"first_not_kept_up": over.offered, "requests_per_s": over.answered}
    if kept:
        under = kept[-1]
        sentence = f"up to {three_digits(under.offered)} requests/s the service keeps up; {beyond}"
        proof |= {"kept_up": under.offered}
        stage, value = under.stage, under.offered
    else:
        stage, value = over.stage, over.answered
        sentence = (
            f"the service does not keep up: {beyond}; whether it does at a lower rate, so few "
            "requests do not tell"
            if below
            else f"the service does not keep up with the lowest rate: {beyond}"
        )
    return [_finding(sweep, sentence, stage, value, proof=proof, strength="shown")]


def _full(sweep: Sweep) -> list[Finding]:
    """From how many users on throughput stays what it is."""
    most = max(point.reached for point in sweep.points)
    k = next(k for k, point in enumerate(sweep.points) if point.reached >= FULL * most)
    full, last = sweep.points[k], sweep.points[-1]
    if full is last or not full.latency_s or not last.latency_s or full.offered == last.offered:
        return []
    sentence = (
        f"throughput stops rising at {full.offered:,.0f} users: {three_digits(full.answered)} "
        f"requests/s, and {three_digits(last.answered)} at {last.offered:,.0f}, where an answer "
        f"takes {format_seconds(last.latency_s)} instead of {format_seconds(full.latency_s)}"
    )
    proof: Proof = {
        "requests_per_s": full.answered,
        "most_requests_per_s": most,
        "e2e_mean_s": full.latency_s,
    }
    return [_finding(sweep, sentence, full.stage, full.offered, proof=proof)]


def _knee(sweep: Sweep) -> list[Finding]:
    """Where throughput costs the least latency."""
    knee = sweep.knee
    if knee is None or knee.latency_s is None:
        return []
    k = sweep.points.index(knee)
    below, above = sweep.points[k - 1], sweep.points[k + 1]
    sentence = (
        f"the knee is at {three_digits(knee.offered)} {sweep.unit} (between "
        f"{three_digits(below.offered)} and {three_digits(above.offered)}): there throughput over "
        f"latency is largest, {three_digits(knee.answered)} requests/s at a mean of "
        f"{format_seconds(knee.latency_s)}"
    )
    proof: Proof = {
        "requests_per_s": knee.answered,
        "e2e_mean_s": knee.latency_s,
        "knee_from": below.offered,
        "knee_to": above.offered,
    }
    return [_finding(sweep, sentence, knee.stage, knee.offered, proof=proof)]


def _within_slo(sweep: Sweep) -> list[Finding]:
    """The highest stage that met every bound, below the first that did not."""
    within = [point.within_slo for point in sweep.points]
    if None in within:
        return []
    first_bad = within.index(False) if False in within else len(within)
    if first_bad == len(within):
        top = sweep.points[-1]
        sentence = f"every stage met the SLO, to {three_digits(top.offered)} {sweep.unit}"
        return [
            _finding(sweep, sentence, top.stage, top.offered, proof={"within_slo": top.offered})
        ]
    bad = sweep.points[first_bad]
    missed = f"at {three_digits(bad.offered)} {_why_not(bad)}"
    if first_bad == 0:
        return [_finding(sweep, f"no stage met the SLO: {missed}", bad.stage, None)]
    good = sweep.points[first_bad - 1]
    sentence = (
        f"the highest load within the SLO is {three_digits(good.offered)} {sweep.unit}; {missed}"
    )
    return [_finding(sweep, sentence, good.stage, good.offered, proof={"within_slo": good.offered})]


def _why_not(point: Point) -> str:
    missed = [verdict for verdict in point.slo if not verdict.met]
    if not missed:
        return "the service did not keep up"
    value = missed[0].value
    return f"{missed[0].bound} was " + (
        "not measured" if value is None else f"missed with {format_seconds(value)}"
    )


def _finding(
    sweep: Sweep,
    sentence: str,
    stage: int,
    value: float | None,
    *,
    proof: Proof | None = None,
    strength: Strength = "likely",
) -> Finding:
    which = f", {sweep.cache} cache" if sweep.cache else ""
    return Finding(
        kind="saturation",
        sentence=sentence + which,
        strength=strength,
        value=value,
        evidence={"stage": float(stage), **(proof or {})},
    )
