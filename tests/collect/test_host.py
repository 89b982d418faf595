"""This machine as it is read, against what the kernel says of it."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

import psutil
import pytest

from servescope.collect._collection import Collection
from servescope.collect.host import Host, _Host
from servescope.engine.config import EngineConfig
from servescope.serve import Server
from tests.support.command import until

BURN = "while True: pass"


def values(readings):
    return {(one.name, *one.labels.values()): one.value for one in readings}


def test_memory_disks_and_network_are_what_the_kernel_says():
    found = values(Host().read())
    kib = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert found["memory_bytes",] == int(kib["MemTotal"].split()[0]) * 1024
    assert 0 < found["memory_available_bytes",] <= found["memory_bytes",]
    assert 0 < found["memory_used_bytes",] <= found["memory_bytes",]
    nics = {name for kind, name in (k for k in found if k[0] == "network_sent_bytes")}
    assert nics == {path.name for path in Path("/sys/class/net").iterdir() if path.is_dir()}
    assert found["network_received_bytes", "lo"] > 0
    assert found.get(("disk_read_bytes",), 0) >= 0


def test_how_busy_each_core_was_is_told_from_the_second_reading_on():
    read = Host().reader()
    assert not any(one.name == "cpu_busy_ratio" for one in read())
    with spinning() as core:
        found = until(lambda: _busier(read, core), "a busy core")
    cores = [value for (name, *label), value in found.items() if name == "cpu_busy_ratio" and label]
    assert len(cores) == psutil.cpu_count()
    assert found["cpu_busy_ratio",] == pytest.approx(sum(cores) / len(cores))
    assert all(0 <= core <= 1 for core in cores)


def test_how_busy_a_core_was_is_not_told_of_a_moment_but_kept_for_the_next_reading(monkeypatch):
    told = iter([(5.0, 100.0), (5.02, 100.0), (5.25, 100.75)])
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [_Times(*next(told))])
    read = Host().reader()
    found = [values(read()).get(("cpu_busy_ratio", "0")) for _ in range(3)]
    assert found == [None, None, pytest.approx(0.25)]


class _Times(NamedTuple):
    user: float
    idle: float


def _busier(read, core):
    threading.Event().wait(0.2)
    found = values(read())
    return found if found["cpu_busy_ratio", str(core)] > 0.5 else None


class spinning:  # noqa: N801 (reads as a function)
    """A process that keeps one core busy; the core."""

    def __enter__(self):
        core = min(os.sched_getaffinity(0))
        self.process = subprocess.Popen([sys.executable, "-c", BURN])
        os.sched_setaffinity(self.process.pid, {core})
        return core

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def test_the_processes_of_a_run_are_told_by_their_role():
    """This process stands for the conductor."""
    with Server(EngineConfig()), Collection([Host(every=0.05)]) as collection, spinning():
        samples = []
        collection.begin(monotonic_ns())
        until(lambda: samples.extend(collection.drain()) or samples, "a reading")
        collection.end()
        samples += collection.drain()
    roles = {}
    for one in samples:
        if one.name.startswith("process_"):
            roles.setdefault(one.labels["role"], {})[one.name] = one.value
    assert set(roles) == {"conductor", "engine", "collectors"}, "a stranger is not in it"
    for found in roles.values():
        assert found["process_memory_bytes"] > 1 << 20
    own = psutil.Process().cpu_times()
    assert 0 < roles["conductor"]["process_cpu_s"] <= own.user + own.system


def test_what_a_process_took_stays_in_the_sum_when_it_has_ended(monkeypatch):
    monkeypatch.setattr("servescope.collect.host.ROLES", {BURN: "load"})
    host = _Host(os.getpid())

    def load_s():
        return values(host.read()).get(("process_cpu_s", "load"), 0.0)

    with spinning():
        first = until(lambda: (s := load_s()) > 0.1 and s, "CPU time")
    gone = load_s()
    assert gone >= first
    with spinning():
        until(lambda: load_s() > gone, "more CPU time")


def test_what_a_machine_does_not_tell_is_left_out(monkeypatch):
    def broken(*_, **__):
        raise FileNotFoundError("/proc/diskstats")

    monkeypatch.setattr(psutil, "disk_io_counters", broken)
    monkeypatch.setattr(psutil, "cpu_times", broken)
    names = {one.name for one in Host().read()}
    assert "memory_bytes" in names
    assert not any(name.startswith(("disk_", "cpu_")) for name in names)
