"""Ways to reach a server: Unix sockets, and a connection for each request."""

import socket
import threading
import time

import pytest

from servescope.client.address import parse_target
from servescope.client.dial import Dial
from servescope.client.wire import Request
from servescope.client.workers import Workers
from servescope.errors import BadInput, Unreachable
from tests.support.command import QUICK, Command
from tests.support.proxies import UnixServed
from tests.support.reached import measure, outcomes, settings_for
from tests.support.served import Served, healthy


@pytest.fixture(scope="module")
def plain():
    with Served(healthy(0.01, 0.002)) as found:
        yield found


# --- a connection for each request ----------------------------------------------------------------


def test_without_keep_alive_each_request_has_a_connection_of_its_own_and_its_time(tmp_path):
    with Served(healthy(0.01, 0.002)) as server:
        _, records, _ = measure(server.url, tmp_path, keep_alive=False)
        assert outcomes(records) == ["completed"] * 6
        assert len({id(peer) for peer in server.peers}) == 6
        assert {request.headers["connection"] for request in server.requests} == {"close"}
    assert all(record.connect_ns > 0 for record in records)
    assert all(record.sent_ns >= record.due_ns + record.connect_ns for record in records)


def test_with_keep_alive_connections_are_opened_ahead_and_used_again(tmp_path):
    with Served(healthy(0.01, 0.002)) as server:
        _, records, _ = measure(server.url, tmp_path)
        assert len({id(peer) for peer in server.peers}) == 2
        assert not any("connection" in request.headers for request in server.requests)
    assert [record.connect_ns for record in records] == [0] * 6


def test_the_option_for_it_is_no_keep_alive(plain, tmp_path):
    before = len(plain.peers)
    words = ("--no-keep-alive", "--requests", 4, "--load", "sync")
    command = Command("run", plain.url, *QUICK, *words, cwd=tmp_path)
    assert command.wait() == 0, command.err
    assert len({id(peer) for peer in plain.peers[before:]}) == 4


# --- Unix sockets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["http+unix://{quoted}/v1", "unix:{path}", "unix://{path}"])
def test_a_server_on_a_unix_socket_is_measured_by_a_user_clock_and_the_run_says_so(tmp_path, form):
    path = str(tmp_path / "server.sock")
    quoted = path.replace("/", "%2F")
    with UnixServed(healthy(0.01, 0.002), path) as server:
        manifest, records, clocks = measure(form.format(path=path, quoted=quoted), tmp_path)
        assert {request.headers["host"] for request in server.requests} == {"localhost"}
    assert outcomes(records) == ["completed"] * 6
    assert all(record.first_byte_ns - record.sent_ns > 0 for record in records)
    assert clocks == {0.0}
    assert manifest.targets == [f"http+unix://{quoted}"]
    assert any("Unix socket" in note for note in manifest.notes)


def test_a_unix_socket_that_nobody_listens_on_is_said(tmp_path):
    with pytest.raises(Unreachable, match=r"missing\.sock: cannot connect: No such file"):
        measure(f"unix:{tmp_path}/missing.sock", tmp_path)


@pytest.mark.parametrize("target", ["unix:", "http+unix:///v1", "unix:/" + "x" * 107])
def test_a_unix_target_that_is_none_is_bad_input(target):
    with pytest.raises(BadInput, match="want unix:PATH or http"):
        parse_target(target)


def test_a_unix_socket_whose_queue_is_full_is_waited_for(tmp_path):
    path = str(tmp_path / "full.sock")
    settings = settings_for(family=int(socket.AF_UNIX), address=(path,))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first, second = Dial(settings, None), Dial(settings, None)
        try:
            assert first.go_on()
            assert not second.go_on()
            listener.accept()[0].close()
            assert second.go_on()
        finally:
            first.sock.close()
            second.sock.close()


def test_a_burst_on_a_unix_socket_with_a_short_queue_is_answered_whole(tmp_path):
    with UnixServed(healthy(0.01, 0.002), str(tmp_path / "short.sock"), backlog=1) as server:
        options = {"load": ["burst"], "requests": 40, "keep_alive": False}
        _, records, _ = measure(f"unix:{server.path}", tmp_path, **options)
    assert outcomes(records) == ["completed"] * 40


def answer_late(listener, count, late_s):
    """Accept nothing for a while, then serve one connection after the other."""
    time.sleep(late_s)
    for _ in range(count):
        with listener.accept()[0] as sock:
            while not sock.recv(65536).endswith(b"{}"):
                pass
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_waiting_for_a_server_that_accepts_late_leaves_the_core_to_it(tmp_path):
    path = str(tmp_path / "late.sock")
    settings = settings_for(family=int(socket.AF_UNIX), address=(path,), keep_alive=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        serving = threading.Thread(target=answer_late, args=(listener, 12, 1.0))
        serving.start()
        team = Workers([settings], 1, tmp_path)
        try:
            requests = [Request(k, 0, 10, b"{}") for k in range(12)]
            team.begin(lambda process: iter(requests), lambda: 0)
            fates = [one.fate for _, one in team.exchanges() if one is not None]
            (health,) = team.health()
        finally:
            team.close()
            serving.join()
    assert fates == ["ended"] * 12
    assert health.cpu_ratio < 0.3  # asking without a pause would take it all


def test_warm_connections_that_a_short_queue_has_no_place_for_are_used_later(tmp_path):
    with UnixServed(healthy(0.01, 0.002), str(tmp_path / "warm.sock"), backlog=1) as server:
        options = {"load": ["users:20"], "requests": 60}
        _, records, _ = measure(f"unix:{server.path}", tmp_path, **options)
    assert outcomes(records) == ["completed"] * 60
    assert [record.connect_ns for record in records] == [0] * 60
