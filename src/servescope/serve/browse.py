"""A small HTTP server for pages that one person looks at: on loopback, to be read and no more.

What the pages are is its caller's affair. Its own is who may ask, and what a browser may do with
the answer: a page elsewhere must not read runs by way of the browser of the one who looks at them.
"""

from __future__ import annotations

import base64
import hmac
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from servescope.serve import listen

MOST_PARAMETERS = 1000
_ENDINGS = (signal.SIGINT, signal.SIGTERM)
_PORT = re.compile(r":\d+\Z")


class Answer(NamedTuple):
    """What a request gets."""

    body: str
    kind: str = "text/html"
    status: int = 200
    policy: str = ""
    """Content-security policy; it comes on top of what the page itself says."""


Respond = Callable[[str, list[tuple[str, str]]], Answer]
"""Path and query, both decoded, to an answer. Called from several threads at once."""


def run(
    respond: Respond,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    ready: Callable[[str], None],
) -> None:
    """Answer GET requests until SIGINT or SIGTERM; `ready` gets the URL once browsers can connect.

    Raises BadInput where it cannot listen, or would without a `token` on an address that others
    can reach. A token is asked for as a password, whatever the user's name.
    """
    names = listen.names(host, token)

    with listen.bound(host, port) as listener:
        server = Server(listener, respond, names, token)
        ended: SimpleQueue[int] = SimpleQueue()  # may be put into from a signal's handler
        before = {n: signal.signal(n, lambda n, _: ended.put(n)) for n in _ENDINGS}
        try:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            ready(f"http://{listen.url_host(host)}:{listener.getsockname()[1]}")
            ended.get()
            server.shutdown()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Server(ThreadingHTTPServer):
    """Threads that answer; none is waited for at the end."""

    def __init__(
        self, listener: socket.socket, respond: Respond, names: frozenset[str], token: str | None
    ) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.respond, self.names, self.token = respond, names, token

    def handle_error(self, *_: Any) -> None:  # noqa: ANN401
        """A browser that has gone is no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc(file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "servescope", ""
    disable_nagle_algorithm = True
    timeout = 60.0  # a browser keeps connections that it may never use again

    def do_GET(self) -> None:
        """Answer."""
        if {"content-length", "transfer-encoding"} & {name.lower() for name in self.headers}:
            self.close_connection = True  # a body is left unread, and must not pass for a request
        self._send(self._refused() or self._answer())

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _refused(self) -> Answer | None:
        """Why a request is none of ours: a name that led a browser here, or no token."""
        host = _PORT.sub("", self.headers.get("Host", "").strip().lower())
        known, token = self.server.names, self.server.token
        if known and host not in known:
            return _plain(421, f"this server is not {host}")
        if token is not None and not self._knows(token):
            return _plain(401, "want the token as the password")
        return None

    def _knows(self, token: str) -> bool:
        kind, _, said = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                said = base64.b64decode(said, validate=True).decode().partition(":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(said.encode(), token.encode())

    def _answer(self) -> Answer:
        try:
            target = urlsplit(self.path)
            query = parse_qsl(
                target.query, errors="surrogateescape", max_num_fields=MOST_PARAMETERS
            )
        except ValueError:
            return _plain(400, f"want a path and {MOST_PARAMETERS} parameters or fewer")
        try:
            return self.server.respond(unquote(target.path, errors="surrogateescape"), query)
        except Exception:  # noqa: BLE001 (ours: said loudly, and the other pages stay)
            traceback.print_exc(file=sys.stderr)
            return _plain(500, "servescope failed here; its terminal says how")

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode(errors="replace")
        self.send_response(answer.status)
        headers = {
            "Content-Type": f"{answer.kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": "; ".join(
                filter(None, (answer.policy, "base-uri 'none'", "frame-ancestors 'none'"))
            ),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        if answer.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Basic realm="servescope", charset="UTF-8"'
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request, or none to read."""
        del explain
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "want GET"
        self._send(_plain(code, message or HTTPStatus(code).phrase))

    def log_message(self, *_: Any) -> None:  # noqa: ANN401
        """Say nothing: the terminal is for the URL."""


def _plain(status: int, words: str) -> Answer:
    return Answer(words + "\n", "text/plain", status)
