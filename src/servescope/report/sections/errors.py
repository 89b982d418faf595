"""What did not complete, by class, in the server's own words."""

from __future__ import annotations

from servescope.analysis.evidence import Evidence
from servescope.report.content import Cell, Column, Section, Table
from servescope.report.shown import names
from servescope.summary import StageSummary

PLACE = 110
_MOST = 200


def section(evidence: Evidence) -> Section | None:
    """The most frequent reasons of each stage; nothing where all completed."""
    stages = evidence.summary.stages
    found = [
        (name, reason)
        for name, stage in zip(names(evidence), stages, strict=True)
        for reason in stage.reasons
    ]
    again = [
        said
        for name, stage in zip(names(evidence), stages, strict=True)
        if (said := _again(name, stage))
    ]
    if not found and not again:
        return None
    found.sort(key=lambda pair: -pair[1].count)
    rows: list[list[Cell]] = [
        [reason.outcome, reason.words, name, reason.count] for name, reason in found[:_MOST]
    ]
    left = len(found) - len(rows)
    more = [f"{left:,} more reasons are in summary.json."] if left else []
    table = Table(
        title="Requests that did not complete, with what the server said",
        columns=[
            Column(title="class"),
            Column(title="in the server's words"),
            Column(title="stage"),
            Column(title="requests", form="count"),
        ],
        rows=rows,
    )
    return Section(
        name="errors", title="Errors", sentences=again + more, tables=[table] if rows else []
    )


def _again(name: str, stage: StageSummary) -> str:
    """How many were tried more than once; empty where none was."""
    count = stage.attempts - sum(stage.outcomes.values()) + stage.never_sent
    if count <= 0:
        return ""
    return f"{name}: {count:,} sent again, since a connection that was kept alive was found closed."
