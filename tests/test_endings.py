"""How runs end: by timeouts, at limits, by signals, by a kill, and with which exit status."""

import gzip
import json
import os
import resource
import signal
import socket
import time

import pytest

from servescope import store
from servescope.client.feed import Settings
from servescope.client.wire import Request
from servescope.client.workers import Workers
from servescope.errors import BadInput
from servescope.serve.answers import (
    GAP_S,
    Piece,
    answer,
    dripped_head,
    event,
    for_ever,
    repeated,
    streamed,
    tokens,
    whole,
)
from servescope.store import Run
from tests.support.command import QUICK, Command, gone, until
from tests.support.served import Served
from tests.test_faults import LONGEST_S, measure, unused_url

pytestmark = pytest.mark.waits

TWO = event({"content": " x x x x x x x x"})
BIG = event({"content": "x" * (17 << 20)})


def end_of(act, tmp_path, **options):
    """Outcome and reason, the same for all, of requests to a server that does this."""
    began_s = time.monotonic()
    options = {"load": ["users:2"], "requests": 2, **options}
    with Served(act, tokenize=True) as server:
        _, summary, records = measure(server.url, tmp_path, **options)
    assert time.monotonic() - began_s < LONGEST_S
    assert len(records) == 2
    assert summary.complete
    assert summary.stages[0].figures["output_tokens"] is None
    (found,) = {(record.outcome, record.reason) for record in records}
    return found


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (for_ever, "timeout_first_token"),
        (dripped_head, "timeout_first_token"),
        (repeated(b": keep-alive\n\n", 0.02, answer()[:1]), "timeout_first_token"),
        (repeated(answer()[0].data, 0.3, answer()[:1]), "timeout_first_token"),
        (repeated(b": keep-alive\n\n", 0.02, tokens(4)), "stalled"),
        (repeated(event({"content": ""}), 0.2, tokens(4)), "stalled"),
    ],
    ids=["silence", "a header byte at a time", "comments", "roles", "comments later", "no content"],
)
def test_bytes_without_a_token_do_not_put_off_a_timeout(tmp_path, act, kind):
    outcome, reason = end_of(act, tmp_path)
    assert outcome == f"failed:{kind}"
    assert reason == f"{kind}: after 1 s"


def test_an_endless_stream_of_chunks_of_many_tokens_ends_by_the_total_timeout(tmp_path):
    act = repeated(TWO, 0.1, tokens(1))
    outcome, reason = end_of(act, tmp_path, timeout="2s")
    assert (outcome, reason) == ("failed:timeout_total", "timeout_total: after 2 s")


def test_a_connection_that_is_not_taken_ends_by_the_connect_timeout(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    # one connection fills the queue, and the kernel lets no other finish its handshake
    with listener, socket.create_connection(listener.getsockname()):
        exchanges = drive(listener.getsockname(), tmp_path)
    ((fate, detail),) = {(exchange.fate, exchange.detail) for exchange in exchanges}
    assert (fate, detail) == ("timeout_connect", "after 0.5 s")


def drive(address, tmp_path):
    """Three requests of two users by a load process, without a probe before."""
    second = 1_000_000_000
    settings = Settings(
        family=int(socket.AF_INET),
        address=address,
        server_name="localhost",
        tls=False,
        verify=True,
        ca_file=None,
        head="POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: ",
        protocol="openai-chat",
        stream=True,
        connect_ns=second // 2,
        first_token_ns=second,
        between_tokens_ns=second,
        total_ns=second,
        max_bytes=1 << 20,
        users=2,
    )
    team = Workers([settings], 1, tmp_path)
    try:
        team.begin(lambda process: (Request(k, -1, 10, b"{}") for k in range(3)), lambda: 0)
        return [exchange for _, exchange in team.exchanges() if exchange is not None]
    finally:
        team.close()


def bomb(size):
    """A few kilobytes that become `size` bytes."""
    body = gzip.compress(b"data: " + b"x" * size + b"\n\n")
    return whole(200, body, "text/event-stream", "Content-Encoding: gzip")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (streamed(answer([Piece(0, BIG)])), "an event is larger than 16,777,216 bytes"),
        (bomb(100 << 20), "decompresses to more than 67,108,864 bytes or 256 times"),
        (
            whole(200, b"", "text/plain", "X-Long: " + "x" * 70_000),
            "header line above 65,536 bytes",
        ),
        (whole(200, b"", "text/plain", *["X-Many: x"] * 40_000), "head above 262,144 bytes"),
        (repeated(b"x" * (4 << 20), 0, []), "more than 67,108,864 bytes"),
    ],
    ids=["event", "gzip bomb", "header line", "headers", "body"],
)
def test_what_is_too_large_is_refused_by_name(tmp_path, act, words):
    outcome, reason = end_of(act, tmp_path)
    assert outcome == "failed:too_large"
    assert words in reason


def test_more_tokens_than_were_allowed_are_an_overrun(tmp_path):
    outcome, reason = end_of(repeated(event({"content": " x"}), GAP_S), tmp_path)
    assert outcome == "failed:overrun"
    assert "26 chunks" in reason


# --- signals and kills ----------------------------------------------------------------------------


def started(server, tmp_path, *words, sent=8):
    """A run in the middle, and its processes: those that load, and the collectors'."""
    command = Command("run", server.url, *QUICK, "--name", "one", *words, cwd=tmp_path)
    until(lambda: len(server.requests) >= sent, "requests")
    return command, command.children()


def directory(tmp_path):
    return tmp_path / "runs" / "one"


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_first_signal_lets_what_is_in_flight_end_and_keeps_it_all(tmp_path, name, status):
    with Served(streamed(answer()), tokenize=True) as server:
        command, loading = started(server, tmp_path, "--requests", "1000")
        command.process.send_signal(signal.Signals[name])
        assert command.wait() == status
        assert gone(loading)
        run = Run(directory(tmp_path))
        assert len(list(run.records())) == len(server.requests) < 1000
    assert {record.outcome for record in run.records()} == {"completed"}
    assert run.manifest.interrupted == name
    assert "INCOMPLETE" in command.out
    assert not json.loads((directory(tmp_path) / "summary.json").read_bytes())["complete"]
    assert f"{name}: nothing more is sent" in command.err
    assert "Traceback" not in command.err


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    with Served(for_ever, tokenize=True) as server:
        command, loading = started(server, tmp_path, sent=4)
        began_s = time.monotonic()
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two signals at once may be delivered as one
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert time.monotonic() - began_s < 4  # sooner than draining is given up
        assert gone(loading)
    records = list(Run(directory(tmp_path)).records())
    assert [record.outcome for record in records] == ["cancelled"] * 4
    assert "Traceback" not in command.err


def test_a_server_that_does_not_let_the_run_drain_is_given_up(tmp_path):
    with Served(for_ever, tokenize=True) as server:
        command, loading = started(server, tmp_path, sent=4)
        command.process.send_signal(signal.SIGTERM)
        assert command.wait() == 143
        assert gone(loading)
    records = list(Run(directory(tmp_path)).records())
    assert [record.outcome for record in records] == ["cancelled"] * 4


def test_two_signals_end_a_run_that_waits_for_the_answer_to_its_probe(tmp_path):
    hung = for_ever
    with Served(hung, probe=hung, tokenize=True) as server:
        command = Command("run", server.url, *QUICK, cwd=tmp_path)
        until(lambda: server.probes, "the probe")
        for _ in range(2):
            command.process.send_signal(signal.SIGINT)
            time.sleep(0.1)  # two signals at once may be delivered as one
        try:
            assert command.process.wait(timeout=3) == 130
        finally:
            command.process.kill()
            command.wait()


def test_after_a_kill_the_report_shows_what_was_done_and_nothing_goes_on_loading(tmp_path):
    answered_ns = []

    async def counted(request, peer):
        await streamed(answer())(request, peer)
        answered_ns.append(time.monotonic_ns())

    with Served(counted, tokenize=True) as server:
        command, loading = started(
            server, tmp_path, "--requests", "1000", "--workers", "2", sent=20
        )
        assert len(loading) == 2 + 1
        killed_ns = time.monotonic_ns()
        command.process.kill()
        command.wait()
        until(lambda: gone(loading), "load processes to end")
    kept = len(list(Run(directory(tmp_path)).records()))
    assert kept >= sum(at < killed_ns - 300_000_000 for at in answered_ns) > 0

    report = Command("report", directory(tmp_path), cwd=tmp_path)
    assert report.wait() == 0, report.err
    assert "INCOMPLETE" in report.out
    assert f"{kept} completed" in report.out


def test_a_load_process_that_dies_is_told_and_what_was_measured_is_kept(tmp_path):
    with Served(streamed(answer()), tokenize=True) as server:
        command, loading = started(server, tmp_path, "--requests", "1000")
        for pid in loading:
            os.kill(pid, signal.SIGKILL)
        assert command.wait() not in (0, 130, 143)
    assert "INCOMPLETE" in command.out
    assert list(Run(directory(tmp_path)).records())
    assert "Traceback" not in command.err


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_keeps_what_was_written(tmp_path):
    most = 20_000  # bytes of a file, which is how the system says that there is no more room
    with Served(streamed(answer()), tokenize=True) as server:
        command, loading = started(server, tmp_path, "--requests", "1000")
        resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert command.wait() == 1
        assert gone(loading)
    kept = len(list(Run(directory(tmp_path)).records()))
    assert 8 < kept < len(server.requests) < 1000
    assert str(directory(tmp_path).relative_to(tmp_path)) in command.err
    assert "File too large" in command.err
    assert "Traceback" not in command.err
    report = Command("report", directory(tmp_path), cwd=tmp_path)
    assert report.wait() == 0, report.err
    assert "INCOMPLETE" in report.out
    assert f"{kept} completed" in report.out


def test_too_little_room_is_refused_before_the_first_request(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MIN_FREE_BYTES", 1 << 62)
    with Served(streamed(answer()), tokenize=True) as server:
        with pytest.raises(BadInput, match=r"--out.*MiB free, have"):
            measure(server.url, tmp_path, requests=2)
        assert not server.requests
        assert not server.probes
    assert not list((tmp_path / "runs").iterdir())


# --- exit statuses --------------------------------------------------------------------------------


def test_a_run_in_which_all_fails_is_reported_and_exits_3(tmp_path):
    act = whole(500, b'{"error":{"message":"no blocks left"}}')
    with Served(act, tokenize=True) as server:
        command = Command("run", server.url, *QUICK, "--requests", "8", cwd=tmp_path)
        assert command.wait() == 3
    assert "8 failed:http_5xx" in command.out
    assert "HTTP 500; no blocks left" in command.out
    assert "Traceback" not in command.err


def test_a_refused_connection_is_one_line_and_exit_3(tmp_path):
    began_s = time.monotonic()
    command = Command("run", unused_url(), *QUICK, cwd=tmp_path)
    assert command.wait() == 3
    assert time.monotonic() - began_s < LONGEST_S
    assert command.out == ""
    assert "refused" in command.err
    assert command.err.count("\n") == 1
