"""What was measured and what it came to, in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from servescope.analysis.evidence import Evidence
from servescope.findings import Finding
from servescope.records import ANSWERED
from servescope.report.content import Section
from servescope.report.shown import names
from servescope.summary import StageSummary
from servescope.units import format_seconds, three_digits

PLACE = 20
_HOLDS_BACK = ("bottleneck", "saturation", "overload")
"""Kinds of findings that say what stands in the way of more."""


def section(evidence: Evidence) -> Section | None:
    """The answer, before any table."""
    summary = evidence.summary
    if not summary.stages:
        return Section(name="answer", title="Answer", sentences=["No request was sent."], lead=True)
    named = list(zip(names(evidence), summary.stages, strict=True))
    held = next((f for f in summary.findings if f.kind in _HOLDS_BACK), None)
    came = _of_one(named[0][1], held) if len(named) == 1 else _of_several(named, evidence)
    if held is not None:
        came = f"{held.sentence[:1].upper()}{held.sentence[1:]}. {came}"
    return Section(name="answer", title="Answer", sentences=[_measured(evidence), came], lead=True)


def _measured(evidence: Evidence) -> str:
    summary = evidence.summary
    stages = summary.stages
    total = sum(sum(stage.outcomes.values()) for stage in stages)
    answered = sum(_answered(stage) for stage in stages)
    found = evidence.run.manifest.endpoint
    engine = " ".join(filter(None, (found.get("engine"), found.get("engine_version"))))
    engine = engine.removeprefix("simulated ")
    named = " on ".join(filter(None, (found.get("model"), engine)))
    what = named or found.get("url") or "The target"
    how = "simulated" if summary.kind == "simulated" else "measured"
    load = f"under {stages[0].load}" if len(stages) == 1 else f"in {len(stages)} stages"
    windows = [w for w in (s.figures.get("window") for s in stages) if w]
    span = sum(w["end_s"] - w["start_s"] for w in windows)
    rest = "all" if answered == total > 0 else f"{answered:,}"
    of = f"of {total:,} requests over {format_seconds(span)}"
    return f"{what} was {how} {load}: {of} {rest} were answered."


def _answered(stage: StageSummary) -> int:
    return sum(stage.outcomes.get(name, 0) for name in ANSWERED)


def _of_one(stage: StageSummary, held: Finding | None) -> str:
    if not _answered(stage):
        return f"Nothing was answered{_foremost(stage)}."
    asked = f"Asked {three_digits(stage.asked_per_s)} requests/s, it" if stage.asked_per_s else "It"
    it = "It" if held is not None and held.kind == "overload" else asked  # the finding says it
    return f"{it} reached {_rates(stage)}, with {_latencies(stage)}{_slo(stage)}."


def _of_several(named: Sequence[tuple[str, StageSummary]], evidence: Evidence) -> str:
    answered = [(name, stage) for name, stage in named if _answered(stage)]
    if not answered:
        return f"Nothing was answered{_foremost(named[0][1])}."
    name, most = max(answered, key=lambda pair: pair[1].figures.get("requests_per_s") or 0.0)
    if any(stage.slo for _, stage in answered):
        within = _within(answered, evidence)
        bounds = ", ".join(bound.bound for bound in most.slo)
        if not within:
            return (
                f"No stage was within the SLO ({bounds}): at the most, {_at(name, most)}, it "
                f"reached {_rates(most)}, with {_latencies(most)}."
            )
        name, best = max(within, key=lambda pair: pair[1].figures.get("requests_per_s") or 0.0)
        return (
            f"Within the SLO ({bounds}) it reached {_rates(best)} at {_at(name, best)}, with "
            f"{_latencies(best)}."
        )
    kept = _named_by(evidence, "kept_up")
    for name, stage in answered:
        if stage.number in kept:  # beyond it, latencies depend on how long a stage lasted
            return f"At {_at(name, stage)} it reached {_rates(stage)}, with {_latencies(stage)}."
    return f"The most it reached was {_rates(most)} at {_at(name, most)}, with {_latencies(most)}."


def _within(
    answered: Sequence[tuple[str, StageSummary]], evidence: Evidence
) -> list[tuple[str, StageSummary]]:
    """The stages within the SLO: those that the findings name, else all but a sweep's probes."""
    good = _named_by(evidence, "within_slo")
    return [
        (name, stage)
        for name, stage in answered
        if all(bound.met for bound in stage.slo)
        and (stage.number in good if good else not evidence.offered(stage.number).probe)
    ]


def _named_by(evidence: Evidence, proof: str) -> set[float | str | None]:
    """The stages of the findings that rest on something of that name."""
    found = evidence.summary.findings
    return {one.evidence.get("stage") for one in found if proof in one.evidence}


def _at(name: str, stage: StageSummary) -> str:
    """A stage's name; a server that refuses most easily keeps to an SLO, so that is said."""
    lost = 1 - _answered(stage) / sum(stage.outcomes.values())
    return f"{name} ({three_digits(100 * lost)} % of it not answered)" if lost else name


def _rates(stage: StageSummary) -> str:
    figures = stage.figures
    told = [
        f"{three_digits(figures[key])} {unit}"
        for key, unit in (
            ("requests_per_s", "requests/s"),
            ("output_tokens_per_s", "output tokens/s"),
        )
        if figures.get(key) is not None
    ]
    return " and ".join(told) or "no rate"


def _latencies(stage: StageSummary) -> str:
    figures: dict[str, Any] = msgspec.to_builtins(stage.figures)
    told = [
        f"{label} P50 {format_seconds(found['p50'])}, P99 {format_seconds(found['p99'])}"
        for key, label in (("ttft_s", "TTFT"), ("itl_s", "ITL"), ("e2e_s", "end-to-end"))
        if (found := figures.get(key))
    ]
    return "; ".join(told) or "no latency to tell"


def _slo(stage: StageSummary) -> str:
    if not stage.slo:
        return ""
    missed = [bound.bound for bound in stage.slo if not bound.met]
    if missed:
        return f": it misses the SLO ({', '.join(missed)})"
    return f": within the SLO ({', '.join(bound.bound for bound in stage.slo)})"


def _foremost(stage: StageSummary) -> str:
    if not stage.reasons:
        return ""
    reason = stage.reasons[0]
    return f" ({reason.count:,} x {reason.outcome}: {reason.words[:160]})"
