"""Reasons not to believe the figures: before all figures."""

from __future__ import annotations

from servescope.analysis.evidence import Evidence
from servescope.doubts import KINDS
from servescope.report.content import Notice, Section
from servescope.report.shown import names

PLACE = 10
_GRAVE = ("client_limited", "errors", "not_offered")
"""With these, the figures are of something else than was asked for."""


def section(evidence: Evidence) -> Section | None:
    """An incomplete run first, then each kind of doubt with the stages that it is about."""
    summary = evidence.summary
    notices = []
    if not summary.complete:
        told = f"The run is incomplete ({summary.ended_by}): the figures are of what there is."
        notices.append(Notice(kind="incomplete", text=told, tone="bad"))
    notices += _doubts(evidence)
    found = bool(notices)
    notices += [Notice(kind="note", text=note) for note in summary.notes]
    nothing = f"None of the {len(KINDS)} reasons to doubt a figure was found."
    return Section(
        name="doubts", title="Doubts", sentences=[] if found else [nothing], notices=notices
    )


def _doubts(evidence: Evidence) -> list[Notice]:
    stages = evidence.summary.stages
    said: dict[tuple[str, str], list[str]] = {}
    for name, stage in zip(names(evidence), stages, strict=True):
        for doubt in stage.doubts:
            about = f"{name}: " if len(stages) > 1 else ""
            said.setdefault((doubt.kind, doubt.advice), []).append(about + doubt.message)
    by_weight = sorted(said.items(), key=lambda pair: KINDS.index(pair[0][0]))
    return [
        Notice(
            kind=kind.replace("_", " "),
            text="\n".join(messages),
            advice=advice,
            tone="bad" if kind in _GRAVE else "warning",
        )
        for (kind, advice), messages in by_weight
    ]
