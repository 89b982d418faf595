"""The cores: how many, who else is on them, how steadily they run."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from servescope.client import machine
from servescope.client.machine import ROOT
from servescope.doctor.row import Row
from servescope.doctor.times import in_thread

WATCHED_S = 0.3
BUSY_RATIO, STEAL_RATIO = 0.05, 0.01
"""Above these shares of the cores, what others do is in the figures."""


def usable(root: Path = ROOT) -> Row:
    """How many cores the load, and whatever else runs here, may use."""
    count, online = machine.usable_cores(root), os.cpu_count() or 1
    affinity, quota = machine.affinity(), machine.cpu_quota(root)
    value = f"{count} of {online} usable"
    if affinity < online:
        value += f"; affinity allows {affinity}"
    if quota < math.inf:
        value += f"; the control group allows {quota:g} CPU seconds a second"
    advice = ""
    if count < 2:
        advice = "a load process and all else share one core: run the server on another machine"
    elif quota < affinity:
        advice = "a process that used its quota up is stopped for up to 100 ms: raise the quota"
    facts = {
        "usable": count,
        "online": online,
        "affinity": affinity,
        "quota": quota if quota < math.inf else None,
        "load_processes_at_most": max(1, count - 1),
    }
    return Row(value=value, advice=advice, facts=facts)


def other_load(root: Path = ROOT) -> Row:
    """How busy the cores are with other things just now."""
    before, own_s = machine.cpu_times(root)["cpu"], time.process_time()
    time.sleep(WATCHED_S)
    after, own_s = machine.cpu_times(root)["cpu"], time.process_time() - own_s
    ticks = max(1, sum(after) - sum(before))
    own = own_s * os.sysconf("SC_CLK_TCK")
    busy = max(0.0, after.busy - before.busy - own) / ticks
    average = os.getloadavg()
    return Row(
        value=f"{busy:.0%} of the cores' time just now; load average "
        + " ".join(f"{one:.2f}" for one in average),
        advice="something else is busy here: wait for it to end, or repeat what you measure"
        if busy > BUSY_RATIO
        else "",
        facts={"busy_ratio": round(busy, 4), "load_average": list(average)},
    )


def virtualisation(root: Path = ROOT) -> Row:
    """Whether this is a machine of its own, and what its host takes away."""
    times = machine.cpu_times(root)["cpu"]
    steal = times.steal / max(1, sum(times))
    flags = (root / "proc/cpuinfo").read_text()
    virtual = " hypervisor" in flags if "flags" in flags else None
    container = any((root / one).exists() for one in (".dockerenv", "run/.containerenv"))
    container |= "KUBERNETES_SERVICE_HOST" in os.environ
    kind = {True: "a virtual machine", False: "no virtual machine", None: "virtual or not"}[virtual]
    if container:
        kind += ", in a container"
    return Row(
        value=f"{kind}; {steal:.2%} of the cores' time went to other guests since it started",
        advice="the host takes cores away at times: P99s contain it; use a dedicated host"
        if steal > STEAL_RATIO
        else "",
        facts={"virtual": virtual, "container": container, "steal_ratio": round(steal, 6)},
    )


def frequency(root: Path = ROOT) -> Row:
    """Who sets the cores' frequency."""
    system = root / "sys/devices/system/cpu"
    found = sorted({p.read_text().strip() for p in system.glob("cpu*/cpufreq/scaling_governor")})
    if not found:
        return Row(value="cannot tell (no cpufreq, as in most virtual machines)")
    turbo = None
    for path, on in (("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")):
        if (system / path).exists():
            turbo = (system / path).read_text().strip() == on
    told = {None: "", True: ", turbo on", False: ", turbo off"}[turbo]
    return Row(
        value=f"governor {', '.join(found)}{told}",
        advice=""
        if found == ["performance"]
        else "cores that slow down when idle wake late: cpupower frequency-set -g performance",
        facts={"governors": found, "turbo": turbo},
    )


def real_time() -> Row:
    """Whether load processes get real-time priority, which they ask for."""
    try:
        in_thread(lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)))
    except PermissionError:
        return Row(
            value="not permitted",
            advice="a busy engine on this machine keeps the load waiting: allow it (ulimit -r 1, "
            "CAP_SYS_NICE)",
            facts={"permitted": False},
        )
    return Row(value="permitted", facts={"permitted": True})
