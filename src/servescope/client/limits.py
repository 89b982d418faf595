"""When an exchange ends although its response is not whole: beyond a limit, or out of time.

A verdict is the fate of the exchange and a detail in words. What says nothing about content, such
as a count of events or the arrival of bytes, only raises the question; the answer is then decoded.
"""

from __future__ import annotations

from servescope import protocols
from servescope.client.feed import Settings
from servescope.client.http import SPILL_BYTES, Connection
from servescope.client.reading import last_content_ns, read
from servescope.protocols import ProtocolFault

Verdict = tuple[str, str]


class Limits:
    """The limits that a load process is told."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.first_look_ns = settings.total_ns
        """After the sending: when to look for progress first. An answer in one piece shows none."""
        if settings.stream:
            self.first_look_ns = min(settings.first_token_ns, settings.between_tokens_ns)
        self._wire = protocols.declared("protocol", settings.protocol)
        self.mark = self._wire.event_mark

    def verdict(self, connection: Connection) -> Verdict | None:
        """How the exchange ends with the bytes that are there; None while it goes on."""
        try:
            if connection.whole():
                return "ended", ""
        except ProtocolFault as fault:
            return fault.kind, str(fault)
        most, length = self.settings.max_bytes, connection.length
        if length > most:
            return "too_large", f"more than {most:,} bytes"
        if connection.head is None:
            return None
        connection.count(self.mark)
        if connection.events > connection.most_events:
            verdict = self._overrun(connection)
            if verdict is not None:
                return verdict
        if length - connection.spilled >= SPILL_BYTES:
            connection.spill()
        # Events need not be counted again before half of those that are free can have come.
        size = max(len(self.mark), length // (2 * connection.events + 2))
        free = (connection.most_events - connection.events + 1) * size
        connection.look_at = min(length + free, connection.end_at, most + 1, length + SPILL_BYTES)
        return None

    def _overrun(self, connection: Connection) -> Verdict | None:
        """Events may be empty, and an answer may hold the word `data:` itself."""
        assert connection.asked is not None  # noqa: S101 (for the type checker)
        limit, events = connection.asked.limit, connection.events
        heard = connection.heard(closed=False)
        reading = read(self._wire, heard.raw, heard.reads, closed=False)
        found = len(reading.chunk_at)
        if found > limit:
            return "overrun", f"more than {limit} chunks of content"
        # Not soon again: an endless stream of empty events would be read anew with each of them.
        connection.most_events = events + max(limit - found, events // 8)
        return None

    def overdue(self, connection: Connection, now: int) -> Verdict | None:
        """The time that has run out for this connection; if none has, its deadline is later."""
        settings = self.settings
        if connection.connecting:
            late = now - connection.begun_ns >= settings.connect_ns
            return ("timeout_connect", _after(settings.connect_ns)) if late else None
        if connection.asked is None:
            return None
        if now - connection.sent_ns >= settings.total_ns:
            return "timeout_total", _after(settings.total_ns)
        return self._silent(connection, now)

    def _silent(self, connection: Connection, now: int) -> Verdict | None:
        """Bytes are no progress: keep-alive comments or role chunks may come for ever."""
        settings = self.settings
        heard = connection.heard(closed=False)
        last = last_content_ns(self._wire, heard.raw, heard.reads)
        if last is None:
            deadline = connection.sent_ns + settings.first_token_ns
            late = "timeout_first_token", _after(settings.first_token_ns)
        else:
            deadline = last + settings.between_tokens_ns
            late = "stalled", _after(settings.between_tokens_ns)
        connection.deadline_ns = min(deadline, connection.sent_ns + settings.total_ns)
        return late if now >= deadline else None


def _after(ns: int) -> str:
    return f"after {ns / 1e9:g} s"
