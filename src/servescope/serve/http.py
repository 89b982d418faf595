"""HTTP/1.1 for a server: requests in, answers out, and no word of what they mean.

A client's requests are answered in order, one at a time: what it sends ahead waits unread in the
kernel. Who does not read a stream is cut off once `MAX_UNREAD_BYTES` wait for him.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 16 << 20
MAX_UNREAD_BYTES = 4 << 20
LINGER_S = 2.0
"""How long a refused request may go on arriving: a close at once would destroy the refusal."""
JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"


@dataclass(slots=True, eq=False)
class Request:
    """One request, whole."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    """Names in lower case; repeated ones joined by a comma."""
    body: bytes = b""
    http10: bool = False
    keeps_alive: bool = True
    refused: tuple[int, str] | None = None
    """Status and words where it is no request that could be answered."""


Respond = Callable[[Request, "Connection"], None]
"""Called for each request; `whole`, or `begin` and `end`, must follow once, at any time."""


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, respond: Respond) -> None:
        self.gone: Callable[[], None] | None = None
        """Called if the client leaves before its answer has ended."""
        self._respond = respond
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[Request] = deque()
        self._request: Request | None = None
        self._answering = False
        self._streaming = False
        self._chunked = False
        self._full = False
        self._deaf = False
        self._in_head = False
        self._refused: tuple[int, str] | None = None
        self.on_message_begin()

    # --- asyncio ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        # asyncio sets it only where the listener was made with IPPROTO_TCP, which ours was not;
        # without it a token waits for the client's delayed acknowledgement of the head: 40 ms.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(high=MAX_UNREAD_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client, or we, have closed."""
        del exc
        self._pending.clear()
        gone, self.gone = self.gone, None
        self._request = None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._deaf:
            return
        began_in_head, self._begun = self._in_head, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # whole by now; what follows is no HTTP/1
            self._deaf = True
            if self._pending:
                self._pending[-1].keeps_alive = False
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:
            self._refused = self._refused or (400, f"this is no HTTP/1.1 request: {error}")
        if began_in_head and self._in_head and not self._begun:
            self._count_head(len(data))
        if self._refused is not None and not self._deaf:
            self._deaf = True
            refusal = Request("", "", {}, keeps_alive=False, refused=self._refused)
            self._pending.append(refusal)
        self._answer_pending()

    def pause_writing(self) -> None:
        """The client does not read: a stream ends here, anything else waits for him."""
        if self._streaming:
            self._transport.abort()
        else:
            self._full = True
            self._throttle()

    def resume_writing(self) -> None:
        """It reads again."""
        self._full = False
        self._answer_pending()

    # --- httptools --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun = self._in_head = True
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = self._body_bytes = 0
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """The request's target, or a part of it."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._count_head(len(name) + len(value) + 4)
        if self._refused is None:
            name, found = name.lower(), self._headers
            found[name] = found[name] + b", " + value if name in found else value

    def on_headers_complete(self) -> None:
        """The head is whole; llhttp has checked the length."""
        self._in_head = False
        expects = self._headers.get(b"expect", b"").lower() == b"100-continue"
        if int(self._headers.get(b"content-length", b"0")) > MAX_BODY_BYTES:
            self._refuse_body()
        elif expects and self._request is None and not self._pending:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse_body()
        if self._refused is None:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._refused is not None:
            return
        target = self._url.partition(b"?")[0]
        if not target.startswith(b"/"):  # http://host/path, as a proxy is asked
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        request = Request(
            self._parser.get_method().decode("latin-1"),
            target.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            self._parser.get_http_version() == "1.0",
            self._parser.should_keep_alive(),
        )
        self._body = []
        self._pending.append(request)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES and self._refused is None:
            self._refused = 431, f"a request's head may have {MAX_HEAD_BYTES:,} bytes"

    def _refuse_body(self) -> None:
        self._body = []
        if self._refused is None:
            self._refused = 413, f"a request's body may have {MAX_BODY_BYTES:,} bytes"

    # --- requests in order ------------------------------------------------------------------------

    def _answer_pending(self) -> None:
        if self._answering:  # an answer that ends at once comes back here
            return
        self._answering = True
        while self._pending and self._request is None and not self._full:
            self._request = request = self._pending.popleft()
            self._respond(request, self)
        self._answering = False
        self._throttle()

    def _throttle(self) -> None:
        """Read only as long as what is read can be answered; the kernel keeps the rest."""
        if self._full or self._pending:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _ended(self, request: Request, *, closes: bool) -> None:
        self._request = self.gone = None
        self._streaming = False
        if request.refused is not None:
            self._pending.clear()
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)
        elif closes:
            self._deaf = True
            self._pending.clear()
            self._transport.close()
        else:
            self._answer_pending()

    # --- answers ----------------------------------------------------------------------------------

    def whole(self, status: int, body: bytes, kind: bytes = JSON, *headers: bytes) -> None:
        """Answer in one piece; `headers` are whole lines without their ends."""
        request = self._answered()
        closes = not request.keeps_alive
        lines = [*_head(status, kind), b"content-length: %d" % len(body), *headers]
        if closes or request.http10:
            lines.append(b"connection: " + (b"close" if closes else b"keep-alive"))
        sent = b"" if request.method == "HEAD" else body
        self._transport.write(b"\r\n".join([*lines, b"", sent]))
        self._ended(request, closes=closes)

    def begin(self, kind: bytes = SSE) -> None:
        """Begin an answer in pieces."""
        request = self._answered()
        self._streaming, self._chunked = True, not request.http10
        lines = _head(200, kind)
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        if request.http10 or not request.keeps_alive:
            lines.append(b"connection: close")
        self._transport.write(b"\r\n".join([*lines, b"", b""]))

    def write(self, piece: bytes) -> None:
        """A piece of an answer, on its way at once."""
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._transport.write(piece)

    def end(self, *pieces: bytes) -> None:
        """The last pieces; a client that is slower than its answer still gets them all."""
        request = self._answered()
        self._streaming = False
        data = b"".join(map(self._framed, pieces))
        self._transport.write(data + b"0\r\n\r\n" if self._chunked else data)
        self._ended(request, closes=not (self._chunked and request.keeps_alive))

    def _framed(self, piece: bytes) -> bytes:
        if not self._chunked or not piece:  # a chunk of no bytes would be the end
            return piece
        return b"%x\r\n%b\r\n" % (len(piece), piece)

    def _answered(self) -> Request:
        assert self._request is not None, "no request waits for an answer"  # noqa: S101
        return self._request


def _head(status: int, kind: bytes) -> list[bytes]:
    line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
    return [line, b"server: servescope", b"content-type: " + kind]
