"""Every way to reach a server: Unix sockets, proxies, certificates, a connection each time."""

import base64
import fcntl
import os
import shutil
import socket
import ssl
import subprocess
import termios
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.client.address import parse_target
from servescope.client.dial import Dial, send_whole
from servescope.client.feed import Settings
from servescope.client.proxy import Tunnel, handshake, proxy_for
from servescope.client.wire import Request
from servescope.client.workers import Workers
from servescope.conduct import conduct
from servescope.errors import BadInput, Unreachable
from servescope.experiment import Trial, resolve
from servescope.offers import check_ownership, offers
from tests.support.command import QUICK, Command, until
from tests.support.proxies import HTTP_REFUSAL, Proxy, Socks, UnixServed
from tests.support.served import CERTIFICATE, Served, healthy, tls_context

KEY = CERTIFICATE.with_name("key.pem")
PASSWORD = "pa55word-of-a-proxy"  # noqa: S105 (of nobody)
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def plain():
    with Served(healthy(0.01, 0.002)) as found:
        yield found


@pytest.fixture(scope="module")
def secure():
    with Served(healthy(0.01, 0.002), tls=tls_context()) as found:
        yield found


def measure(target, tmp_path, **options):
    """A short run; its manifest, its records, and whether the kernel took its times."""
    options = {"load": ["users:2"], "requests": 6, "data": "dummy", "output_tokens": "5"} | options
    run = conduct(Trial(target=target, out=str(tmp_path / "runs"), **options))
    clocks = {sample.value for sample in run.samples() if sample.name == "kernel_clock"}
    return run.manifest, list(run.records()), clocks


def outcomes(records):
    return [record.outcome for record in records]


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


def settings_for(**changes):
    """What a load process is told of a target; no request is rendered from it here."""
    known = {
        "family": int(socket.AF_INET),
        "address": ("127.0.0.1", 0),
        "server_name": "localhost",
        "tls": False,
        "verify": True,
        "ca_file": None,
        "head": "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: ",
        "protocol": "openai-chat",
        "stream": True,
        "connect_ns": 10 * SECOND,
        "first_token_ns": 10 * SECOND,
        "between_tokens_ns": 10 * SECOND,
        "total_ns": 10 * SECOND,
        "max_bytes": 1 << 20,
    }
    return Settings(**(known | changes))


def drive(settings, requests, tmp_path):
    """What becomes of them in a load process, without a probe before."""
    team = Workers([settings], 1, tmp_path)
    try:
        team.begin(lambda process: iter(requests), lambda: 0)
        return [exchange for _, exchange in team.exchanges() if exchange is not None]
    finally:
        team.close()


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


# --- proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind_and_variable", "asked"),
    [
        ((Proxy, "http_proxy"), "POST http://{where}/v1/chat/completions"),
        ((Proxy, "ALL_PROXY"), "POST http://{where}/v1/chat/completions"),
        ((Socks, "HTTP_PROXY"), "address {where}"),
        ((Socks, "all_proxy"), "address {where}"),
    ],
)
def test_a_run_goes_through_the_proxy_of_the_environment_and_says_so(
    plain, tmp_path, monkeypatch, kind_and_variable, asked
):
    kind, variable = kind_and_variable
    with kind() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        manifest, records, clocks = measure(plain.url, tmp_path, keep_alive=False)
        said = proxy.asked
    assert outcomes(records) == ["completed"] * 6
    assert clocks == {1.0}
    assert said.count(asked.format(where=plain.url.removeprefix("http://"))) >= 6 + 1
    assert [note for note in manifest.notes if proxy.url in note]
    assert all(record.connect_ns > 0 for record in records)


@pytest.mark.parametrize("kind", [Proxy, Socks])
def test_tls_goes_through_the_proxy_to_the_server_itself(secure, tmp_path, monkeypatch, kind):
    with kind("me", PASSWORD) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        _, records, clocks = measure(secure.url, tmp_path, ca_file=str(CERTIFICATE))
        where = secure.url.removeprefix("https://")
        assert set(proxy.asked) == {f"{'CONNECT' if kind is Proxy else 'address'} {where}"}
    assert outcomes(records) == ["completed"] * 6
    assert clocks == {1.0}


@pytest.mark.parametrize(("scheme", "form"), [("socks5h", "name"), ("socks5", "address")])
def test_socks5h_leaves_names_to_the_proxy_and_socks5_does_not(
    plain, tmp_path, monkeypatch, scheme, form
):
    with Socks() as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.replace("socks5", scheme))
        _, records, _ = measure(f"http://localhost:{plain.port}", tmp_path)
        assert {asked.partition(" ")[0] for asked in proxy.asked} == {form}
    assert outcomes(records) == ["completed"] * 6


@pytest.mark.parametrize(("kind", "secured"), [(Proxy, False), (Proxy, True), (Socks, False)])
def test_the_password_of_a_proxy_reaches_it_and_is_shown_nowhere(
    plain, secure, tmp_path, kind, secured
):
    server = secure if secured else plain
    trust = ["--ca-file", CERTIFICATE] if secured else []
    with kind("me", PASSWORD) as proxy:
        environment = {"ALL_PROXY": proxy.url, "NO_PROXY": ""}
        words = ("run", server.url, *QUICK, "--requests", 4, *trust)
        command = Command(*words, cwd=tmp_path, **environment)
        assert command.wait() == 0, command.err
        assert len(proxy.asked) > 1
        proxy.password = "another"  # noqa: S105 (of nobody)
        refused = Command(*words, cwd=tmp_path, **environment)
        assert refused.wait() == 3
    kept = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    shown = [text.encode() for one in (command, refused) for text in (one.out, one.err)]
    pair = base64.b64encode(f"me:{PASSWORD}".encode())
    assert not [text for text in [*kept, *shown] if PASSWORD.encode() in text or pair in text]
    assert f"{proxy.scheme}://127.0.0.1:{proxy.port}".encode() in b"".join(kept)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Proxy, f"proxy answered {HTTP_REFUSAL}"),
        (Socks, "proxy refused user and password"),
    ],
)
def test_a_proxy_that_refuses_is_quoted(secure, tmp_path, monkeypatch, kind, words):
    with kind("me", PASSWORD) as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.replace(PASSWORD, "wrong"))
        with pytest.raises(Unreachable, match=words):
            measure(secure.url, tmp_path, ca_file=str(CERTIFICATE))


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Proxy, f"proxy answered {HTTP_REFUSAL}"), (Socks, "proxy answered 2, not allowed")],
)
def test_a_proxy_that_refuses_in_mid_run_is_a_failure_of_the_request(
    tmp_path, monkeypatch, kind, words
):
    with kind() as proxy:

        async def act(request, peer):
            await healthy(0.01, 0.002)(request, peer)
            proxy.refusing = True

        with Served(act, tls=tls_context()) as server:
            monkeypatch.setenv("https_proxy", proxy.url)
            options = {"load": ["sync"], "requests": 3, "keep_alive": False, "insecure": True}
            _, records, _ = measure(server.url, tmp_path, **options)
    assert outcomes(records) == ["completed", "failed:connect", "failed:connect"]
    assert all(words in record.reason for record in records[1:])


def test_the_connect_timeout_holds_for_what_a_proxy_takes_too(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = settings_for(
            address=silent.getsockname(),
            tunnel=Tunnel("http", "127.0.0.1", 80, "me", PASSWORD),
            connect_ns=SECOND // 4,
            users=1,
        )
        found = drive(settings, [Request(0, -1, 10, b"{}")], tmp_path)
    assert [(one.fate, one.detail) for one in found] == [("timeout_connect", "after 0.25 s")]


def test_an_engine_that_is_started_here_is_never_behind_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    manifest, records, _ = measure([], tmp_path, requests=2)
    assert outcomes(records) == ["completed"] * 2
    assert not [note for note in manifest.notes if "proxy" in note]


def test_a_proxy_that_is_not_there_is_named(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:{PASSWORD}@127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"by the proxy http://127\.0\.0\.1:1: .*refused"):
        measure(plain.url, tmp_path)


@pytest.mark.parametrize(
    ("said", "host", "port", "excepted"),
    [
        ("*", "a.example", 80, True),
        ("a.example", "a.example", 80, True),
        ("example", "a.example", 80, True),
        (".example", "a.example", 80, True),
        (".example", "example", 80, True),
        ("*.example", "a.example", 80, True),
        ("ple", "a.example", 80, False),
        ("b.example, A.Example", "a.example", 80, True),
        ("b.example a.example", "a.example", 80, True),
        ("a.example:80", "a.example", 80, True),
        ("a.example:81", "a.example", 80, False),
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.0/8", "127.1.2.3", 80, True),
        ("127.0.0.0/8", "128.1.2.3", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:81", "::1", 80, False),
        ("", "a.example", 80, False),
        (".", "a.example", 80, False),
    ],
)
def test_no_proxy_excepts_hosts_domains_networks_and_ports(said, host, port, excepted):
    found = proxy_for("http", host, port, {"http_proxy": "p:1", "NO_PROXY": said})
    assert (found is None) == excepted


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({"http_proxy": "p:3128"}, "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128/"}, "http://p:3128"),
        ({"http_proxy": "one:1", "HTTP_PROXY": "two:2"}, "http://one:1"),
        ({"https_proxy": "p:3128"}, None),
        ({"http_proxy": "one:1", "all_proxy": "two:2"}, "http://one:1"),
        ({"http_proxy": "", "all_proxy": "two:2"}, None),
        ({"ALL_PROXY": "socks5h://u:p%40@[::1]:1080"}, "socks5h://[::1]:1080"),
    ],
)
def test_the_first_variable_that_is_there_names_the_proxy(environment, url):
    found = proxy_for("http", "a.example", 80, environment)
    assert (found and found.url) == url


@pytest.mark.parametrize(
    "text", ["https://p:1", "socks4://p:1", "p", "http://p:port", f"http://u:{PASSWORD}@p", "p q:1"]
)
def test_a_proxy_that_cannot_be_used_is_bad_input_that_names_the_variable(text):
    with pytest.raises(BadInput, match=r"all_proxy: .*want http://, socks5://") as found:
        proxy_for("http", "a.example", 80, {"all_proxy": text})
    assert PASSWORD not in str(found.value)


def talk(tunnel, answer, cuts):
    """What our side says when the proxy's answers come in these pieces."""
    steps = handshake(tunnel)
    said, at = next(steps), 0
    try:
        for size in [*cuts, len(answer)]:
            if at < len(answer):
                said += steps.send(answer[at : at + size])
                at += size
        steps.send(b"")
    except StopIteration:
        return said, at
    raise AssertionError("the handshake goes on")


@given(st.lists(st.integers(1, 20)))
def test_a_proxys_answer_means_the_same_however_it_is_cut(cuts):
    answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"
    said, _ = talk(Tunnel("http", "::1", 443, "me", "x"), answer, cuts)
    assert said.startswith(b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:x") + b"\r\n\r\n" in said


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("http", [b"HTTP/1.1 200 OK\r\n\r\nmore"]),
        ("http", [b"SSH-2.0\r\n\r\n"]),
        ("http", [b"HTTP/1.1 407 No\r\n\r\n"]),
        ("http", [b""]),
        ("http", [b"HTTP/1.1 200", b""]),
        ("socks5", [b""]),
        ("socks5", [b"HTTP/1.1 400"]),
        ("socks5", [b"\x05\xff"]),
        ("socks5", [b"\x05\x02"]),
        ("socks5", [b"\x05\x00", b""]),
        ("socks5", [b"\x05\x00", b"\x05\x63\x00\x01\x00"]),
        ("socks5", [b"\x05\x00", b"\x05\x00\x00\x09\x00"]),
        ("socks5", [b"\x05\x00", b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00more"]),
    ],
)
def test_a_proxy_that_says_something_else_is_an_error_in_words(kind, answers):
    *first, last = answers
    steps = handshake(Tunnel(kind, "a.example", 443))
    next(steps)
    for answer in first:
        steps.send(answer)
    with pytest.raises(ConnectionError, match="proxy"):
        steps.send(last)


@pytest.mark.parametrize(
    ("host", "refused"),
    [("127.0.0.1", False), ("localhost", False), ("llm.example", True), ("8.8.8.8", True)],
)
def test_a_large_load_through_a_proxy_wants_an_owner_unless_it_is_known_to_be_private(
    host, refused
):
    trial = Trial(load=["users:64"], requests=64)
    stages = offers(resolve(trial))
    if not refused:
        check_ownership(trial, stages, host)
        return
    with pytest.raises(BadInput, match="--i-own-this"):
        check_ownership(trial, stages, host)


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict():
    """A server that wants to see a certificate, and would speak HTTP/2 too."""
    context = tls_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(CERTIFICATE)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with Served(healthy(0.01, 0.002), tls=context) as found:
        yield found


TRUST = {"ca_file": str(CERTIFICATE)}


def test_a_server_that_wants_a_certificate_is_shown_it_and_http_1_is_agreed_on(strict, tmp_path):
    shown = {"client_cert": str(CERTIFICATE), "client_key": str(KEY)}
    _, records, clocks = measure(strict.url, tmp_path, **TRUST, **shown)
    assert outcomes(records) == ["completed"] * 6
    assert clocks == {1.0}
    chosen = {
        peer.writer.get_extra_info("ssl_object").selected_alpn_protocol() for peer in strict.peers
    }
    assert chosen == {"http/1.1"}


def test_certificate_and_key_may_be_in_one_file(strict, tmp_path):
    (tmp_path / "both.pem").write_bytes(KEY.read_bytes() + CERTIFICATE.read_bytes())
    words = ["--ca-file", CERTIFICATE, "--client-cert", tmp_path / "both.pem", "--requests", 2]
    command = Command("run", strict.url, *QUICK, *words, "--load", "sync", cwd=tmp_path)
    assert command.wait() == 0, command.err


def under_a_password(path):
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", KEY, "-out", path],  # noqa: S607
        check=True,
        capture_output=True,
    )


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"client_cert": str(CERTIFICATE)}, "--client-cert: .*want a PEM certificate and its key"),
        ({"client_cert": "none.pem"}, "--client-cert: .*cannot be read"),
        ({"client_cert": "text.pem"}, "--client-cert: .*want a PEM certificate and its key"),
        (
            {"client_cert": str(CERTIFICATE), "client_key": "text.pem"},
            "--client-key: .*want the key of the certificate",
        ),
        ({"client_cert": str(CERTIFICATE), "client_key": "none.pem"}, "--client-key: .*read"),
        ({"client_key": str(KEY)}, "--client-key: .*want its certificate in --client-cert"),
        ({"ca_file": "text.pem"}, "--ca-file: .*want PEM certificates"),
    ],
)
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_certificate_that_cannot_be_used_is_bad_input(
    secure, tmp_path, monkeypatch, *, given, words, scheme
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pem").write_text("nothing")
    with pytest.raises(BadInput, match=words):
        measure(secure.url.replace("https", scheme), tmp_path, **given)


@needs_openssl
def test_a_key_under_a_password_is_refused_and_nobody_is_asked(secure, tmp_path):
    under_a_password(tmp_path / "locked.pem")
    given = ["--client-cert", CERTIFICATE, "--client-key", tmp_path / "locked.pem"]
    command = Command("run", secure.url, *given, cwd=tmp_path)
    assert command.wait() == 2
    assert "under a password" in command.err
    assert command.err.count("\n") == 1


def broken_answer(listener):
    """Over TLS, in one send: some of an answer, and then a record that is none."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = tls_context().wrap_bio(incoming, outgoing, server_side=True)

    def done(step):
        with suppress(ssl.SSLWantReadError):
            step()
            return True
        sock.sendall(outgoing.read())
        incoming.write(sock.recv(65536))
        return False

    with listener.accept()[0] as sock:
        for step in (tls.do_handshake, tls.read):
            while not done(step):
                pass
        tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe last tokens")
        sock.sendall(outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
        while sock.recv(65536):  # our alert, then the end
            pass


def test_what_came_whole_before_tls_broke_is_kept(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=broken_answer, args=(listener,))
        serving.start()
        settings = settings_for(
            address=listener.getsockname(), tls=True, ca_file=str(CERTIFICATE), total_ns=SECOND
        )
        (found,) = drive(settings, [Request(0, 0, 10, b"{}")], tmp_path)
        serving.join()
    assert found.raw.endswith(b"the last tokens")
    assert found.fate != "ended"


def test_a_handshake_that_is_longer_than_the_sockets_buffer_is_sent_whole():
    near, far = socket.socketpair()
    said, came = os.urandom(1 << 20), bytearray()
    with near, far:
        near.setblocking(False)

        def read():
            while len(came) < len(said):
                came.extend(far.recv(65536))

        reader = threading.Thread(target=read)
        reader.start()
        send_whole(near, said)
        reader.join()
        assert not near.getblocking()
    assert came == said


class Openssl:
    """`openssl s_server`, which can be told to change its keys or to shake hands anew."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [
                *("openssl", "s_server", "-accept", "127.0.0.1:0", *words),
                *("-cert", CERTIFICATE, "-key", KEY),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.said = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        self.wait_for(b"ACCEPT 127.0.0.1:")
        self.port = int(self.said.partition(b"ACCEPT 127.0.0.1:")[2].split()[0])
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def _read(self):
        while data := os.read(self.process.stdout.fileno(), 65536):
            self.said += data

    def wait_for(self, words):
        until(lambda: words in self.said, f"{words} from openssl")

    def type(self, data):
        """It takes commands and data apart by how it reads them."""
        self.process.stdin.write(data)
        self.process.stdin.flush()
        waiting = bytearray(4)
        stdin = self.process.stdin
        until(lambda: not (fcntl.ioctl(stdin, termios.FIONREAD, waiting) or any(waiting)), "a read")


@needs_openssl
def test_a_server_that_was_not_shown_the_certificate_it_wants_is_quoted(tmp_path):
    strict = ("-www", "-Verify", "1", "-verify_return_error", "-CAfile", CERTIFICATE)
    wanted = pytest.raises(Unreachable, match=r"(?i)certificate.required")
    with Openssl(*strict) as server, wanted:
        measure(f"https://127.0.0.1:{server.port}", tmp_path, **TRUST)


@needs_openssl
@pytest.mark.parametrize(
    ("version", "command"),
    [("-tls1_3", b"K\n"), ("-tls1_2", b"r\n")],
    ids=["new keys", "a new handshake"],
)
def test_new_keys_and_a_new_handshake_do_not_break_what_goes_on(tmp_path, version, command):
    with ExitStack() as stack:
        server = stack.enter_context(Openssl(version))
        settings = settings_for(
            address=("127.0.0.1", server.port), tls=True, ca_file=str(CERTIFICATE), users=1, warm=1
        )
        requests = [Request(k, -1, 10, b'{"number": %d}' % k) for k in range(3)]
        team = Workers([settings], 1, tmp_path)
        stack.callback(team.close)
        team.begin(lambda process: iter(requests), lambda: 0)
        for k, request in enumerate(requests):
            server.wait_for(request.body)
            if k == 1:
                server.type(command)
            server.type(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}\n")
        exchanges = [exchange for _, exchange in team.exchanges() if exchange is not None]
    assert [(exchange.fate, exchange.attempts) for exchange in exchanges] == [("ended", 1)] * 3
