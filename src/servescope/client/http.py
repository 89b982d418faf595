"""One HTTP/1.1 connection of the load loop: bytes out, and bytes in with the time they came."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import termios
import time
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from servescope.client.clock import SO_TIMESTAMPNS
from servescope.protocols.http1 import Chunks, Head, parse_head

if TYPE_CHECKING:
    from servescope.client.feed import Pending, Settings

_TERMINATOR = b"\r\n0\r\n\r\n"
_BLANK = b"\r\n\r\n"
UNTIL_CLOSE = 1 << 62


class Connection:
    """A socket, and the exchange it carries at present.

    The request is one write; the response is kept as raw bytes with `reads`, pairs of (time, bytes
    so far). Only as much of it is understood here as is needed to see its end.
    """

    __slots__ = (
        *("_end_at", "_incoming", "_outgoing", "_tls", "_walked", "_walker"),
        *("asked", "begun_ns", "connecting", "deadline_ns", "events", "fd", "head"),
        *("idle_since_ns", "most_events", "raw", "reads", "sent_ns", "sock", "unsent", "used"),
    )

    def __init__(self, settings: Settings, context: ssl.SSLContext | None) -> None:
        """Begin to connect. Raises OSError where the system refuses at once."""
        self.begun_ns = time.monotonic_ns()
        self.sock = socket.socket(settings.family, socket.SOCK_STREAM)
        self.fd = self.sock.fileno()
        self.connecting = True
        self.used = 0
        self.idle_since_ns = 0
        self.deadline_ns = 0
        self._tls: ssl.SSLObject | None = None
        self.assign(None)
        try:
            self.sock.setblocking(False)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            with suppress(BlockingIOError):  # it goes on by itself
                self.sock.connect(tuple(settings.address))
        except OSError:
            self.sock.close()
            raise
        if context is not None:
            # Memory buffers, so that the encrypted bytes still come by recvmsg with their stamp.
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=settings.server_name
            )

    def assign(self, asked: Pending | None) -> None:
        """Carry this request next, or none."""
        self.asked = asked
        self.sent_ns = -1
        self.unsent: memoryview | None = None
        self.raw = bytearray()
        self.reads = array("q")
        self.head: Head | None = None
        self.events = 0
        self.most_events = 0 if asked is None else asked.limit
        self._walker: Chunks | None = None
        self._walked = 0
        self._end_at = UNTIL_CLOSE

    # --- connecting -----------------------------------------------------------------------------

    def connected(self) -> bool:
        """Go on connecting, TLS included; True when requests can be sent. Raises OSError."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if self._tls is not None:
            self._feed_tls()
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_tls()
                return False
            self._flush_tls()
        self.connecting = False
        return True

    def _feed_tls(self) -> None:
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        if not data:
            raise ssl.SSLError("closed by the server in the handshake")
        self._incoming.write(data)

    def _flush_tls(self) -> None:
        data = self._outgoing.read()
        if data:
            self.sock.sendall(data)  # a handshake fits the socket's buffer

    # --- the exchange ---------------------------------------------------------------------------

    def begin(self, head: bytes) -> bool:
        """Send the request; False when some of it is still unsent. Raises OSError."""
        assert self.asked is not None  # noqa: S101 (for the type checker)
        body = self.asked.body
        data = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        self.sent_ns = time.monotonic_ns()
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        sent = self.sock.send(data)
        if sent == len(data):
            return True
        self.unsent = memoryview(data)[sent:]
        return False

    def flush(self) -> bool:
        """Send what waits; True when all is out. Raises OSError."""
        if self.unsent is not None:
            sent = self.sock.send(self.unsent)
            self.unsent = self.unsent[sent:] if sent < len(self.unsent) else None
        return self.unsent is None

    def decrypt(self, data: memoryview) -> bytes | memoryview:
        """Plain bytes of what was received."""
        if self._tls is None:
            return data
        self._incoming.write(data)
        plain = []
        try:
            while piece := self._tls.read(65536):
                plain.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return b"".join(plain)

    def whole(self) -> bool:
        """Whether the response is whole by now. Raises ProtocolFault.

        The usual end of a chunked stream is recognised by its last bytes alone: the strict parse
        comes later, outside the loop. Only where bytes could be an unusual end (trailers, a stream
        whose own lines end with CRLF) are the chunks walked here.
        """
        if self.head is None and not self._read_head():
            return False
        raw = self.raw
        if self._walker is None:
            return len(raw) >= self._end_at
        if raw.endswith(_TERMINATOR):
            return True
        if raw.endswith(_BLANK):
            self._walker.feed(bytes(raw[self._walked :]))
            self._walked = len(raw)
            return self._walker.ended
        return False

    def _read_head(self) -> bool:
        self.head = head = parse_head(self.raw)
        if head is None:
            return False
        self._walked = head.size
        length = head.length
        self._end_at = UNTIL_CLOSE if length is None else head.size + length
        if head.chunked:
            self._walker = Chunks()
        return True

    def taken_in(self) -> bool:
        """Whether all that was sent has reached the server's machine.

        If not, the server closed an idle connection and has not seen the request.
        """
        unacknowledged = fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))
        return not any(unacknowledged)

    def reusable(self) -> bool:
        """Whether another request may follow the exchange that just ended.

        What came beyond its end would be taken for the next answer.
        """
        framed = self._walker is not None or len(self.raw) == self._end_at
        return framed and self.head is not None and self.head.keeps_alive


def tls_context(ca_file: str | None, *, verify: bool) -> ssl.SSLContext:
    """How the server's certificate is judged. Raises OSError for a bad file."""
    context = ssl.create_default_context(cafile=ca_file)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
