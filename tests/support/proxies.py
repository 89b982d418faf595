"""Small real proxies (HTTP and SOCKS5) in threads, and a server on a Unix socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import socket
import socketserver
import threading

from tests.support.served import Served

HTTP_REFUSAL = "407 Proxy Authentication Required"


class UnixServed(Served):
    """The scripted server on a Unix socket."""

    def __init__(self, script, path, backlog=100):
        super().__init__(script)
        self.path, self.backlog = path, backlog

    async def listen(self):
        self.listener = await asyncio.start_unix_server(
            self._connection, self.path, backlog=self.backlog
        )


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 256


class Proxy:
    """Use it in a with statement; `asked` is what it was asked for, in order."""

    scheme = "http"

    def __init__(self, user="", password=""):
        self.user, self.password = user, password
        self.asked: list[str] = []
        self.refusing = False
        self._open: set[socket.socket] = set()

    @property
    def url(self):
        login = f"{self.user}:{self.password}@" if self.user else ""
        return f"{self.scheme}://{login}127.0.0.1:{self.port}"

    def __enter__(self):
        proxy = self

        class Near(socketserver.StreamRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError, EOFError), proxy.noted(self.connection):
                    proxy.talk(self.connection, self.rfile)

        self._server = _Server(("127.0.0.1", 0), Near)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        for sock in list(self._open):
            end(sock)
        self._server.server_close()  # once all that it started has ended

    @contextlib.contextmanager
    def noted(self, sock):
        self._open.add(sock)
        try:
            yield sock
        finally:
            self._open.discard(sock)

    @contextlib.contextmanager
    def far(self, host, port, near):
        """A connection to the server, whose bytes go back as they come."""
        with socket.create_connection((host, int(port)), 10) as sock, self.noted(sock):
            back = threading.Thread(target=pipe, args=(sock, near))
            back.start()
            try:
                yield sock
            finally:
                end(sock)
                back.join()

    def talk(self, near, lines):
        """One connection: plain requests are passed on, CONNECT opens a tunnel."""
        with contextlib.ExitStack() as stack:
            out = None
            while True:
                method, where, version, headers = read_head(lines)
                self.asked.append(f"{method} {where}")
                wanted = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
                login = f"Proxy-Authorization: Basic {wanted}"
                if self.refusing or (self.user and login not in headers):
                    near.sendall(f"HTTP/1.1 {HTTP_REFUSAL}\r\nContent-Length: 0\r\n\r\n".encode())
                    return
                if method == "CONNECT":
                    out = stack.enter_context(self.far(*where.rsplit(":", 1), near))
                    near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    pipe(near, out)
                    return
                netloc, slash, path = where.removeprefix("http://").partition("/")
                if out is None:
                    out = stack.enter_context(self.far(*netloc.rsplit(":", 1), near))
                kept = [line for line in headers if not line.startswith("Proxy-")]
                head = "\r\n".join([f"{method} {slash}{path} {version}", *kept, "", ""])
                sizes = [line.split(":")[1] for line in kept if line.startswith("Content-Length")]
                out.sendall(head.encode("latin-1") + lines.read(int((*sizes, "0")[0])))


class Socks(Proxy):
    """SOCKS5 (RFC 1928), with user and password (RFC 1929) where it has some."""

    scheme = "socks5"

    def talk(self, near, lines):
        methods = lines.read(lines.read(2)[1])
        method = 2 if self.user else 0
        if method not in methods:
            near.sendall(b"\x05\xff")
            return
        near.sendall(bytes([5, method]))
        if self.user:
            user = lines.read(lines.read(2)[1]).decode()
            password = lines.read(lines.read(1)[0]).decode()
            right = (user, password) == (self.user, self.password)
            near.sendall(bytes([1, not right]))
            if not right:
                return
        kind = lines.read(4)[3]
        raw = lines.read({1: 4, 4: 16}.get(kind) or lines.read(1)[0])
        host = raw.decode() if kind == 3 else str(ipaddress.ip_address(raw))
        port = int.from_bytes(lines.read(2), "big")
        self.asked.append(f"{'name' if kind == 3 else 'address'} {host}:{port}")
        bound = b"\x00\x03\x05proxy\x00\x00"  # an address of the kind that has no fixed size
        if self.refusing:
            near.sendall(b"\x05\x02" + bound)
            return
        with self.far(host, port, near) as out:
            near.sendall(b"\x05\x00" + bound)
            pipe(near, out, already=lines)


def read_head(lines):
    """Request line and headers; EOFError where there are no more."""
    found = []
    while line := lines.readline().decode("latin-1").rstrip("\r\n"):
        found.append(line)
    if not found:
        raise EOFError
    return (*found[0].split(" "), found[1:])


def pipe(source, sink, already=None):
    """Bytes as they come, until there are no more."""
    with contextlib.suppress(OSError):
        while data := already.read1(65536) if already else source.recv(65536):
            sink.sendall(data)
    end(sink)


def end(sock):
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
