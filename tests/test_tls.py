"""Endpoints behind TLS: verified unless the user says otherwise, and timed like plain ones."""

import fcntl
import os
import shutil
import socket
import ssl
import subprocess
import termios
import threading
from contextlib import ExitStack, suppress

import pytest

from servescope.client.dial import send_whole
from servescope.client.wire import Request
from servescope.client.workers import Workers
from servescope.conduct import conduct
from servescope.errors import BadInput, Unreachable
from servescope.experiment import Trial
from servescope.summary import summarise
from tests.support.command import QUICK, Command, until
from tests.support.reached import SECOND, drive, measure, outcomes, settings_for
from tests.support.served import CERTIFICATE, Served, healthy, tls_context

KEY = CERTIFICATE.with_name("key.pem")


@pytest.fixture(scope="module")
def server():
    with Served(healthy(0.02, 0.005), tls=tls_context()) as found:
        yield found


@pytest.mark.parametrize("trust", [{"ca_file": str(CERTIFICATE)}, {"insecure": True}])
def test_a_run_over_tls_is_complete_and_its_times_come_from_the_kernel(server, tmp_path, trust):
    run = conduct(
        Trial(
            target=server.url,
            load=["users:4"],
            requests=20,
            output_tokens="10",
            out=str(tmp_path),
            **trust,
        )
    )
    stage = summarise(run).stages[0]
    assert stage.outcomes == {"completed": 20}
    assert stage.figures["itl_s"].p50 == pytest.approx(0.005, rel=0.2)
    assert stage.figures["ttft_s"].min >= 0.02
    assert {s.value for s in run.samples() if s.name == "kernel_clock"} == {1.0}


def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_reason(server, tmp_path):
    with pytest.raises(Unreachable, match="certificate verify failed") as found:
        conduct(Trial(target=server.url, requests=2, out=str(tmp_path)))
    said = str(found.value)
    assert said.count("certificate verify failed") == 1
    assert "--ca-file" in said
    assert "--insecure" in said
    assert "--model" not in said


def test_a_server_that_wants_a_certificate_of_ours_leads_to_the_option_for_it(tmp_path):
    strict = tls_context()
    strict.verify_mode = ssl.CERT_REQUIRED
    with Served(healthy(0.01, 0.002), tls=strict) as found, pytest.raises(Unreachable) as refused:
        conduct(Trial(target=found.url, ca_file=str(CERTIFICATE), out=str(tmp_path)))
    assert "--client-cert" in str(refused.value)
    assert "--model" not in str(refused.value)


def test_a_server_that_closes_without_a_word_is_not_said_to_lack_a_model(server, tmp_path):
    url = server.url.replace("https", "http")
    with pytest.raises(Unreachable, match="closed without an answer") as found:
        conduct(Trial(target=url, requests=2, out=str(tmp_path)))
    assert str(found.value).count("closed without an answer") == 1
    assert "--model" not in str(found.value)


def test_a_ca_file_that_holds_no_certificate_is_bad_input(server, tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(BadInput, match="--ca-file"):
        conduct(Trial(target=server.url, ca_file=str(tmp_path / "ca.pem"), out=str(tmp_path)))


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
    server, tmp_path, monkeypatch, *, given, words, scheme
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pem").write_text("nothing")
    with pytest.raises(BadInput, match=words):
        measure(server.url.replace("https", scheme), tmp_path, **given)


@needs_openssl
def test_a_key_under_a_password_is_refused_and_nobody_is_asked(server, tmp_path):
    under_a_password(tmp_path / "locked.pem")
    given = ["--client-cert", CERTIFICATE, "--client-key", tmp_path / "locked.pem"]
    command = Command("run", server.url, *given, cwd=tmp_path)
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
@pytest.mark.slow  # openssl's own server mixes up a handshake and a request where its core is taken
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
