"""The load generator doubts itself where it is the limit, and not otherwise."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from servescope.conduct import conduct
from servescope.doubts import StageFacts
from servescope.doubts.generator import KEPT_WAITING_RATIO, own_limit
from servescope.experiment import Trial
from servescope.records import Sample
from servescope.report.console import table
from servescope.serve.scripted import LAST_CHUNK, chunk, head
from servescope.store import Run
from servescope.summary import summarise
from tests.support.planted import MS, loop, raised, request, steady, unsent
from tests.support.proxies import UnixServed
from tests.support.served import Served, healthy


def test_a_generator_that_sends_late_is_doubted():
    found = raised(steady(late_ms=3))["client_limited"]
    assert found.value == pytest.approx(0.003)
    assert found.limit == pytest.approx(0.001)
    assert "3.00 ms late" in found.message


def test_the_allowed_delay_grows_with_the_gap_between_requests():
    slow = StageFacts(label="constant:1", open=True, rate=1.0, planned=400)
    assert "client_limited" not in raised(steady(late_ms=3), slow)
    assert raised(steady(late_ms=11), slow)["client_limited"].limit == pytest.approx(0.010)


def test_a_few_late_requests_are_no_evidence_of_a_late_p99():
    late = [request(i, late_ms=9) for i in range(3)]
    assert "client_limited" not in raised([*late[:1], *steady(4)[1:]])
    assert "client_limited" not in raised([*late, *steady(100)[3:]])
    assert "client_limited" in raised([*late, *steady(20)[3:]])


def test_requests_that_are_due_together_leave_one_after_the_other():
    burst = StageFacts(label="burst", open=True, planned=400)

    def sent_each(gap_ms, records=400):
        return raised([burst_request(i, gap_ms) for i in range(records)], burst)

    def burst_request(i, gap_ms):
        made = request(0, late_ms=0.1 + i * gap_ms)
        made.request = i
        return made

    assert "client_limited" not in sent_each(0.05)
    assert sent_each(3)["client_limited"].value == pytest.approx(0.003)
    users = StageFacts(label="users:400", open=False, users=400)
    assert "client_limited" not in raised([burst_request(i, 0.05) for i in range(400)], users)


def test_a_rate_that_cannot_be_sent_is_the_generators_limit_and_was_not_offered():
    flood = StageFacts(label="constant:200000", open=True, rate=2e5, planned=4000)
    made = [request(i, sent_ns=i * 50_000) for i in range(4000)]
    for record in made:
        record.due_ns = record.request * 5_000
    found = raised(made, flood)
    assert found["client_limited"].value == pytest.approx(0.99 * 4000 * 45e-6, rel=1e-3)
    assert found["not_offered"].value == pytest.approx(0.1)


def test_waiting_under_a_declared_cap_and_connecting_are_not_the_generators_fault():
    assert "client_limited" not in raised(steady(late_ms=30, held_ns=20 * MS, connect_ns=10 * MS))
    assert "client_limited" in raised(steady(late_ms=33, held_ns=20 * MS, connect_ns=10 * MS))


@pytest.mark.parametrize(
    ("name", "fine", "bad", "says"),
    [("cpu_ratio", 0.9, 0.97, "97 % of a core"), ("lag_p99_s", 0.005, 0.012, "lagged 12.0 ms")],
)
def test_a_busy_or_lagging_load_process_is_doubted(name, fine, bad, says):
    assert raised(steady(), samples=[loop(name, fine)]) == {}
    found = raised(steady(), samples=[loop(name, fine), loop(name, bad, worker="1")])
    assert found["client_limited"].value == bad
    assert says in found["client_limited"].message


def test_a_load_process_that_was_busy_in_another_stage_is_no_reason():
    elsewhere = Sample(t_ns=0, source="host", name="cpu_ratio", value=1.0)
    assert raised(steady(), samples=[loop("cpu_ratio", 1.0, stage="1"), elsewhere]) == {}


def test_a_stage_too_short_to_tell_says_nothing_of_cpu():
    assert "client_limited" not in raised(steady(50), samples=[loop("cpu_ratio", 0.97)])


def test_a_lag_of_a_few_turns_is_no_evidence():
    few = [loop("lag_p99_s", 0.02), loop("lag_p99_low_s", 0.001)]
    assert raised(steady(), samples=few) == {}
    many = [loop("lag_p99_s", 0.02), loop("lag_p99_low_s", 0.018)]
    assert raised(steady(), samples=many)["client_limited"].value == 0.02


def test_advice_on_a_late_generator_depends_on_who_had_its_core():
    late = steady(late_ms=3)
    alone = raised(late, samples=[loop("waiting_ratio", 0.001)])["client_limited"].advice
    assert "--workers" in alone
    crowded = raised(late, samples=[loop("waiting_ratio", 0.35)])["client_limited"].advice
    assert "other programs kept a load process waiting for a core for 35.0 %" in crowded
    assert "--workers" not in crowded


def test_requests_that_this_machine_could_not_send_are_its_own_limit():
    short = StageFacts(
        label="constant:100", open=True, rate=100.0, planned=400, exhausted={"open files": 40}
    )
    lost = [unsent(i, "failed:connect") for i in range(360, 400)]
    found = raised([*steady(360), *lost], short)
    assert found["client_limited"].value == pytest.approx(0.1)
    assert "40 of 400 requests" in found["client_limited"].message
    for kind in ("client_limited", "not_offered"):
        assert "ulimit -n" in found[kind].advice
    assert "the server is not to blame" in found["errors"].advice


def test_what_a_machine_lacked_is_told_from_what_a_server_said():
    assert own_limit("failed:connect", "connect: [Errno 24] Too many open files") == "open files"
    assert own_limit("failed:connect", "too many open files: raise ulimit -n") == "open files"
    words = "[Errno 99] Cannot assign requested address"
    assert own_limit("failed:connect", words) == "local ports"
    assert own_limit("failed:connect", "connect: [Errno 111] Connection refused") is None
    assert own_limit("failed:connect", "connect: proxy answered 503 too many open files") is None
    assert own_limit("failed:http_5xx", "too many open files") is None


def test_several_reasons_for_one_doubt_are_all_told():
    found = raised(steady(late_ms=3), samples=[loop("cpu_ratio", 0.95), loop("lag_p99_s", 0.2)])
    assert found["client_limited"].message.count(";") == 2


# --- real runs ------------------------------------------------------------------------------------

GAP_S = 0.005
HELD_S, LET_S = 0.1, 0.03
"""A process that is stopped like this is late for most of the time, by many times what is allowed:
nothing else on the machine can make up for it."""
SPIN_S, REST_S = 0.02, 0.01
SPIN = """
import os, sys, time
core, spin_s, rest_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
os.sched_setaffinity(0, {core})
os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
print(flush=True)
over_s = time.monotonic() + 30
while time.monotonic() < over_s:
    rest_at_s = time.monotonic() + spin_s
    while time.monotonic() < rest_at_s:
        pass
    time.sleep(rest_s)
"""
"""Has a core for two thirds of the time, whatever else wants it."""
DESCRIPTORS = 128


def measure(target, tmp_path, **options):
    """The stages of a run."""
    options = {"data": "dummy", "input_tokens": "8", "output_tokens": "16"} | options
    run = conduct(Trial(target=target, out=str(tmp_path / "runs"), **options))
    return summarise(run)


def doubts(stage):
    return {doubt.kind: doubt for doubt in stage.doubts}


def load_processes():
    """Those that this process has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = [int(pid) for task in tasks for pid in task.read_text().split()]
    return {pid for pid in pids if b"client.drive" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@contextmanager
def upon_the_load_process(action):
    """Do something with it as soon as it is there, or until the end."""
    over = threading.Event()

    def watch():
        while not (found := load_processes()):
            if over.wait(0.002):
                return
        action(found.pop(), over)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def hold_up(pid, over):
    """Stop a process again and again."""
    try:
        while not over.wait(LET_S):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(HELD_S)
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


@contextmanager
def busy_core():
    """A core that something of a higher priority than a load process's has most of the time."""
    core = min(os.sched_getaffinity(0))
    words = [sys.executable, "-c", SPIN, str(core), str(SPIN_S), str(REST_S)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as spin:
        try:
            if not spin.stdout.readline():
                pytest.skip("this system gives nobody here a real-time priority")
            yield core
        finally:
            spin.kill()


@pytest.mark.slow
def test_a_load_process_that_is_held_up_doubts_itself_and_says_that_it_merged_what_came(tmp_path):
    with Served(healthy(0.02, GAP_S)) as server, upon_the_load_process(hold_up):
        summary = measure(server.url, tmp_path, load=["constant:100"], requests=150)
    (stage,) = summary.stages
    found = doubts(stage)
    assert stage.outcomes == {"completed": 150}
    assert "late (P99)" in found["client_limited"].message
    assert "the event loop was late" in found["merged_reads"].advice
    assert stage.generator.behind_ratio > found["merged_reads"].value / 2
    assert "came out of one read" in " ".join(table(summary).split())


@pytest.mark.slow
def test_a_load_process_on_a_busy_core_says_that_others_had_its_core(tmp_path):
    def pin(pid, _):
        os.sched_setaffinity(pid, {core})

    with (
        Served(healthy(0.02, GAP_S)) as server,
        busy_core() as core,
        upon_the_load_process(pin),
    ):
        (stage,) = measure(server.url, tmp_path, load=["constant:100"], requests=150).stages
    assert stage.outcomes == {"completed": 150}
    found = doubts(stage)["client_limited"]
    assert "late (P99)" in found.message
    assert "other programs kept a load process waiting for a core" in found.advice


def test_a_server_that_sends_chunks_together_is_told_from_a_client_that_is_late(tmp_path):
    async def script(request, peer):
        event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
        end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        await peer.send(head())
        for _ in range(8):
            await peer.send(chunk(event) + chunk(event))
        await peer.send(chunk(end) + LAST_CHUNK)

    with Served(script, probe=healthy(0, 0)) as server:
        (stage,) = measure(server.url, tmp_path, load=["sync"], requests=60).stages
    assert stage.figures["merged_reads_ratio"] >= 0.5
    assert "the server, or a proxy before it" in doubts(stage)["merged_reads"].advice


def test_a_run_says_whether_the_kernel_took_its_times(tmp_path):
    def clocks(server, out):
        summary = measure(server, out, load=["users:2"], requests=8)
        (stage,) = summary.stages
        assert stage.generator.lag_max_s > 0
        shown = table(summary).partition("times from ")[2].split()[0]
        return Run(Path(summary.directory)).manifest.clock, stage.generator.clock, shown

    path = str(tmp_path / "server.sock")
    with Served(healthy(0.01, GAP_S)) as stamped, UnixServed(healthy(0.01, GAP_S), path):
        assert clocks(stamped.url, tmp_path / "tcp") == ("kernel", "kernel", "the")
        assert clocks(f"unix:{path}", tmp_path / "unix") == ("user", "user", "user")


def test_a_rate_beyond_the_machine_ends_and_accounts_for_every_request(tmp_path):
    """Requests are due each 5 us; no process sends as fast, so the last is late by most of all."""
    with Served(healthy(0, 0)) as server:
        load = ["poisson:200000"]
        summary = measure(server.url, tmp_path, load=load, requests=1000, output_tokens="1")
    (stage,) = summary.stages
    assert sum(stage.outcomes.values()) == 1000
    assert {"client_limited", "not_offered"} & set(doubts(stage))


@pytest.mark.waits
def test_running_out_of_descriptors_is_said_to_be_this_machines_limit(tmp_path):
    """More requests are in flight at the end than a process may have connections."""
    with Served(healthy(0.1, 0.2)) as server:
        words = ["run", server.url, "--load", "constant:100", "--requests", "150"]
        words += ["--data", "dummy", "--output-tokens", "16", "--workers", "1", "--json"]
        words += ["--out", tmp_path]
        limited = ["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", sys.executable]
        done = subprocess.run(
            [*limited, "-m", "servescope", *map(str, words)],
            check=True,
            capture_output=True,
            timeout=60,
        )
    (stage,) = json.loads(done.stdout)["stages"]
    lost = stage["outcomes"]["failed:connect"]
    assert sum(stage["outcomes"].values()) == 150
    assert 150 - DESCRIPTORS <= lost < 75
    assert "too many open files" in stage["reasons"][0]["words"].lower()
    found = {doubt["kind"]: doubt for doubt in stage["doubts"]}
    assert f"{lost} of 150 requests were not sent" in found["client_limited"]["message"]
    assert "ulimit -n" in found["client_limited"]["advice"]
    assert "the server is not to blame" in found["errors"]["advice"]


@pytest.mark.slow
def test_an_easy_load_does_not_doubt_its_generator(tmp_path):
    """Unless other programs really had its core, or the whole machine stood still: then it would be
    right to. That befalls one run in five at most."""
    doubted = 0
    for attempt in range(5):
        load = ["users:4", "poisson:20", "burst"]
        summary = measure([], tmp_path / f"{attempt}", load=load, requests=16)
        for stage in summary.stages:
            assert stage.outcomes == {"completed": 16}
            crowded = (stage.generator.waiting_ratio or 0.0) > KEPT_WAITING_RATIO
            doubted += not crowded and "client_limited" in doubts(stage)
        assert summary.stages[2].generator.together == 16
    assert doubted <= 1
    assert "times from the kernel" in table(summary)
