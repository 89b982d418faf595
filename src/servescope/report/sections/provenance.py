"""How it was run: the command, and all that the manifest keeps."""

from __future__ import annotations

import shlex

import msgspec

from servescope.analysis.evidence import Evidence
from servescope.report.content import Code, Section

PLACE = 900


def section(evidence: Evidence) -> Section | None:
    """What would repeat the run, and what it was made with."""
    manifest = evidence.run.manifest
    seed = manifest.trial.get("seed")
    again = [f"With --seed {seed} added it asks the same again."] if seed is not None else []
    command = shlex.join(manifest.command)
    whole = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode()
    return Section(
        name="provenance",
        title="How it was run",
        sentences=[
            f"servescope {manifest.servescope}, begun {manifest.started_utc}.",
            f"Kept in {evidence.summary.directory}.",
            *(again if "--seed" not in manifest.command else []),
        ],
        codes=[
            *([Code(title="Command", text=command, open=True)] if manifest.command else []),
            Code(title="Manifest", text=whole),
        ],
    )
