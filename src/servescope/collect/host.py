"""This machine, by psutil: CPU, memory, disks, network, and what the run itself takes of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from servescope.collect import Collector, Reading

if TYPE_CHECKING:
    from psutil import Process

ROLES = {
    "servescope.client.drive": "load",
    "servescope.collect": "collectors",
    "servescope.serve": "engine",
    "servescope.engines": "engine",
}
"""What a process that a run starts is, by the module in its command line; its children are too."""

LEAST_S = 0.1
"""Shares of a shorter time are not told: the kernel counts it in hundredths of a second."""


class Host(Collector, frozen=True, tag="host"):
    """CPU, memory, disks and network of this machine; CPU and memory of the run's processes."""

    def reader(self) -> Callable[[], Iterable[Reading]]:
        """One that knows what it read before: how busy a core was is a difference."""
        return _Host(os.getppid()).read


class _Host:
    """What was read before."""

    def __init__(self, conductor: int) -> None:
        self._conductor = conductor
        self._cores: list[tuple[float, float]] = []
        """Of each core, busy and all seconds so far."""
        self._cpu_s: dict[Process, float] = {}
        self._role_cpu_s: defaultdict[str, float] = defaultdict(float)
        self._roles: dict[Process, str] = {}

    def read(self) -> Iterator[Reading]:
        """What this machine can tell: not every kernel and container tells all of it."""
        import psutil  # noqa: PLC0415 (not for every command)

        for part in (self._cpu, _memory, _disks, _network, self._processes):
            try:
                found = list(part())
            except (OSError, RuntimeError, LookupError, AttributeError, psutil.Error):
                continue
            yield from found

    def _cpu(self) -> Iterator[Reading]:
        """Shares of the time since the reading before."""
        import psutil  # noqa: PLC0415

        now, before = [_busy(core) for core in psutil.cpu_times(percpu=True)], self._cores
        if len(before) != len(now):  # the first time, and where a core came or went
            self._cores = now
            return
        if max(all_s - was_s for (_, all_s), (_, was_s) in zip(now, before, strict=True)) < LEAST_S:
            return
        self._cores = now
        ratios = [
            min(1.0, max(0.0, (busy - was_busy) / (all_s - was_s))) if all_s > was_s else 0.0
            for (busy, all_s), (was_busy, was_s) in zip(now, before, strict=True)
        ]
        yield Reading("cpu_busy_ratio", sum(ratios) / len(ratios))
        for core, ratio in enumerate(ratios):
            yield Reading("cpu_busy_ratio", ratio, {"core": str(core)})

    def _processes(self) -> Iterator[Reading]:
        """Of the run's own processes; what one took stays in the sum when it has ended."""
        bytes_of: defaultdict[str, int] = defaultdict(int)
        cpu_s: dict[Process, float] = {}
        for process, role in self._family():
            found = _usage(process)
            if found is None:
                continue
            cpu_s[process], memory = found
            self._role_cpu_s[role] += max(0.0, cpu_s[process] - self._cpu_s.get(process, 0.0))
            bytes_of[role] += memory
        self._cpu_s = cpu_s
        for role, total_s in self._role_cpu_s.items():
            yield Reading("process_cpu_s", total_s, {"role": role})
            yield Reading("process_memory_bytes", bytes_of[role], {"role": role})

    def _family(self) -> Iterator[tuple[Process, str]]:
        """The run's processes and what each is; a process is listed after its parent."""
        import psutil  # noqa: PLC0415

        conductor = psutil.Process(self._conductor)
        yield conductor, "conductor"
        roles: dict[int, str] = {}
        for process in conductor.children(recursive=True):
            role = self._roles.get(process) or _role(process, roles)
            if role is not None:
                self._roles[process] = roles[process.pid] = role
                yield process, role


def _role(process: Process, parents: dict[int, str]) -> str | None:
    import psutil  # noqa: PLC0415

    try:
        words, parent = process.cmdline(), process.ppid()
    except psutil.Error:
        return None
    named = (role for module, role in ROLES.items() if module in words)
    return parents.get(parent) or next(named, None)


def _usage(process: Process) -> tuple[float, int] | None:
    """CPU seconds and resident bytes; None where it has just ended."""
    import psutil  # noqa: PLC0415

    try:
        with process.oneshot():
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return None


def _busy(core: object) -> tuple[float, float]:
    """Busy and all seconds of a core. A guest's time is in that of its user already."""
    times = {name: getattr(core, name, 0.0) for name in ("user", "nice", "system", "irq")}
    times |= {name: getattr(core, name, 0.0) for name in ("softirq", "steal")}
    busy = sum(times.values())
    return busy, busy + getattr(core, "idle", 0.0) + getattr(core, "iowait", 0.0)


def _memory() -> Iterator[Reading]:
    import psutil  # noqa: PLC0415

    found = psutil.virtual_memory()
    yield Reading("memory_bytes", found.total)
    yield Reading("memory_used_bytes", found.used)
    yield Reading("memory_available_bytes", found.available)


def _disks() -> Iterator[Reading]:
    """All together."""
    import psutil  # noqa: PLC0415

    if (found := psutil.disk_io_counters()) is not None:
        yield Reading("disk_read_bytes", found.read_bytes)
        yield Reading("disk_written_bytes", found.write_bytes)


def _network() -> Iterator[Reading]:
    """Each interface, loopback too: a server on this machine is reached through that."""
    import psutil  # noqa: PLC0415

    for nic, found in psutil.net_io_counters(pernic=True).items():
        yield Reading("network_received_bytes", found.bytes_recv, {"nic": nic})
        yield Reading("network_sent_bytes", found.bytes_sent, {"nic": nic})
