"""What of this machine will limit a measurement: small checks, each a row with its advice.

Nothing is changed. A check that fails, on a strange machine say, says that it cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from servescope.client.machine import ROOT
from servescope.doctor import cores, installed, limits, times
from servescope.doctor.row import Row
from servescope.errors import BadInput

__all__ = ["Row", "diagnose"]


def diagnose(out: Path, root: Path = ROOT) -> list[Row]:
    """Every check; `out` is where runs are to be kept. Takes about a second. Raises BadInput."""
    if out.exists() and not out.is_dir():
        raise BadInput("--out", out, "want a directory")
    checks: dict[str, Callable[[], Row]] = {
        "servescope": installed.version,
        "cores": lambda: cores.usable(root),
        "other_load": lambda: cores.other_load(root),
        "virtualisation": lambda: cores.virtualisation(root),
        "clock_frequency": lambda: cores.frequency(root),
        "real_time": cores.real_time,
        "memory": lambda: limits.memory(root),
        "disk": lambda: limits.disk(out),
        "open_files": limits.open_files,
        "ports": lambda: limits.ports(root),
        "receive_times": times.receive_times,
        "timer": times.timer,
        "clock_source": lambda: times.clock_source(root),
        "wall_clock": times.wall_clock,
        "gpus": lambda: installed.gpus(root),
        "engines": installed.engines,
        "ray": installed.ray,
    }
    return [_checked(name, check) for name, check in checks.items()]


def _checked(name: str, check: Callable[[], Row]) -> Row:
    try:
        return msgspec.structs.replace(check(), name=name)
    except Exception as error:  # noqa: BLE001 (a strange machine is no reason to say nothing)
        why = str(error) or type(error).__name__
        return Row(name=name, value=f"cannot tell ({why})")
