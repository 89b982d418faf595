"""One HTTP/1.1 connection of the load loop: bytes out, and bytes in with the time they came."""

from __future__ import annotations

import fcntl
import ssl
import termios
import time
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from servescope.client.dial import Dial, send_whole
from servescope.client.spool import Heard, Spool
from servescope.protocols.http1 import Chunks, Head, parse_head

if TYPE_CHECKING:
    from servescope.client.feed import Pending, Settings

SPILL_BYTES = 32 << 10
"""Beyond this an answer's bytes go to the spool while it goes on, so that memory is bounded."""
_TAIL_BYTES = 64
"""Kept back then: an end, or a mark, may be cut by the read."""
TERMINATOR = b"\r\n0\r\n\r\n"
"""The usual end of a chunked response."""
BLANK = b"\r\n\r\n"
"""What any chunked response ends with, and hardly an event of a stream."""
UNTIL_CLOSE = 1 << 62


class Connection:
    """A socket, and the exchange it carries at present.

    The request is one write; the response is kept as raw bytes with `reads`, pairs of (time, bytes
    so far). Only as much of it is understood here as is needed to see its end.
    """

    __slots__ = (
        *("_counted", "_head", "_parts", "_request", "_spool", "_walked", "_walker", "dial"),
        *("asked", "begun_ns", "connecting", "deadline_ns", "end_at", "events", "fd", "head"),
        *(
            "idle_since_ns",
            "length",
            "look_at",
            "most_events",
            "pieces",
            "reads",
            "recvmsg_into",
            "sent_ns",
        ),
        *("sock", "spilled", "tls", "unsent", "used", "watched_ns"),
    )

    def __init__(self, settings: Settings, context: ssl.SSLContext | None, spool: Spool) -> None:
        """Begin to connect. Raises OSError where the system refuses at once."""
        self._spool, self._head = spool, settings.head.encode("latin-1")
        self.dial = dial = Dial(settings, context)
        self.begun_ns, self.sock, self.tls = dial.begun_ns, dial.sock, dial.tls
        self.fd = self.sock.fileno()
        self.recvmsg_into = self.sock.recvmsg_into
        self.connecting = True
        self.used = 0
        self.idle_since_ns = 0
        self.deadline_ns = self.watched_ns = 0
        self.assign(None)

    def assign(self, asked: Pending | None) -> None:
        """Carry this request next, or none."""
        self.asked = asked
        self.sent_ns = -1
        self.unsent: memoryview | None = None
        self.pieces: list[bytes] = []
        """What came since `spilled`, a read each."""
        self.length = 0
        """Bytes received so far."""
        self.reads = array("q")
        self.spilled = 0
        """Bytes that are in the spool already."""
        self.look_at = 0
        """Bytes received before which nothing needs to be decided."""
        self.head: Head | None = None
        self.events = 0
        self._counted = 0
        self._parts: list[tuple[int, int]] = []
        self.most_events, self._request = 0, b""
        if asked is not None:
            self.most_events = asked.limit
            self._request = b"%b%d\r\n\r\n%b" % (self._head, len(asked.body), asked.body)
        self._walker: Chunks | None = None
        self._walked = 0
        self.end_at = UNTIL_CLOSE

    def connected(self) -> bool:
        """Go on connecting, TLS included; True when requests can be sent. Raises OSError."""
        self.connecting = not self.dial.go_on()
        return not self.connecting

    # --- the exchange ---------------------------------------------------------------------------

    def begin(self) -> bool:
        """Send the request; False when some of it is still unsent. Raises OSError."""
        data, self._request = self._request, b""
        self.sent_ns = time.monotonic_ns()
        if self.tls is not None:
            data = self.tls.encrypt(data)
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

    def decrypt(self, data: bytes) -> bytes:
        """Plain bytes of what was received through TLS. Raises ssl.SSLError."""
        assert self.tls is not None  # noqa: S101 (for the type checker)
        plain = self.tls.decrypt(data)
        if said := self.tls.unsent():
            if self.unsent is None:
                with suppress(OSError):  # a connection that is lost says so at the next read
                    send_whole(self.sock, said)
            else:
                self.unsent = memoryview(bytes(self.unsent) + said)
        return plain

    def whole(self) -> bool:
        """Whether the response is whole by now. Raises ProtocolFault.

        The usual end of a chunked stream is recognised by its last bytes alone: the strict parse
        comes later, outside the loop. Only where bytes could be an unusual end (trailers, a stream
        whose own lines end with CRLF) are the chunks walked here.
        """
        if self.head is None and not self._read_head():
            return False
        if self._walker is None:
            return self.length >= self.end_at
        end = self.pieces[-1] if len(self.pieces[-1]) >= len(TERMINATOR) else self.raw
        if end.endswith(TERMINATOR):
            return True
        if end.endswith(BLANK):
            self._walker.feed(self._since(self._walked))
            self._walked = self.length
            return self._walker.ended
        return False

    def _read_head(self) -> bool:
        self.head = head = parse_head(self.raw)
        if head is None:
            return False
        self._walked = head.size
        length = head.length
        self.end_at = UNTIL_CLOSE if length is None else head.size + length
        if head.chunked:
            self._walker = Chunks()
        return True

    # --- what came ------------------------------------------------------------------------------

    @property
    def raw(self) -> bytes:
        """What came since `spilled`."""
        return b"".join(self.pieces)

    def count(self, mark: bytes) -> None:
        """Count the marks of events in the reads since the last call; one that was cut, not."""
        self.events += b"".join(self.pieces[self._counted :]).count(mark)
        self._counted = len(self.pieces)

    def spill(self) -> None:
        """Hand to the spool what came, but for the last bytes."""
        assert self.asked is not None  # noqa: S101 (for the type checker)
        raw = self.raw
        cut = len(raw) - _TAIL_BYTES
        self._parts.append(self._spool.part(self.asked.request, self.reads, raw[:cut]))
        self.pieces = [raw[cut:]]
        self.spilled += cut
        self._counted = 1
        self.reads = array("q")

    def heard(self, *, closed: bool) -> Heard:
        """All that came of the request, read back from the spool where it had to go there."""
        if not self._parts:
            return Heard(self.reads, self.raw, closed)
        parts = [self._spool.read(place) for place in self._parts]
        reads = array("q")
        for part in (*(part.reads for part in parts), self.reads):
            reads.extend(part)
        return Heard(reads, b"".join((*(part.raw for part in parts), self.raw)), closed)

    def _since(self, at: int) -> bytes:
        if at >= self.spilled:
            return self.raw[at - self.spilled :]
        return self.heard(closed=False).raw[at:]

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
        framed = self._walker is not None or self.length == self.end_at
        return self.unsent is None and framed and self.head is not None and self.head.keeps_alive
