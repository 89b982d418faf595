"""How many load processes there are, and the loads that no number of them could offer."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import servescope
from servescope.client.machine import demand_connections, load_processes, own_words
from servescope.errors import BadInput
from servescope.experiment import declare, resolve
from servescope.load import Closed, Open
from tests.support.served import Served, healthy

FILES, PORTS = 20_000, 28_232
UNREACHABLE = "http://127.0.0.1:9"


def constant(rate, seconds=3):
    return Open(due_ns=np.arange(rate * seconds) * (1_000_000_000 // rate), rate=float(rate))


def burst(requests):
    return Open(due_ns=np.zeros(requests, np.int64))


def processes(offer, *, cores=64, files=FILES, targets=1, **options):
    trial = declare({"target": [UNREACHABLE] * targets, "output_tokens": "64", **options})
    return load_processes(offer, trial, targets=targets, cores=cores, files=files)


@pytest.mark.parametrize(
    ("offer", "options", "count"),
    [
        (Closed(users=4), {}, 1),
        # 75 us and 64 x 8 us for each of 1000 answers in 0.64 s: 92 % of a core, above 60 %.
        (Closed(users=650), {}, 1),
        (Closed(users=1000), {}, 2),
        (Closed(users=1000, think_s=1.0), {}, 1),
        (Closed(users=10_000), {}, 16),
        # The shorter the answers, the more requests.
        (Closed(users=900), {"output_tokens": "1"}, 13),
        (constant(1000), {}, 1),
        (constant(2000), {}, 2),
        # Of 2000 long answers a second, those of 10 s come at once, each at 100 tokens/s.
        (constant(2000, seconds=12), {"output_tokens": "1000"}, 27),
        (burst(20_000), {}, 20),
        (burst(20_000), {"max_concurrency": 100}, 1),
        (burst(20_000), {"output_tokens": "uniform:64-64"}, 20),
    ],
)
def test_there_is_one_process_until_its_loop_would_be_60_percent_busy(offer, options, count):
    assert processes(offer, **options) == count


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 1), (4, 3), (13, 12), (64, 16)])
def test_one_core_is_left_to_the_others(cores, count):
    assert processes(Closed(users=10_000), cores=cores) == count


def test_few_open_files_make_more_processes_while_there_are_cores():
    idle = Closed(users=3000, think_s=1000.0)
    assert processes(idle) == 1
    assert processes(idle, files=1024) == 4
    assert processes(idle, files=1024, cores=3) == 2


def test_each_target_has_as_many_processes_as_the_others():
    assert processes(Closed(users=10_000), targets=3) == 18
    assert processes(Closed(users=10_000), targets=3, cores=8) == 6
    assert processes(Closed(users=10_000), targets=3, cores=2) == 3
    assert processes(Closed(users=1000), targets=2, each=True) == 4
    assert processes(Closed(users=4), targets=3, workers=4) == 3
    assert processes(Closed(users=40), targets=3, workers=4) == 6


def test_a_number_that_is_said_is_kept_whatever_the_cores_are():
    assert processes(Closed(users=64), workers=7, cores=1) == 7
    assert processes(Closed(users=4), workers=7) == 4


@given(
    users=st.integers(1, 30_000),
    more=st.integers(0, 1000),
    cores=st.integers(1, 128),
    targets=st.integers(1, 5),
    each=st.booleans(),
    tokens=st.integers(1, 2000),
)
def test_no_process_is_idle_and_more_users_never_get_fewer(
    *, users, more, cores, targets, each, tokens
):
    options = {"cores": cores, "targets": targets, "each": each, "output_tokens": str(tokens)}
    count = processes(Closed(users=users), **options)
    assert count % targets == 0
    assert count <= max(targets, cores - 1)
    assert count <= max(targets, users * (targets if each else 1))
    assert count <= processes(Closed(users=users + more), **options)


def refusal(offer, *, workers=1, files=1024, ports=PORTS, targets=1, **options):
    """What is said against a load; None where it may run."""
    trial = declare({"target": [UNREACHABLE] * targets, "workers": workers, **options})
    count = load_processes(offer, trial, targets=max(1, targets), cores=64, files=files)
    limits = {"targets": max(1, targets), "processes": count, "files": files, "ports": ports}
    try:
        demand_connections(offer, "users:n", trial, **limits)
    except BadInput as error:
        return error
    return None


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 960),
        ({"workers": 3}, 2880),
        ({"workers": 2, "targets": 2}, 1920),
        ({"workers": 2, "targets": 2, "each": True}, 960),
        ({"files": 1 << 20}, PORTS),
        ({"files": 1 << 20, "targets": 2}, 2 * PORTS),
        ({"files": 1 << 20, "targets": 2, "each": True}, PORTS),
        ({"workers": 64}, PORTS),
        ({"targets": 0}, 960),
        ({"targets": 0, "workers": 4}, 960),
    ],
)
def test_the_number_that_fits_is_named_and_fits(options, most):
    told = refusal(Closed(users=most + 1), **options)
    assert told is not None
    assert told.field == "--load"
    assert f"want at most {most:,} connections" in told.want
    assert refusal(Closed(users=most), **options) is None


def test_a_cap_is_refused_by_its_own_name_and_no_cap_never():
    told = refusal(constant(10), max_concurrency=20_000)
    assert told is not None
    assert (told.field, told.value) == ("--max-concurrency", 20_000)
    assert refusal(constant(10)) is None
    assert refusal(burst(20_000)) is None


def test_more_users_than_one_process_can_hold_are_spread_over_as_many_as_it_takes():
    assert refusal(Closed(users=20_000), workers="auto") is None
    assert refusal(Closed(users=20_000), workers=20) is not None


def test_so_many_processes_that_the_conductor_could_not_hold_them_are_refused():
    told = refusal(Closed(users=300), workers=256)
    assert told is not None
    assert (told.field, told.value) == ("--workers", 256)
    assert refusal(Closed(users=300), workers=240) is None


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (24, "too many open files: raise ulimit -n"),
        (99, "cannot assign requested address: no local port"),
    ],
)
def test_a_limit_of_this_machine_says_what_to_raise(number, told):
    assert own_words(OSError(number, "x")).startswith(told)
    assert own_words(OSError(111, "Connection refused")) == "[Errno 111] Connection refused"


def limited(files, *words, cwd, target=UNREACHABLE):
    """`servescope run` where a process may have so many open files."""
    command = ("run", target, *words)
    script = f'ulimit -n {files} && exec "$@"'
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", sys.executable, "-m", "servescope", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--load", "users:20000", "--workers", "1"), ("--load", "20000", "960", "open files")),
        (
            ("--load", "users:20000", "--workers", "3"),
            ("--load", "20000", "2,880", "each of the 3"),
        ),
        (
            ("--load", "poisson:9", "--max-concurrency", "20000", "--workers", "1"),
            ("--max-concurrency", "20000", "960", "open files"),
        ),
    ],
)
def test_20000_users_on_1024_descriptors_are_refused_before_the_start(tmp_path, words, told):
    ended = limited(1024, *words, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    for part in told:
        assert part in ended.stderr


@pytest.mark.parametrize("workers", ["many", "0", 257, -1, "1e3"])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(BadInput) as error:
        resolve(declare({"workers": workers}))
    assert str(error.value) == f"--workers: '{workers}': want 1 to 256, or auto"


def test_on_the_command_line_too_it_is_one_line(tmp_path):
    ended = limited(1024, "--workers", "1.5", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "--workers: '1.5': want 1 to 256, or auto" in ended.stderr


@pytest.mark.parametrize(("workers", "count"), [("auto", 1), (1, 1), (2, 2)])
def test_the_manifest_says_how_many_there_were(tmp_path, workers, count):
    with Served(healthy(0.002, 0.001), tokenize=True) as server:
        run = servescope.run(
            server.url,
            load=["users:2", "constant:200"],
            requests=10,
            output_tokens="3",
            data="dummy",
            workers=workers,
            out=str(tmp_path),
        )
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["trial"]["workers"] == workers
    assert [stage["workers"] for stage in manifest["stages"]] == [count, count]
    loops = {(s.labels["stage"], s.labels["worker"]) for s in run.samples() if s.source == "loop"}
    assert len(loops) == 2 * count


def test_enough_workers_lift_the_limit_and_only_then_is_the_target_tried(tmp_path):
    ended = limited(1024, "--load", "users:20000", "--workers", "21", cwd=tmp_path)
    assert ended.returncode == 3
    assert "refused" in ended.stderr


def test_an_open_load_that_runs_out_of_descriptors_says_whose_limit_it_was(tmp_path):
    words = ("--load", "burst", "--requests", "100", "--workers", "1", "--timeout", "20s")
    with Served(healthy(0.3, 0.001), tokenize=True) as server:
        ended = limited(48, *words, "--name", "few", cwd=tmp_path, target=server.url)
    assert ended.returncode == 0
    lines = (tmp_path / "runs/few/requests.jsonl").read_text().splitlines()
    records = [{"outcome": "completed"} | json.loads(line) for line in lines]
    assert len(records) == 100
    (reason,) = {r["reason"] for r in records if r["outcome"] == "failed:connect"}
    assert reason.startswith("connect: too many open files: raise ulimit -n")
    assert any(r["outcome"] == "completed" for r in records)
