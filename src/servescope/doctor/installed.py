"""What is installed here; none of it is imported or started, but NVML."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import servescope
from servescope.client.machine import ROOT
from servescope.doctor.row import Row

MODULES = ("vllm", "sglang", "lightllm", "xllamacpp")
PROGRAMS = ("text-generation-launcher", "llama-server")


def version() -> Row:
    """What runs here."""
    facts = {
        "servescope": servescope.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return Row(
        value=f"{facts['servescope']}, Python {facts['python']}, {facts['system']}", facts=facts
    )


def gpus(root: Path = ROOT) -> Row:
    """GPUs, as NVML names them."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        seen = (root / "dev/nvidiactl").exists()
        return Row(
            value="seen, and not known" if seen else "none seen (pynvml not installed)",
            advice="pynvml not installed: pip install nvidia-ml-py" if seen else "",
            facts={"seen": seen},
        )
    nvml.nvmlInit()  # where it fails, its words are the row's
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    names = [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    driver = str(nvml.nvmlSystemGetDriverVersion())
    nvml.nvmlShutdown()
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    return Row(
        value=f"{kinds or 'none'} (driver {driver})",
        facts={"seen": bool(names), "names": names, "driver": driver},
    )


def engines() -> Row:
    """Engines that are installed here; none is imported or started."""
    found = {name: _version(name) for name in MODULES if find_spec(name) is not None}
    found |= {name: path for name in PROGRAMS if (path := shutil.which(name))}
    told = ", ".join(f"{name} {what}".strip() for name, what in found.items())
    return Row(value=told or "none found; a simulated one is built in", facts={"found": found})


def ray() -> Row:
    """Whether a cluster could be used."""
    if find_spec("ray") is None:
        return Row(value="not installed (servescope[ray])", facts={"version": None})
    address = os.environ.get("RAY_ADDRESS")
    told = f", RAY_ADDRESS is {address}" if address else ""
    return Row(value=f"{_version('ray')}{told}", facts={"version": _version("ray")})


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
