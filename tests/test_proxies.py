"""A load through a proxy: HTTP and SOCKS, by the variables of the environment."""

import base64
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.client.proxy import Tunnel, handshake, proxy_for
from servescope.client.wire import Request
from servescope.errors import BadInput, Unreachable
from servescope.experiment import Trial, resolve
from servescope.offers import check_ownership, offers
from tests.support.command import QUICK, Command
from tests.support.proxies import HTTP_REFUSAL, Proxy, Socks
from tests.support.reached import SECOND, drive, measure, outcomes, settings_for
from tests.support.served import CERTIFICATE, Served, healthy, tls_context

PASSWORD = "pa55word-of-a-proxy"  # noqa: S105 (of nobody)


@pytest.fixture(scope="module")
def plain():
    with Served(healthy(0.01, 0.002)) as found:
        yield found


@pytest.fixture(scope="module")
def secure():
    with Served(healthy(0.01, 0.002), tls=tls_context()) as found:
        yield found


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
