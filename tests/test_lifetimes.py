"""Processes that are killed or held up in mid-run: what is left of them, and of the figures."""

import json
import os
import signal
import time
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from servescope.records import COMPLETED
from servescope.serve.answers import answer, streamed
from servescope.store import Run
from tests.support.command import QUICK, Command, until
from tests.support.served import Served

pytestmark = pytest.mark.slow

LOADING = "servescope.client.drive"
HELD_S = 1.0
STEADY = ("--load", "constant:50", "--requests", "90")


@contextmanager
def started(tmp_path, *words):
    """`servescope run` with these words; nothing of it is left afterwards."""
    command = Command("run", *words, *QUICK, "--name", "one", cwd=tmp_path)
    try:
        yield command
    finally:
        for pid in at_work(tmp_path):
            os.kill(pid, signal.SIGKILL)
        command.process.communicate()


def at_work(tmp_path):
    """The processes that run in this directory: a command's and all that descend from it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if (process / "cwd").readlink() == tmp_path:
                found.append(int(process.name))
    return found


def programs(tmp_path):
    """The modules that they run, each with its processes."""
    found = defaultdict(list)
    for pid in at_work(tmp_path):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        found[words[words.index("-m") + 1]].append(pid)
    return found


def directory(tmp_path):
    return tmp_path / "runs" / "one"


def saved(tmp_path):
    """How many requests are on the disk by now."""
    path = directory(tmp_path) / "requests.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def records(tmp_path):
    """Each request's record, by its index; every one is there exactly once."""
    found = list(Run(directory(tmp_path)).records())
    by_index = {record.request: record for record in found}
    assert len(by_index) == len(found)
    return [by_index[index] for index in sorted(by_index)]


def doubts(tmp_path):
    (stage,) = json.loads((directory(tmp_path) / "summary.json").read_bytes())["stages"]
    return {doubt["kind"]: doubt for doubt in stage["doubts"]}


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP"])
def test_nothing_outlives_a_conductor_that_is_killed_and_what_had_finished_is_reported(
    tmp_path, name
):
    with started(tmp_path, "--requests", "100000", "--workers", "2") as command:
        until(lambda: saved(tmp_path) > 20, "requests on the disk")
        others = programs(tmp_path)
        assert len(others[LOADING]) == 2
        assert len(others["servescope.serve"]) == 1
        before = saved(tmp_path)
        command.process.send_signal(signal.Signals[name])
        command.process.wait()
        until(lambda: not at_work(tmp_path), "the load processes and the built-in server to end")
    kept = len(records(tmp_path))
    assert kept >= before
    report = Command("report", directory(tmp_path), cwd=tmp_path)
    assert report.wait() == 0, report.err
    assert "INCOMPLETE" in report.out
    assert f"{kept} completed" in report.out


def test_a_load_process_of_two_that_is_killed_costs_its_own_requests_only(tmp_path):
    with (
        Served(streamed(answer()), tokenize=True) as server,
        started(tmp_path, server.url, *STEADY, "--workers", "2") as command,
    ):
        until(lambda: len(server.requests) > 30, "requests")
        os.kill(programs(tmp_path)[LOADING][0], signal.SIGKILL)
        assert command.wait() == 1
        assert not at_work(tmp_path)
    assert "INCOMPLETE" in command.out
    assert "a load process died" in command.out
    assert "Traceback" not in command.err
    found = records(tmp_path)
    assert len(found) == 90
    lost = [record for record in found if record.outcome != COMPLETED]
    (share,) = {record.request % 2 for record in lost}
    assert all(record.outcome == COMPLETED for record in found if record.request % 2 != share)
    assert {record.outcome for record in lost} == {"cancelled"}
    assert all("a load process died" in record.reason for record in lost)
    assert sum(record.request % 2 == share for record in found) > len(lost)


def test_a_server_that_is_killed_fails_each_request_by_how_far_it_had_come(tmp_path):
    server = Command("serve", "sim:vllm?step=20ms", "--port", "0", "--quiet", cwd=tmp_path)
    try:
        url = server.process.stdout.readline().strip()
        with started(tmp_path, url, *STEADY) as command:
            until(lambda: saved(tmp_path) > 10, "requests on the disk")
            server.process.kill()
            assert command.wait() == 0
    finally:
        server.process.kill()
        server.process.communicate()
    found = records(tmp_path)
    assert len(found) == 90
    assert "INCOMPLETE" not in command.out
    outcomes = [record.outcome for record in found]
    told = Counter(outcomes)
    assert told.keys() == {COMPLETED, "failed:incomplete", "failed:connect"}
    # constant length and a steady server: those that ended, those in flight, those that came later
    assert outcomes == [outcome for outcome in told for _ in range(told[outcome])]
    assert "errors" in doubts(tmp_path)


# --- held up --------------------------------------------------------------------------------------


def held(pid, server):
    """Stop a process for a while; how many requests came to the server meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    came = len(server.requests)
    time.sleep(HELD_S)  # this is what is done to it, no wait for something to happen
    came = len(server.requests) - came
    os.kill(pid, signal.SIGCONT)
    return came


def times_are_right(tmp_path, server):
    """Whether the first tokens' times are as far apart here as they are for the server."""
    sent = sorted(records(tmp_path), key=lambda record: record.sent_ns)
    truth = [request.first_content_ns for request in server.requests]
    errors = [
        record.chunk_ns[0] - written_ns for record, written_ns in zip(sent, truth, strict=True)
    ]
    return max(errors) - min(errors) < HELD_S / 4 * 1e9


def test_a_conductor_that_is_held_up_delays_no_request_and_no_time(tmp_path):
    with (
        Served(streamed(answer()), tokenize=True) as server,
        started(tmp_path, server.url, *STEADY) as command,
    ):
        until(lambda: len(server.requests) > 20, "requests")
        came = held(command.process.pid, server)
        assert command.wait() == 0
    assert came > 50 * HELD_S / 2
    assert {record.outcome for record in records(tmp_path)} == {COMPLETED}
    assert len(records(tmp_path)) == len(server.requests) == 90
    assert times_are_right(tmp_path, server)
    late_s = [(record.sent_ns - record.due_ns) / 1e9 for record in records(tmp_path)]
    assert max(late_s) < HELD_S / 4


def test_a_load_process_that_is_held_up_says_so_and_loses_no_request_and_no_time(tmp_path):
    with (
        Served(streamed(answer()), tokenize=True) as server,
        started(tmp_path, server.url, *STEADY) as command,
    ):
        until(lambda: len(server.requests) > 20, "requests")
        came = held(programs(tmp_path)[LOADING][0], server)
        assert command.wait() == 0
    assert came <= 1  # the one that was on its way
    assert {record.outcome for record in records(tmp_path)} == {COMPLETED}
    assert len(records(tmp_path)) == len(server.requests) == 90
    assert times_are_right(tmp_path, server)  # the kernel's, so what was read late was not late
    assert "client_limited" in doubts(tmp_path)
    assert doubts(tmp_path)["client_limited"]["value"] > HELD_S / 2
    assert any(record.merged_chunks for record in records(tmp_path))
