"""What did not complete, by class, in the server's own words."""

from __future__ import annotations

from servescope.analysis.evidence import Evidence
from servescope.report.content import Cell, Column, Section, Table
from servescope.report.shown import names

PLACE = 110
_MOST = 200


def section(evidence: Evidence) -> Section | None:
    """The most frequent reasons of each stage; nothing where all completed."""
    summary = evidence.summary
    rows: list[list[Cell]] = [
        [reason.outcome, reason.words, name, reason.count]
        for name, stage in zip(names(evidence), summary.stages, strict=True)
        for reason in stage.reasons
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: -int(str(row[3])))
    more = [f"{len(rows) - _MOST:,} more reasons are in summary.json."] if len(rows) > _MOST else []
    table = Table(
        title="Requests that did not complete, with what the server said",
        columns=[
            Column(title="class"),
            Column(title="in the server's words"),
            Column(title="stage"),
            Column(title="requests", form="count"),
        ],
        rows=rows[:_MOST],
    )
    return Section(name="errors", title="Errors", sentences=more, tables=[table])
