"""From raw bytes and the times they came to what they mean: strict, and outside the load loop.

Framing, events and JSON are parsed here, each chunk of content gets the time of the read that
completed it, and the exchange gets exactly one outcome. A stream is complete only if HTTP ended
properly, a finish reason or the protocol's end marker was seen, no error was, and content came.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from servescope import plugins
from servescope.client.wire import Exchange
from servescope.protocols import Event, ProtocolFault, WireProtocol
from servescope.protocols.http1 import BodyReader, Head, parse_head
from servescope.records import CANCELLED, COMPLETED, TRUNCATED, Record

REASON_CHARS = 500
_TELLING = ("location", "retry-after", "www-authenticate")
CONTRADICTION = 1.5
"""Usage that differs by more than this factor from what came is not believed."""


def overrun_limit(output_tokens: int) -> int:
    """The most tokens, or events, that an answer limited to `output_tokens` may have.

    Above the limit itself for events that hold no token: role, finish reason, usage, keep-alive.
    """
    return output_tokens + max(16, output_tokens // 10)


class Asked(NamedTuple):
    """What is remembered of a request until its answer has been read."""

    stage: int
    input_tokens: int | None
    output_tokens: int
    pinned: bool
    stream: bool
    prompt_sha256: str
    prompt_bytes: int
    prompt: str | None
    """Only where texts are kept."""


class Reading:
    """What the bytes of one response turned out to mean, as far as they went."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.framed_end = False
        self.fault: ProtocolFault | None = None
        self.error: str | None = None
        self.finish_reason: str | None = None
        self.end_marker = False
        self.texts: list[str] = []
        self.chunk_at: list[int] = []
        self.chunk_total: list[int | None] = []
        """Tokens so far by the server's count, with each chunk; None where it did not say."""
        self.merged = 0
        self.first_output_at: int | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.server_s: dict[str, float] = {}

    def note(self, events: Sequence[Event], at: int) -> None:
        """Take events that were completed by the read at `at`."""
        contents = 0
        for event in events:
            if event.input_tokens is not None:
                self.input_tokens = event.input_tokens
            if event.output_tokens is not None:
                self.output_tokens = event.output_tokens
            if event.cached_tokens is not None:
                self.cached_tokens = event.cached_tokens
            if event.server_s:
                self.server_s.update(event.server_s)
            if event.error is not None and self.error is None:
                self.error = event.error
            if event.finish_reason:
                self.finish_reason = event.finish_reason
            self.end_marker |= event.end
            if event.has_content:
                contents += 1
                self._content(event, at)
        self.merged += max(0, contents - 1)

    def _content(self, event: Event, at: int) -> None:
        self.chunk_at.append(at)
        self.chunk_total.append(event.output_tokens)
        self.texts.append(event.reasoning + event.text + event.tool)
        if self.first_output_at is None and (event.text or event.tool):
            self.first_output_at = at


def read(protocol: WireProtocol, raw: bytes, reads: Sequence[int], *, closed: bool) -> Reading:
    """Decode a response; `closed`: the server has closed the connection. Never raises."""
    reading = Reading()
    try:
        _read(reading, protocol, raw, reads, closed=closed)
    except ProtocolFault as fault:
        reading.fault = fault
    return reading


def _read(
    reading: Reading, protocol: WireProtocol, raw: bytes, reads: Sequence[int], *, closed: bool
) -> None:
    head = reading.head = parse_head(raw)
    if head is None:
        return
    body = BodyReader(head)
    whole: list[bytes] | None = None
    begun = False
    decoder = protocol.decoder()
    start, at = head.size, 0
    for at, end in zip(reads[::2], reads[1::2], strict=True):
        if end <= start:
            continue
        content = body.feed(raw[start:end])
        start = end
        if not content:
            continue
        if not begun and content.strip():
            begun = True  # later, a piece of an event that was cut may begin like a document
            whole = [] if _is_whole(head, content) else None
        if whole is not None:
            whole.append(content)
        else:
            reading.note(decoder.feed(content), at)
    if closed:
        body.close()
    reading.framed_end = body.ended
    if whole is not None:
        _note_whole(reading, protocol, b"".join(whole), at)
    else:
        reading.note(decoder.close(), at)


def _is_whole(head: Head, content: bytes) -> bool:
    """Whether the body is one JSON document and no stream, whatever the content type says."""
    return head.status != 200 or content.lstrip()[:1] in (b"{", b"[", b"<")


def _note_whole(reading: Reading, protocol: WireProtocol, body: bytes, at: int) -> None:
    if reading.head is not None and reading.head.status != 200:
        reading.error = words(body)
        return
    if not reading.framed_end:
        return
    event = protocol.decode_whole(body)
    if event.has_content and not event.finish_reason:
        reading.end_marker = True  # a document that parses is whole
    reading.note([event], at)


def words(body: bytes) -> str:
    """The server's own words in an error body, JSON or not."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:REASON_CHARS].decode(errors="replace").strip()
    if isinstance(decoded, dict):
        for key in ("error", "message", "detail"):
            if decoded.get(key):
                inner = decoded[key]
                if isinstance(inner, dict):
                    inner = inner.get("message") or inner
                return str(inner)[:REASON_CHARS]
    return str(decoded)[:REASON_CHARS]


def contents(protocol: str, raw: bytes, reads: Sequence[int]) -> int:
    """Chunks of content so far in a response that is still open."""
    wire = plugins.make("protocol", "servescope.protocols", protocol, {})
    return len(read(wire, raw, reads, closed=False).chunk_at)


def last_content_ns(protocol: str, raw: bytes, reads: Sequence[int]) -> int | None:
    """When content came last in a stream that is still open; None where none has."""
    wire = plugins.make("protocol", "servescope.protocols", protocol, {})
    at = len(raw)
    for _ in range(16):  # nearly always the last event or the one before it tells
        start = raw.rfind(b"data:", 0, at)
        if start < 0:
            break
        line = raw[start:at].partition(b"\n")[0]
        try:
            events = wire.decoder().feed(line + b"\n\n")
        except ProtocolFault:
            events = []
        if any(event.has_content for event in events):
            return reads[2 * bisect_left(reads[1::2], start + len(line))]
        at = start
    found = read(wire, raw, reads, closed=False).chunk_at
    return found[-1] if found else None


def record(
    exchange: Exchange,
    asked: Asked,
    protocol: WireProtocol,
    origin_ns: int,
    count: Callable[[str], int] | None = None,
) -> Record:
    """The record of one exchange; `count` is a local tokenizer. Times become relative to origin."""
    closed = exchange.fate == "closed"
    reading = read(protocol, exchange.raw, exchange.reads, closed=closed)
    result = Record(
        request=exchange.request,
        stage=asked.stage,
        due_ns=exchange.due_ns - origin_ns,
        connect_ns=exchange.connect_ns,
        held_ns=exchange.held_ns,
        end_ns=exchange.end_ns - origin_ns,
        attempts=exchange.attempts,
        asked_input_tokens=asked.input_tokens,
        asked_output_tokens=asked.output_tokens,
        pinned=asked.pinned,
        prompt_sha256=asked.prompt_sha256,
        prompt_bytes=asked.prompt_bytes,
        prompt=asked.prompt,
        status=reading.head.status if reading.head else None,
        finish_reason=reading.finish_reason,
        input_tokens=reading.input_tokens,
        cached_tokens=reading.cached_tokens,
        server_s=reading.server_s,
    )
    if exchange.sent_ns >= 0:
        result.sent_ns = exchange.sent_ns - origin_ns
    if exchange.reads:
        result.first_byte_ns = exchange.reads[0] - origin_ns
    _fill_content(result, reading, asked, origin_ns, count)
    result.outcome, result.reason = _outcome(exchange, reading, result, asked)
    return result


def _fill_content(
    result: Record,
    reading: Reading,
    asked: Asked,
    origin_ns: int,
    count: Callable[[str], int] | None,
) -> None:
    at = reading.chunk_at
    if not at:
        return
    text = "".join(reading.texts)
    encoded = text.encode(errors="replace")
    result.answer_bytes = len(encoded)
    result.answer_sha256 = hashlib.sha256(encoded).hexdigest()[:16]
    if asked.prompt is not None:
        result.answer = text
    result.chunk_ns = [at[0] - origin_ns, *(b - a for a, b in pairwise(at))]
    result.merged_chunks = reading.merged
    if reading.first_output_at is not None:
        result.first_output_ns = reading.first_output_at - origin_ns
    counted = count(text) if count is not None else None
    result.output_tokens, result.count_source = _output_tokens(reading, asked, counted)
    if result.count_source == "server":
        result.chunk_tokens = _chunk_tokens(reading.chunk_total, result.output_tokens)


def _output_tokens(reading: Reading, asked: Asked, counted: int | None) -> tuple[int, str]:
    """Usage where it is credible, else a tokenizer's count, else the number of chunks."""
    chunks, usage = len(reading.chunk_at), reading.output_tokens
    if usage is not None and usage > 0:
        came = counted if counted is not None else chunks
        too_many = usage > max(asked.output_tokens, came * CONTRADICTION + 1)
        too_few = asked.stream and usage * CONTRADICTION < chunks
        if not too_many and not too_few:
            return usage, "server"
    return (counted, "tokenizer") if counted is not None else (chunks, "chunks")


def _chunk_tokens(totals: list[int | None], output_tokens: int | None) -> list[int] | int | None:
    """Tokens of each chunk from the running totals; one int where all are alike."""
    if len(totals) == 1:
        return output_tokens
    if any(total is None for total in totals):
        return None
    running = [0, *(total for total in totals if total is not None)]
    each = [b - a for a, b in pairwise(running)]
    if min(each) < 0:
        return None
    return each[0] if min(each) == max(each) else each


def _outcome(exchange: Exchange, reading: Reading, result: Record, asked: Asked) -> tuple[str, str]:
    """Exactly one outcome and its reason. Causes that we saw happen come before what is missing."""
    if exchange.fate == "cancelled":
        return CANCELLED, exchange.detail
    head = reading.head
    if head is not None and head.status != 200:
        return f"failed:{_http_class(head.status)}", _http_reason(head, reading)
    if reading.error is not None:
        return "failed:server_error_event", reading.error[:REASON_CHARS]
    if exchange.fate not in ("ended", "closed", "reset"):
        return f"failed:{exchange.fate}", f"{exchange.fate}: {exchange.detail}".rstrip(": ")
    if reading.fault is not None:
        return f"failed:{reading.fault.kind}", str(reading.fault)[:REASON_CHARS]
    if exchange.fate == "reset":
        return "failed:incomplete", f"connection reset: {exchange.detail}".rstrip(": ")
    if not reading.framed_end:
        return "failed:incomplete", _cut(exchange, reading)
    if not reading.chunk_at:
        return "failed:empty", "the answer ended without a token"
    if not (reading.finish_reason or reading.end_marker):
        return "failed:incomplete", "the stream ended without a finish reason or an end marker"
    if (result.output_tokens or 0) > overrun_limit(asked.output_tokens):
        return "failed:overrun", f"{result.output_tokens} tokens, {asked.output_tokens} allowed"
    short = result.pinned and result.count_source == "server"
    if short and (result.output_tokens or 0) < (result.asked_output_tokens or 0):
        return TRUNCATED, f"{result.output_tokens} of {result.asked_output_tokens} tokens"
    return COMPLETED, ""


def _cut(exchange: Exchange, reading: Reading) -> str:
    if not exchange.raw:
        return "the connection was closed without an answer"
    return f"the body was cut {'after' if reading.chunk_at else 'before'} its first token"


def _http_class(status: int) -> str:
    if status == 429:
        return "http_429"
    return {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "http_other")


def _http_reason(head: Head, reading: Reading) -> str:
    parts = [f"HTTP {head.status}"]
    shown = [name for name in _TELLING if name in head.headers]
    parts += [f"{name}: {head.headers[name][:200]}" for name in shown]
    if reading.error:
        parts.append(reading.error)
    return "; ".join(parts)[:REASON_CHARS]
