"""Runs in, findings out: pure functions, one question a file."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from servescope.analysis import conservation, machine, overload, saturation, shape, steady
from servescope.analysis.evidence import Evidence
from servescope.store import replace
from servescope.summary import as_json

if TYPE_CHECKING:
    from servescope.findings import Finding
    from servescope.store import Run


def findings(evidence: Evidence) -> list[Finding]:
    """What the analyses of a single run found, in the order in which a reader wants it.

    The steady part of each stage is put beside its figures on the way.
    """
    parts = steady.find_all(evidence)
    steady.note(evidence, parts)
    over = overload.findings(evidence, parts)
    return [
        *saturation.findings(evidence, over),
        *over,
        *steady.findings(evidence, parts),
        *machine.findings(evidence),
        *conservation.findings(evidence, parts),
        *shape.findings(evidence, parts),
    ]


def conclude(run: Run) -> Evidence:
    """Work out a run's summary with its findings; kept where its directory can be written."""
    found = Evidence.of(run)
    found.summary.findings = findings(found)
    with suppress(OSError):
        replace(run.path / "summary.json", as_json(found.summary))
    return found
