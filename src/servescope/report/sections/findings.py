"""What the analyses found, in words."""

from __future__ import annotations

from servescope.analysis.evidence import Evidence
from servescope.findings import Finding
from servescope.report.content import Notice, Section
from servescope.report.labels import quantity
from servescope.report.shown import names

PLACE = 30
_STRENGTH = {"shown": "", "likely": ", likely"}
"""What has been shown needs no word."""


def section(evidence: Evidence) -> Section | None:
    """Each finding with how strongly it is shown and what it rests on."""
    summary = evidence.summary
    if not summary.findings:
        return None
    by_number = {s.number: name for s, name in zip(summary.stages, names(evidence), strict=True)}
    notices = [_notice(finding, by_number) for finding in summary.findings]
    return Section(name="findings", title="Findings", notices=notices)


def _notice(finding: Finding, by_number: dict[int, str]) -> Notice:
    number = finding.evidence.get("stage") if finding.stage is None else finding.stage
    stage = None if number is None else by_number.get(int(float(number)))
    kind = finding.kind + _STRENGTH[finding.strength]
    about = f"{kind}, {stage}" if stage and len(by_number) > 1 else kind
    rests = (quantity(name, value) for name, value in finding.evidence.items() if name != "stage")
    evidence = "; ".join(f"{label} {value}" for label, value in rests)
    return Notice(
        kind=about.replace("_", " "),
        text=finding.sentence[:1].upper() + finding.sentence[1:],
        advice=evidence,
    )
