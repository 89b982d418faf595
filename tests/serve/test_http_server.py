"""How the simulated server speaks HTTP: connections, limits, and whom it lets in."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from servescope.protocols import Ask, known
from servescope.serve.http import MAX_BODY_BYTES, MAX_HEAD_BYTES
from tests.serve.client import Client, request
from tests.support.command import Command, gone, until

CHAT = known()["openai-chat"]
COMPLETIONS = "/v1/completions"
SHORT = b'{"prompt":"x","max_tokens":3,"stream":true}'


@pytest.fixture
def wire(client):
    connection = client().connect()
    yield connection
    connection.close()


def test_a_connection_carries_one_request_after_another(wire):
    for _ in range(3):
        wire.send(request("POST", COMPLETIONS, SHORT))
        head, body = wire.response()
        assert (head.status, body[-14:]) == (200, b"data: [DONE]\n\n")
        wire.send(request("GET", "/health"))
        assert wire.response()[0].status == 200


def test_who_asks_for_the_head_gets_no_body(wire):
    wire.send(request("HEAD", "/v1/models") + request("GET", "/health"))
    assert wire.head().status == 200
    assert wire.response()[0].status == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux delays on demand")
def test_a_token_does_not_wait_until_the_client_acknowledges_the_head(client):
    first = []
    for _ in range(3):
        connection = client().connect()
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        body = b'{"prompt":"x","max_tokens":60,"stream":true}'
        connection.send(request("POST", COMPLETIONS, body))
        first.append(next(connection.pieces(connection.head())).count(b"data: "))
        connection.close()
    assert min(first) == 1


def test_requests_sent_ahead_are_answered_in_order(wire):
    asked = [request("POST", COMPLETIONS, SHORT), request("GET", "/version")] * 3
    wire.send(b"".join(asked))
    bodies = [wire.response()[1] for _ in asked]
    assert [b"DONE" in body for body in bodies] == [True, False] * 3
    assert all(b"version" in body for body in bodies[1::2])


def test_thousands_of_requests_sent_ahead_are_all_answered(wire):
    wire.send(request("GET", "/version") * 3000)
    assert {wire.response()[0].status for _ in range(3000)} == {200}


def test_http_1_0_gets_no_chunks_and_a_close_at_the_end(wire):
    wire.send(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(SHORT) + SHORT)
    head, body = wire.response()
    assert "transfer-encoding" not in head.headers
    assert body.startswith(b"data:")
    assert body.endswith(b"[DONE]\n\n")
    assert wire.ended()


@pytest.mark.parametrize("body", [b"", SHORT])
def test_who_asks_for_a_close_gets_one(wire, body):
    method, path = ("POST", COMPLETIONS) if body else ("GET", "/health")
    wire.send(request(method, path, body, "Connection: close"))
    head, _ = wire.response()
    assert head.headers["connection"] == "close"
    assert wire.ended()


def test_a_body_in_chunks_is_read(wire):
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire.send(head.encode())
    for byte in SHORT:
        wire.send(b"1\r\n%c\r\n" % byte)
    wire.send(b"0\r\n\r\n")
    assert wire.response()[0].status == 200


def test_a_request_may_come_byte_by_byte(wire):
    for byte in request("POST", COMPLETIONS, SHORT):
        wire.send(b"%c" % byte)
    assert wire.response()[1].endswith(b"[DONE]\n\n")


def test_who_waits_for_a_go_ahead_before_a_body_gets_it(wire):
    whole = request("POST", COMPLETIONS, SHORT, "Expect: 100-continue")
    wire.send(whole.removesuffix(SHORT))
    assert wire.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(SHORT)
    assert wire.response()[0].status == 200


def test_a_body_that_is_said_to_be_too_large_is_refused_unread(wire):
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n"
    wire.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert wire.response()[0].status == 413
    assert wire.ended()


def test_a_body_that_turns_out_too_large_is_refused(wire):
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire.send(head.encode())
    piece = b"a" * (1 << 20)
    for _ in range(MAX_BODY_BYTES // len(piece) + 2):
        wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    assert wire.response()[0].status == 413


@pytest.mark.parametrize("line", ["X-Long: " + "a" * MAX_HEAD_BYTES, "X-Many: a\r\n" * 9000])
def test_a_head_that_is_too_large_is_refused(wire, line):
    wire.send(request("GET", "/health", b"", line))
    assert wire.response()[0].status == 431


def test_a_head_that_never_ends_is_refused(wire):
    wire.send(b"GET /health HTTP/1.1\r\nX-Endless: ")
    for _ in range(3 * MAX_HEAD_BYTES // 4096):
        wire.send(b"a" * 4096)
    assert wire.response()[0].status == 431


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"]
)
def test_what_is_no_http_is_refused_and_the_connection_closed(wire, noise):
    wire.send(noise)
    head, body = wire.response()
    assert (head.status, head.headers["connection"]) == (400, "close")
    assert b"no HTTP" in body


def test_an_offer_of_http_2_is_answered_in_http_1(wire):
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    wire.send(request("GET", "/version", b"", *upgrade))
    assert wire.response()[0].status == 200


def test_paths_and_methods_that_an_engine_has_not_are_refused_in_json(client):
    assert client("vllm").get("/props").json == {"detail": "Not Found"}
    assert client("llamacpp").get("/version").json["error"]["code"] == 404
    assert client("vllm").get(COMPLETIONS).status == 405
    assert client("vllm").post("/metrics").status == 405


# --- whom it lets in ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:80"])
def test_a_request_may_name_the_loopback(wire, host):
    wire.send(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert wire.response()[0].status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example"])
def test_a_web_page_cannot_lead_a_browser_here_under_its_own_name(wire, host):
    wire.send(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _ = wire.response()
    assert head.status == 421
    assert not any(name.startswith("access-control") for name in head.headers)


@pytest.fixture
def serving(tmp_path):
    """`servescope serve` with these words; what it prints first, and the process."""
    started: list[Command] = []

    def start(*words: str, **environment: str) -> tuple[str, Command]:
        command = Command("serve", *words, "--port", "0", cwd=tmp_path, **environment)
        started.append(command)
        return command.process.stdout.readline(), command

    yield start
    for command in started:
        command.process.kill()
        command.wait()


def test_the_command_says_where_it_serves_and_ends_at_ctrl_c(serving):
    for number in (2, 15):
        line, command = serving("sim:sglang?step=8ms")  # which is the default, too
        assert line.startswith("serving sim:sglang?step=8ms on http://127.0.0.1:")
        assert "/v1/chat/completions" in line
        command.process.send_signal(number)
        assert command.wait() == 0
        assert not command.out + command.err


def test_a_token_is_wanted_where_there_is_one(serving, tmp_path):
    (tmp_path / "token").write_text("very secret\n")
    by_file, _ = serving("--quiet", "--token-file", "token")
    by_environment, _ = serving("--quiet", SERVESCOPE_SERVE_TOKEN="very secret")
    for url in (by_file, by_environment):
        connection = Client(url.strip()).connect()
        for said, status in (("", 401), ("Bearer wrong", 401), ("Bearer very secret", 200)):
            connection.send(request("GET", "/health", b"", f"Authorization: {said}"))
            assert connection.response()[0].status == status
        connection.close()


def test_an_address_that_others_can_reach_wants_a_token(tmp_path):
    command = Command("serve", "--host", "192.0.2.1", cwd=tmp_path)
    assert command.wait() == 2
    assert "token" in command.err
    assert command.err.count("\n") == 1


def test_a_port_in_use_is_one_clear_line(client, tmp_path):
    command = Command("serve", "--port", client().port, cwd=tmp_path)
    assert command.wait() == 2
    assert f"--port: '{client().port}': it is in use" in command.err
    assert command.err.count("\n") == 1


def test_a_server_ends_when_the_process_that_started_it_is_killed(tmp_path):
    script = (
        "import time\n"
        "from servescope.engine.config import parse\n"
        "from servescope.serve import Server\n"
        "with Server(parse('SIM', 'sim:')) as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    until(lambda: gone([pid]), "the server has ended")


def test_a_stream_that_was_asked_for_before_is_not_disturbed_by_a_bad_request(wire):
    wire.send(request("POST", COMPLETIONS, SHORT) + b"nonsense\r\n\r\n")
    assert wire.response()[1].endswith(b"[DONE]\n\n")
    assert wire.response()[0].status == 400


def test_an_ask_of_a_billion_tokens_is_refused_at_once(client):
    ask = Ask(prompt="x", output_tokens=10**9, model="tiny", stream=False)
    assert client().ask(CHAT, ask).status == 400
