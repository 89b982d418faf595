"""Server-sent events by the WHATWG standard, incrementally.

Rules kept: lines end with LF, CRLF or CR, also cut between reads; one blank after the colon is
optional; several `data` lines make one event; comments and the fields event, id and retry are
passed over; a byte-order mark at the start is skipped. One liberty: an event whose lines are whole
but whose blank line is missing at the end of the body counts, since servers omit it.
"""

from __future__ import annotations

from servescope.protocols._exchange import ProtocolFault

MAX_EVENT_BYTES = 16 << 20
MAX_STRAY_BYTES = 2000
_FIELDS = (b":", b"data", b"event", b"id", b"retry")
_BOM = b"\xef\xbb\xbf"
TOO_LARGE = f"an event is larger than {MAX_EVENT_BYTES:,} bytes"


class EventStream:
    """Cuts a byte stream into the data of its events."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._data: list[bytes] = []
        self._data_size = 0
        self._skip_lf = False
        self._at_start = True
        self.stray = b""
        """The last of what is no event: lines of no known field, or a piece of one at the end."""

    @property
    def fresh(self) -> bool:
        """Whether an event begins here."""
        return not (self._size or self._data or self._skip_lf or self._at_start)

    def feed(self, data: bytes) -> list[bytes]:
        """Data of every event that `data` completes. Raises ProtocolFault('too_large')."""
        end = data.find(b"\n")
        whole = end == len(data) - 2 and data.startswith(b"data: ") and data.endswith(b"\n")
        if whole and b"\r" not in data and end <= MAX_EVENT_BYTES and self.fresh:
            return [data[6:end]]  # one event, as most pieces are
        data = self._normalise(data)
        if b"\n" not in data:
            self._keep(data)
            return []
        self._parts.append(data)
        *lines, rest = b"".join(self._parts).split(b"\n")
        self._parts, self._size = [rest], len(rest)
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return self._events(lines)

    def close(self) -> list[bytes]:
        """Data of an event that the end of the body completes."""
        rest = b"".join(self._parts)
        self.stray = rest[:MAX_STRAY_BYTES] or self.stray
        return self._events([b""])

    def _normalise(self, data: bytes) -> bytes:
        if self._skip_lf and data:
            data = data.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" in data:
            # A CR ends a line at once; were we to wait for a LF, the event would be timed late.
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_EVENT_BYTES:
            raise ProtocolFault("too_large", TOO_LARGE)

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                    self._data, self._data_size = [], 0
            elif line.startswith(b"data:") or line == b"data":
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_size += len(line)
                if self._data_size > MAX_EVENT_BYTES:
                    raise ProtocolFault("too_large", TOO_LARGE)
            elif not line.startswith(_FIELDS):
                self.stray = line[:MAX_STRAY_BYTES]
        return events
