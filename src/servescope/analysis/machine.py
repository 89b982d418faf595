"""Whether the machine that was measured from had anything left: its figures are of a crowd then.

Where the server is elsewhere that concerns the load alone; where it is on this machine, its answers
too. What the server itself takes is known only where the run started it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.findings import Finding
from servescope.summary import is_here
from servescope.units import three_digits

if TYPE_CHECKING:
    from servescope.analysis.evidence import Evidence
    from servescope.telemetry.resources import Figures

SOURCE = "host"
FULL = 0.95
"""Share of all cores that is busy on average where a machine is called full."""
OTHERS = 0.1
"""Share of a full machine from which on the work of others is one."""


def findings(evidence: Evidence) -> list[Finding]:
    """The stages in which this machine was full."""
    found = []
    here = all(map(is_here, evidence.run.manifest.targets))
    for stage in evidence.summary.stages:
        for part in stage.resources:
            busy = part.figures.get("cpu_busy_ratio_mean")
            cores = part.figures.get("cpu_cores")
            if part.source == SOURCE and cores and busy is not None and busy >= FULL:
                found.append(_full(stage.number, busy, cores, part.figures, here=here))
    return found


def _full(number: int, busy: float, cores: float, figures: Figures, *, here: bool) -> Finding:
    load = sum(figures.get(f"{role}_cpu_cores_mean") or 0.0 for role in ("load", "conductor"))
    load += figures.get("collectors_cpu_cores_mean") or 0.0
    engine = figures.get("engine_cpu_cores_mean")
    rest = max(0.0, busy * cores - load - (engine or 0.0))
    said = f"this machine was full: {100 * busy:.0f} % of its {cores:.0f} cores were busy on "
    said += f"average, {three_digits(load)} of them with the load"
    if engine is not None:
        said += f" and {three_digits(engine)} with the engine"
    if here and engine is None:
        said += "; the server and whatever else ran here shared the rest"
    elif rest >= OTHERS * cores:
        said += f"; other work had {three_digits(rest)}"
    if here:
        said += ", and latencies may be those of a machine short of CPU"
    return Finding(
        kind="machine",
        sentence=said,
        strength="shown",
        stage=number,
        value=busy,
        evidence={
            "cpu_busy_ratio_mean": busy,
            "cpu_cores": cores,
            "load_cpu_cores_mean": load,
            **({} if engine is None else {"engine_cpu_cores_mean": engine}),
        },
    )
