"""Small reverse proxies that stand between a load and its servers, and do some harm."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading

from tests.support.proxies import Proxy, read_head


class Between(Proxy):
    """Passes requests on to servers in turn; use it in a with statement, as a target.

    It may let only so many requests at once through, or keep each answer until it is whole. It
    shows a server's metrics only where there is one, or where it is to show them in turn, too.
    """

    def __init__(self, *servers, at_once=1000, whole=False, pages=False):
        super().__init__()
        ports = [int(server.url.rsplit(":", 1)[1].strip("/")) for server in servers]
        self.pages, self.ports = pages or len(ports) == 1, itertools.cycle(ports)
        self.room, self.whole = threading.Semaphore(at_once), whole

    def talk(self, near, lines):
        method, where, version, headers = read_head(lines)
        if where == "/metrics" and not self.pages:
            near.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        named = [line.partition(":") for line in headers]
        sizes = [value for name, _, value in named if name.lower() == "content-length"]
        kept = [line for line in headers if not line.lower().startswith("connection:")]
        head = "\r\n".join([f"{method} {where} {version}", *kept, "Connection: close", "", ""])
        request = head.encode("latin-1") + lines.read(int((*sizes, "0")[0]))
        asked = where.startswith("/v1/chat/completions")
        with self.room if asked else contextlib.nullcontext():
            address = ("127.0.0.1", next(self.ports))
            with socket.create_connection(address, 10) as far, self.noted(far):
                far.sendall(request)
                held = b""
                while data := far.recv(65536):
                    if self.whole and asked:
                        held += data
                    else:
                        near.sendall(data)
                near.sendall(held)
