"""From an exchange and what its bytes mean to its record, outside the load loop.

The exchange gets exactly one outcome. A stream is complete only if HTTP ended properly, a finish
reason or the protocol's end marker was seen, no error was, and content came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from operator import sub
from typing import NamedTuple

from servescope.client.reading import REASON_CHARS, Reading, read, words
from servescope.client.wire import Exchange
from servescope.protocols import WireProtocol
from servescope.protocols.http1 import Head
from servescope.records import CANCELLED, COMPLETED, TRUNCATED, Record

_TELLING = ("location", "retry-after", "www-authenticate")
SILENT = ("stalled", "timeout_first_token", "timeout_total")
TOLERANCE = 0.1
"""A tokenizer that is not the server's own may count so much less."""
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
    session: int | None = None
    turn: int = 0
    echoed: int = 0
    """Characters of the prompt that the answer's text begins with, of a protocol that echoes it."""


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
    reading.drop_echo(asked.echoed)
    result = Record(
        request=exchange.request,
        stage=asked.stage,
        session=asked.session,
        turn=asked.turn,
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
        content_type=reading.head.headers.get("content-type", "")[:100] if reading.head else "",
        finish_reason=reading.finish_reason and reading.finish_reason[:100],
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
    result.chunk_ns = [at[0] - origin_ns, *map(sub, at[1:], at)]
    result.merged_chunks = reading.merged
    if reading.first_output_at is not None:
        result.first_output_ns = reading.first_output_at - origin_ns
    counted = count(text) if count is not None else None
    result.output_tokens, result.count_source = _output_tokens(reading, asked, counted)
    if result.count_source == "server":
        result.chunk_tokens = _chunk_tokens(reading.chunk_total, result.output_tokens)
    if reading.reasoning_chunks:
        counted = reading.reasoning_tokens
        if counted is None or not 0 < counted <= (result.output_tokens or 0):
            counted = _part(result, reading.reasoning_chunks)
        result.reasoning_tokens = counted
    if reading.tool_chunks:
        result.tool_tokens = _part(result, reading.tool_chunks)


def _part(result: Record, chunks: list[int]) -> int:
    """Tokens of some of the chunks: as counted with each, else their share of all."""
    each = result.chunk_tokens
    if isinstance(each, list):
        return sum(each[k] for k in chunks)
    share = len(chunks) / len(result.chunk_ns)
    return round((result.output_tokens or 0) * share)


def _output_tokens(
    reading: Reading, asked: Asked, counted: int | None
) -> tuple[int, str] | tuple[None, None]:
    """Usage where it is credible, else a tokenizer's count, else the number of chunks.

    An answer in one piece that nobody has counted has no count: its one chunk is not one token.
    """
    chunks, usage = len(reading.chunk_at), reading.output_tokens
    if usage is not None and usage > 0:
        came = counted if counted is not None else chunks
        too_many = usage > max(asked.output_tokens, came * CONTRADICTION + 1)
        too_few = asked.stream and usage * CONTRADICTION < chunks
        if not too_many and not too_few:
            return usage, "server"
    if counted is not None:
        return counted, "tokenizer"
    return (chunks, "chunks") if asked.stream else (None, None)


def _chunk_tokens(totals: list[int | None], output_tokens: int | None) -> list[int] | int | None:
    """Tokens of each chunk from the running totals; one int where all are alike."""
    if len(totals) == 1:
        return output_tokens
    if None in totals:
        return None
    running = [total for total in totals if total is not None]
    each = [running[0], *map(sub, running[1:], running)]
    least = min(each)
    if least < 0:
        return None
    return least if least == max(each) else each


def _outcome(exchange: Exchange, reading: Reading, result: Record, asked: Asked) -> tuple[str, str]:
    """Exactly one outcome and its reason. Causes that we saw happen come before what is missing."""
    if exchange.fate == "cancelled":
        return CANCELLED, exchange.detail
    head = reading.head
    if head is not None and head.status != 200:
        return f"failed:{_http_class(head.status)}", _http_reason(head, reading)
    if reading.error is not None:
        return "failed:server_error_event", reading.error[:REASON_CHARS]
    broken = exchange.fate in SILENT and reading.fault is not None  # that is why nothing more came
    if exchange.fate not in ("ended", "closed", "reset") and not broken:
        return f"failed:{exchange.fate}", f"{exchange.fate}: {exchange.detail}".rstrip(": ")
    if reading.fault is not None:
        return f"failed:{reading.fault.kind}", str(reading.fault)[:REASON_CHARS]
    if exchange.fate == "reset":
        return "failed:incomplete", f"connection reset: {exchange.detail}".rstrip(": ")
    if not reading.framed_end:
        return "failed:incomplete", _cut(exchange, reading)
    if not reading.chunk_at:
        said = words(reading.begins)
        told = f"the answer ended without a token: {said}".rstrip(": ")
        return "failed:empty", told[:REASON_CHARS]
    if not (reading.finish_reason or reading.end_marker):
        return "failed:incomplete", _unended(reading)
    if (result.output_tokens or 0) > overrun_limit(asked.output_tokens):
        return "failed:overrun", f"{result.output_tokens} tokens, {asked.output_tokens} allowed"
    if result.pinned and _is_short(result):
        return TRUNCATED, f"{result.output_tokens} of {result.asked_output_tokens} tokens"
    return COMPLETED, ""


def _unended(reading: Reading) -> str:
    why = "the stream ended without a finish reason or an end marker"
    return f"{why}; what came last: {reading.stray}"[:REASON_CHARS] if reading.stray else why


def _is_short(result: Record) -> bool:
    """Whether an answer has fewer tokens than it was to have."""
    came, asked = result.output_tokens, result.asked_output_tokens
    if came is None or asked is None:
        return False
    return came < asked * (1 - TOLERANCE if result.count_source == "tokenizer" else 1)


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
