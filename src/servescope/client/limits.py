"""When an exchange ends although its response is not whole: beyond a limit, or out of time.

A verdict is the fate of the exchange and a detail in words. What says nothing about content, such
as a count of events or the arrival of bytes, only raises the question; the answer is then decoded.
"""

from __future__ import annotations

from servescope.client.feed import Settings
from servescope.client.http import Connection
from servescope.protocols import ProtocolFault

Verdict = tuple[str, str]


def verdict(connection: Connection, settings: Settings) -> Verdict | None:
    """How the exchange ends with the bytes that are there; None while it goes on."""
    asked = connection.asked
    assert asked is not None  # noqa: S101 (for the type checker)
    try:
        if connection.whole():
            return "ended", ""
    except ProtocolFault as fault:
        return fault.kind, str(fault)
    if connection.events > connection.most_events:
        return _overrun(connection, asked.limit, settings)
    if len(connection.raw) > settings.max_bytes:
        return "too_large", f"more than {settings.max_bytes:,} bytes"
    return None


def _overrun(connection: Connection, limit: int, settings: Settings) -> Verdict | None:
    """Events may be empty, and an answer may hold the word `data:` itself."""
    from servescope.client import answer  # noqa: PLC0415 (rare and heavy)

    found = answer.contents(settings.protocol, bytes(connection.raw), connection.reads)
    if found > limit:
        return "overrun", f"more than {limit} chunks of content"
    # Never soon again: an endless stream of empty events would be read anew with each of them.
    connection.most_events = connection.events + max(limit - found, connection.events // 8)
    return None


def overdue(connection: Connection, settings: Settings, now: int) -> Verdict | None:
    """The timeout that has run out for this connection, if one has."""
    if connection.connecting:
        late = now - connection.begun_ns >= settings.connect_ns
        return ("timeout_connect", _after(settings.connect_ns)) if late else None
    if now - connection.sent_ns > settings.total_ns:
        return "timeout_total", _after(settings.total_ns)
    return _silent(connection, settings, now) if now > connection.deadline_ns else None


def _silent(connection: Connection, settings: Settings, now: int) -> Verdict | None:
    """Bytes are no progress: keep-alive comments or role chunks may come for ever."""
    from servescope.client import answer  # noqa: PLC0415 (rare and heavy)

    raw, reads = bytes(connection.raw), connection.reads
    last = answer.last_content_ns(settings.protocol, raw, reads)
    if last is None:
        return "timeout_first_token", _after(settings.first_token_ns)
    if now - last > settings.between_tokens_ns:
        return "stalled", _after(settings.between_tokens_ns)
    connection.deadline_ns = last + settings.between_tokens_ns
    return None


def _after(ns: int) -> str:
    return f"after {ns / 1e9:g} s"
