"""A run's directory to its summary: the figures and the doubts of each stage."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from servescope import goodput, metrics, telemetry
from servescope.doubts import Doubt, StageFacts, doubts
from servescope.doubts.generator import Generator, generator, own_limit
from servescope.findings import Finding
from servescope.records import ABSENT, OUTCOMES, Columns, Sample
from servescope.store import SCHEMA, Manifest, Run, Stage
from servescope.telemetry.resources import Resources, Work, resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.goodput import Slo
    from servescope.telemetry import Telemetry

_TOKENLESS = ("ttft_s", "ttfo_s", "ttft_from_due_s")


class Reason(msgspec.Struct, kw_only=True):
    """Requests that did not complete, alike in outcome and in the server's words."""

    outcome: str
    count: int
    words: str


class TargetSummary(msgspec.Struct, kw_only=True):
    """One target's part of a stage."""

    target: str
    outcomes: dict[str, int]
    figures: dict[str, Any]


class StageSummary(msgspec.Struct, kw_only=True):
    """One stage: what came of its requests, and the figures."""

    load: str
    number: int
    """As in the records."""
    outcomes: dict[str, int]
    figures: dict[str, Any]
    asked_per_s: float | None = None
    """Requests per second that were due while an open load lasted; None of a closed one."""
    doubts: list[Doubt] = []
    reasons: list[Reason] = []
    slo: list[goodput.Verdict] = []
    attempts: int = 0
    """Sendings in all: above the number of requests where some were tried again."""
    never_sent: int = 0
    generator: Generator = Generator()
    """How the load generator did: what the doubts about it are judged by."""
    targets: list[TargetSummary] = []
    """Each target's part, where there are several."""
    resources: list[Resources] = []
    """What each source told of its engine, GPUs or host over the stage's window."""
    steady: dict[str, Any] | None = None
    """The figures over the steady part of the stage; beside those of the whole, never instead."""
    unsteady: str | None = None
    """Why it has no steady part."""


class Summary(msgspec.Struct, kw_only=True):
    """What `summary.json` holds."""

    schema: int = SCHEMA
    kind: str
    name: str
    complete: bool
    """False: the run was interrupted or killed; the figures are of what there is."""
    ended_by: str | None
    """What ended an incomplete run: a signal, or a reason; None where it was complete."""
    target: str
    """What was measured, in one line: model, engine, protocol, URL."""
    started_utc: str
    directory: str
    """Where the run lies; relative to where it was summarised."""
    doubts: list[Doubt]
    """Those of all stages; a stage's own list says which they are."""
    stages: list[StageSummary]
    findings: list[Finding] = []
    """What the analyses found, in the order in which a reader wants it."""
    notes: list[str] = []
    """What else should be known of the run."""
    collected: dict[str, str] = {}
    """What else was read while it went on: of each source `read`, or why it was not."""


def summarise(run: Run) -> Summary:
    """Work out the summary of a run from its directory alone."""
    samples = run.samples()
    return summary_of(run, run.columns(), samples, telemetry.read(samples))


def summary_of(run: Run, columns: Columns, samples: Sequence[Sample], told: Telemetry) -> Summary:
    """The summary of a run whose records and samples have been read."""
    manifest, of_stage = run.manifest, defaultdict(list)
    for sample in samples:
        if "stage" in sample.labels:
            of_stage[sample.labels["stage"]].append(sample)
    trial = manifest.trial
    slo, gate = goodput.bounds(trial.get("slo") or [], trial.get("goodput") or [])
    reasons = _reasons(run)
    stages = [
        _stage(
            manifest,
            stage,
            columns.where(columns.stage == number),
            number=number,
            samples=of_stage[str(number)],
            told=told,
            bounds=(slo, gate),
            reasons=reasons.get(number, []),
        )
        for number, stage in enumerate(s for s in manifest.stages if not s.warmup)
        if stage.start_ns is not None
    ]
    return Summary(
        kind=manifest.kind,
        name=manifest.name,
        complete=manifest.finished_utc is not None and manifest.interrupted is None,
        ended_by=manifest.interrupted or (None if manifest.finished_utc else "it was killed"),
        target=_target(manifest),
        started_utc=manifest.started_utc,
        directory=str(run.path),
        doubts=[doubt for stage in stages for doubt in stage.doubts],
        stages=stages,
        notes=manifest.notes,
        collected=manifest.collected,
    )


def _target(manifest: Manifest) -> str:
    found = manifest.endpoint
    engine = " ".join(filter(None, (found.get("engine"), found.get("engine_version"))))
    others = len(manifest.targets) - 1
    where = found.get("url", "") + (f" and {others} more" if others > 0 else "")
    return ", ".join(filter(None, (found.get("model"), engine, found.get("protocol"), where)))


def as_json(summary: Summary) -> bytes:
    """What `summary.json` holds."""
    return msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"


def _stage(
    manifest: Manifest,
    stage: Stage,
    columns: Columns,
    *,
    number: int,
    samples: Sequence[Sample],
    told: Telemetry,
    bounds: tuple[Slo | None, Slo | None],
    reasons: list[Reason],
) -> StageSummary:
    slo, gate = bounds
    figures = metrics.figures(columns, slo=slo)
    if not manifest.trial.get("stream", True):
        # An answer in one piece does not show when its first token was made.
        figures.update(dict.fromkeys(_TOKENLESS))
        if slo is not None and any(goodput.METRICS[b.metric] in _TOKENLESS for b in slo.bounds):
            figures.update(goodput_requests_per_s=None, goodput_ratio=None)
    facts = StageFacts(
        label=stage.load,
        open=stage.open,
        rate=stage.rate,
        users=stage.users,
        planned=stage.planned,
        max_concurrency=manifest.trial.get("max_concurrency"),
        streamed=manifest.trial.get("stream", True),
        interrupted=manifest.interrupted is not None or manifest.finished_utc is None,
        exhausted=_exhausted(reasons),
    )
    verdicts = goodput.check_slo(gate, figures) if gate is not None else []
    return StageSummary(
        load=stage.load,
        number=number,
        outcomes=metrics.outcomes(columns),
        figures=figures,
        asked_per_s=metrics.asked_per_s(columns) if stage.open else None,
        doubts=doubts(facts, columns, figures, samples),
        reasons=reasons,
        slo=verdicts,
        attempts=int(np.sum(columns.attempts[columns.sent_ns != ABSENT])),
        never_sent=int(np.sum(columns.sent_ns == ABSENT)),
        generator=generator(columns, samples),
        targets=_parts(manifest, columns),
        resources=_resources(manifest, told, columns),
    )


def _resources(manifest: Manifest, told: Telemetry, columns: Columns) -> list[Resources]:
    window, answered = metrics.stage_window(columns), columns.answered()
    if window is None:
        return []
    asked, made = (
        None if (tokens == ABSENT).any() else int(tokens.sum())
        for tokens in (answered.input_tokens, answered.output_tokens)
    )
    work = Work(len(answered), asked, made, here=all(map(is_here, manifest.targets)))
    return resources(told, window.start_s, window.end_s, work)


def is_here(url: str) -> bool:
    """Whether a target is on this machine by its URL: a Unix socket, or loopback."""
    where = url.partition("://")[2]
    return url.startswith("http+unix:") or where.startswith(("localhost:", "127.", "[::1]"))


def _parts(manifest: Manifest, columns: Columns) -> list[TargetSummary]:
    if len(manifest.targets) < 2:
        return []
    parts = [columns.where(columns.target == k) for k in range(len(manifest.targets))]
    return [
        TargetSummary(target=url, outcomes=metrics.outcomes(part), figures=metrics.figures(part))
        for url, part in zip(manifest.targets, parts, strict=True)
    ]


def _exhausted(reasons: Sequence[Reason]) -> dict[str, int]:
    """Requests that this machine could not send, by what it had no more of."""
    found: Counter[str] = Counter()
    for reason in reasons:
        lacking = own_limit(reason.outcome, reason.words)
        if lacking is not None:
            found[lacking] += reason.count
    return dict(found)


def _reasons(run: Run) -> dict[int, list[Reason]]:
    """Reasons by stage, most frequent first."""
    counts: Counter[tuple[int, str, str]] = Counter()
    for record in run.records():
        if record.reason:
            counts[record.stage, record.outcome, record.reason] += 1
    found: dict[int, list[Reason]] = {}
    for (stage, outcome, words), count in counts.most_common():
        found.setdefault(stage, []).append(Reason(outcome=outcome, count=count, words=words))
    return found


def nothing_answered(summary: Summary) -> bool:
    """Whether no request of the run got an answer."""
    answered = (OUTCOMES[0], OUTCOMES[1])
    return not any(stage.outcomes.get(name) for stage in summary.stages for name in answered)
