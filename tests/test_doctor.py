"""`servescope doctor` as a user meets it, here and on machines that are strange or small."""

import json
import os
import resource
import socket
import subprocess
import sys
from functools import partial

import pytest

from servescope.client import machine
from servescope.doctor import cores, diagnose, limits, times

STAT = "cpu  {user} 0 300 8000 200 0 100 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


@pytest.fixture
def command(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return partial(command, "doctor")


@pytest.fixture
def plant(tmp_path):
    """Write files of another machine's /proc and /sys."""

    def write(**files):
        for path, content in files.items():
            file = tmp_path / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return tmp_path

    return write


def test_every_row_is_printed_within_80_columns_and_the_end_names_the_selftest(command):
    status, out, err = command()
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    for name in ("cores", "other load", "open files", "receive times", "timer", "gpus", "engines"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
    assert out.rstrip().endswith("servescope selftest")


def test_json_is_the_rows_and_nothing_else_and_this_machine_s_facts_are_right(command):
    status, out, err = command("--json", "--out", "elsewhere/runs")
    assert (status, err) == (0, "")
    found = json.loads(out)
    rows = {row["name"]: row for row in found["rows"]}
    assert all(set(row) == {"name", "value", "advice", "facts"} for row in found["rows"])
    assert rows["open_files"]["facts"]["hard"] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert rows["cores"]["facts"]["usable"] >= 1
    assert rows["receive_times"]["facts"]["clock"] == "kernel"
    assert 0 <= rows["timer"]["facts"]["late_p50_s"] <= rows["timer"]["facts"]["late_p99_s"]
    assert rows["disk"]["facts"]["free_bytes"] > 0
    assert rows["servescope"]["facts"]["servescope"] == found["servescope"]


def test_nothing_is_made_where_runs_are_to_be_kept(command, tmp_path):
    assert command("--out", "new/runs")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_place_for_runs(command, tmp_path):
    (tmp_path / "file").touch()
    status, out, err = command("--out", "file")
    assert (status, out) == (2, "")
    assert err == "servescope: --out: 'file': want a directory\n"


def test_a_machine_without_proc_and_sys_is_told_what_cannot_be_told(tmp_path):
    rows = {row.name: row for row in diagnose(tmp_path / "runs", root=tmp_path)}
    assert set(rows) == {row.name for row in diagnose(tmp_path / "runs")}
    for name in ("other_load", "virtualisation", "clock_frequency", "memory", "ports"):
        assert rows[name].value.startswith("cannot tell (")
        assert rows[name].advice == ""
    assert rows["cores"].facts["quota"] is None


def test_nonsense_in_proc_is_no_crash(plant):
    root = plant(proc__stat="what", proc__cpuinfo="", proc__meminfo="?", proc__self__cgroup="0::/")
    rows = {row.name: row for row in diagnose(root / "runs", root=root)}
    assert rows["memory"].value.startswith("cannot tell (")
    assert rows["other_load"].value.startswith("cannot tell (")


@pytest.mark.parametrize(
    "files",
    [
        {"sys__fs__cgroup__pod__cpu.max": "100000 100000"},
        {"sys__fs__cgroup__cpu.max": "100000 100000", "sys__fs__cgroup__pod__cpu.max": "max 1000"},
        {"sys__fs__cgroup__unified__pod__cpu.max": "100000 100000"},
        {
            "proc__self__cgroup": "5:cpu,cpuacct:/pod\n1:name=systemd:/",
            "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_quota_us": "50000",
            "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_period_us": "50000",
        },
    ],
)
def test_a_control_group_s_quota_counts_as_cores_wherever_it_stands(plant, files):
    row = cores.usable(plant(**{"proc__self__cgroup": "0::/pod"} | files))
    assert row.facts["usable"] == row.facts["quota"] == 1
    assert row.facts["load_processes_at_most"] == 1
    assert "another machine" in row.advice


def test_no_quota_is_no_limit(plant):
    root = plant(proc__self__cgroup="0::/", **{"sys__fs__cgroup__cpu.max": "max 100000"})
    assert cores.usable(root).facts["quota"] is None


def test_cpu_time_of_others_is_counted_without_waiting_and_what_was_stolen_apart(plant):
    root = plant(proc__stat=STAT.format(user=1000, steal=400), proc__cpuinfo="flags: hypervisor\n")
    found = machine.cpu_times(root)["cpu"]
    assert (sum(found), found.busy, found.steal) == (10_000, 1400, 400)
    row = cores.virtualisation(root)
    assert row.facts["steal_ratio"] == 0.04
    assert row.facts["virtual"]
    assert "host" in row.advice
    quiet = plant(proc__stat=STAT.format(user=1000, steal=0), proc__cpuinfo="flags: fpu vme\n")
    assert cores.virtualisation(quiet).advice == ""


def test_another_busy_program_is_seen():
    program = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as busy:
        try:
            busy.stdout.readline()
            row = cores.other_load()
        finally:
            busy.kill()
    assert row.facts["busy_ratio"] > cores.BUSY_RATIO
    assert "busy" in row.advice


@pytest.mark.parametrize(
    ("governor", "advised"), [("performance", False), ("powersave", True), ("schedutil", True)]
)
def test_a_frequency_that_follows_the_load_is_advised_against(plant, governor, advised):
    root = plant(
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor=f"{governor}\n",
        sys__devices__system__cpu__intel_pstate__no_turbo="0\n",
    )
    row = cores.frequency(root)
    assert row.value == f"governor {governor}, turbo on"
    assert bool(row.advice) == advised


def net(ports="32768 60999", queue="4096", reuse="2"):
    return {
        "proc__sys__net__ipv4__ip_local_port_range": ports,
        "proc__sys__net__ipv4__tcp_tw_reuse": reuse,
        "proc__sys__net__core__somaxconn": queue,
    }


def test_ports_are_counted_and_few_of_them_are_advised_against(plant):
    row = limits.ports(plant(**net()))
    assert row.facts["connections"] == 28_232
    assert "470/s" in row.value
    assert row.advice == ""
    assert "ip_local_port_range" in limits.ports(plant(**net(ports="40000 40999"))).advice
    assert "somaxconn" in limits.ports(plant(**net(queue="128"))).advice
    assert "470/s" not in limits.ports(plant(**net(reuse="1"))).value


def test_little_memory_in_a_control_group_is_seen(plant):
    root = plant(
        proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\n",
        proc__self__cgroup="0::/pod",
        **{"sys__fs__cgroup__pod__memory.max": str(256 << 20)},
    )
    row = limits.memory(root)
    assert row.facts == {
        "available_bytes": 4 << 30,
        "total_bytes": 8 << 30,
        "limit_bytes": 256 << 20,
    }
    assert row.advice


def test_few_open_files_are_advised_against():
    script = 'ulimit -n 512 && exec "$@"'
    words = [sys.executable, "-m", "servescope", "doctor", "--json"]
    out = subprocess.check_output(["/bin/sh", "-c", script, "sh", *words])
    row = next(row for row in json.loads(out)["rows"] if row["name"] == "open_files")
    assert row["facts"] == {"soft": 512, "hard": 512, "connections": 448}
    assert "ulimit -Hn" in row["advice"]


def test_a_kernel_that_stamps_nothing_is_said(monkeypatch):
    monkeypatch.setattr(times, "SO_TIMESTAMPNS", socket.SO_KEEPALIVE)  # accepted, and no stamps
    row = times.receive_times()
    assert row.facts == {"clock": "user"}
    assert row.advice


def test_what_was_tried_leaves_this_process_as_it_was():
    before = os.sched_getscheduler(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    times.timer()
    cores.real_time()
    times.receive_times()
    assert (os.sched_getscheduler(0), resource.getrlimit(resource.RLIMIT_NOFILE)) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
