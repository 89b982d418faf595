"""A run's report: its sections as one page, beside its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from servescope.analysis.evidence import Evidence
from servescope.report.page import encoded
from servescope.report.sections import sections
from servescope.store import replace

NAME = "report.html"


def write(evidence: Evidence, path: Path | None = None) -> Path:
    """Write a run's report, by default into its directory; returns the file. Raises OSError."""
    path = path or evidence.run.path / NAME
    replace(path, _of_run(evidence))
    return path


def of_run(evidence: Evidence, links: Sequence[tuple[str, str]] = ()) -> str:
    """The page; `links` as `page.render` has them."""
    return _of_run(evidence, links).decode()


def _of_run(evidence: Evidence, links: Sequence[tuple[str, str]] = ()) -> bytes:
    summary = evidence.summary
    marks = [] if summary.kind == "measured" else [summary.kind]
    if not summary.complete:
        marks.append("incomplete")
    when = f"{summary.started_utc[:16].replace('T', ' ')} UTC"
    return encoded(
        f"servescope: {summary.name}",
        sections(evidence),
        facts=[fact for fact in (summary.target, when) if fact],
        marks=marks,
        links=links,
    )
