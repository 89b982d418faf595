"""Room for a run: memory, disk, open files, ports."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from servescope.client import machine
from servescope.client.machine import ROOT
from servescope.doctor.row import Row

LITTLE_MEMORY_BYTES, LITTLE_DISK_BYTES = 1 << 30, 1 << 30
FEW_FILES, FEW_PORTS, SHORT_QUEUE = 4096, 10_000, 1024
TIME_WAIT_S = 60
"""How long Linux keeps the port of a closed connection."""


def memory(root: Path = ROOT) -> Row:
    """Memory that is free, and what the control group leaves of it."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) > 1}
    available, total = sizes["MemAvailable"], sizes["MemTotal"]
    limits = [total]
    for group in machine.control_groups(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            path = group / name
            if path.exists() and (text := path.read_text().strip()).isdecimal():
                limits.append(int(text))
    limit = min(limits)
    value = f"{_gib(available)} available of {_gib(total)}"
    if limit < total:
        value += f"; the control group allows {_gib(limit)}"
    return Row(
        value=value,
        advice="little: long runs with many streams may be killed"
        if min(available, limit) < LITTLE_MEMORY_BYTES
        else "",
        facts={"available_bytes": available, "total_bytes": total, "limit_bytes": limit},
    )


def disk(out: Path) -> Row:
    """Room for runs."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    advice = "little: a request of 128 tokens takes about 2 KB" if free < LITTLE_DISK_BYTES else ""
    if not writable:
        advice = "it cannot be written: say another --out"
    return Row(
        value=f"{_gib(free)} free for {out}",
        advice=advice,
        facts={"path": str(there), "free_bytes": free, "writable": writable},
    )


def _gib(size: float) -> str:
    return f"{size / (1 << 30):,.1f} GiB"


def open_files() -> Row:
    """Limits on open files, and so on connections."""
    soft, hard = machine.open_files()
    connections = max(0, hard - machine.SPARE_FILES)
    return Row(
        value=f"{hard:,} a process (now {soft:,}, a run raises it): {connections:,} connections a "
        "load process",
        advice="few: raise the hard limit (ulimit -Hn, or nofile in /etc/security/limits.conf)"
        if hard < FEW_FILES
        else "",
        facts={"soft": soft, "hard": hard, "connections": connections},
    )


def ports(root: Path = ROOT) -> Row:
    """Ports that connections may come from, and so how many one address can have."""
    found = machine.local_ports(root)
    if found is None:
        return Row(value=f"cannot tell (no /{machine.PORTS_FILE})")
    net = root / "proc/sys/net"
    queue = int((net / "core/somaxconn").read_text())
    reuse = int((net / "ipv4/tcp_tw_reuse").read_text())
    advice = ""
    if len(found) < FEW_PORTS:
        advice = 'few: sysctl net.ipv4.ip_local_port_range="1024 65535"'
    elif queue < SHORT_QUEUE:
        advice = "a server here queues few new connections: sysctl net.core.somaxconn=4096"
    fresh = f"new ones, each closed after one request, at {len(found) // TIME_WAIT_S}/s for long"
    where = {0: fresh, 1: "", 2: f"{fresh} but to loopback"}.get(reuse, "")
    return Row(
        value=f"{len(found):,} connections to one address{'; ' if where else ''}{where}; a server "
        f"here may queue {queue:,}",
        advice=advice,
        facts={
            "first": found.start,
            "last": found.stop - 1,
            "connections": len(found),
            "tcp_tw_reuse": reuse,
            "somaxconn": queue,
        },
    )
