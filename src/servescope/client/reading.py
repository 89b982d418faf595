"""From raw bytes and the times they came to what they mean, strictly.

Framing, events and JSON are parsed here, and each chunk of content gets the time of the read that
completed it. Events that are alike are read many at a time (`alike.py`), to the same result.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import compress
from typing import Any

import msgspec

from servescope.client.alike import Form, Meaning, Run, learn
from servescope.protocols import Event, ProtocolFault, WireProtocol
from servescope.protocols.http1 import BodyReader, Head, parse_head

MOST_TOKENS, MOST_S = 1 << 31, 1e6
"""No answer has so many tokens, none takes so long: a server that says so is not believed."""
REASON_CHARS = 500
LEAST_BYTES = 2048
"""With less left, events are not looked at for what they have in common."""
PATIENCE, TRY = 64, 8
"""A try to read many events at a time costs as much as reading so many one by one: it is made while
those that were read so pay for it, from a first credit on."""


class Reading:
    """What the bytes of one response turned out to mean, as far as they went."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.begins = b""
        """The first bytes of the body, to be shown where nothing came of it."""
        self.framed_end = False
        self.fault: ProtocolFault | None = None
        self.error: str | None = None
        self.stray = ""
        """What came last and is no event of the stream, in words."""
        self.finish_reason: str | None = None
        self.end_marker = False
        self.texts: list[str] = []
        self.said: list[str] = []
        """The text of the answer alone, without reasoning and calls of tools."""
        self.chunk_at: list[int] = []
        self.chunk_total: list[int | None] = []
        """Tokens so far by the server's count, with each chunk; None where it did not say."""
        self.merged = 0
        self.first_output_at: int | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.reasoning_tokens: int | None = None
        self.reasoning_chunks: list[int] = []
        """Which chunks hold reasoning."""
        self.tool_chunks: list[int] = []
        self.cached_tokens: int | None = None
        self.server_s: dict[str, float] = {}

    @property
    def whole(self) -> bool:
        """Whether this is a whole answer, as far as the bytes tell."""
        ok = self.head is not None and self.head.status == 200 and self.framed_end
        ended = bool(self.finish_reason or self.end_marker)
        return ok and ended and bool(self.chunk_at) and self.error is None and self.fault is None

    def drop_echo(self, characters: int) -> None:
        """Take the prompt, of so many characters, off the start of an answer that repeats it."""
        if not characters or not self.texts:
            return
        self.texts[0] = self.texts[0][characters:]
        if not self.texts[0]:
            del self.texts[0], self.chunk_at[0], self.chunk_total[0]
            self.first_output_at = self.chunk_at[0] if self.chunk_at else None

    def note(self, events: Sequence[Event], at: int) -> None:
        """Take events that were completed by the read at `at`."""
        contents = 0
        for event in events:
            if event.input_tokens is not None and credible(event.input_tokens, least=1):
                self.input_tokens = event.input_tokens
            if event.output_tokens is not None and credible(event.output_tokens):
                self.output_tokens = event.output_tokens
            if event.reasoning_tokens is not None and credible(event.reasoning_tokens):
                self.reasoning_tokens = event.reasoning_tokens
            if event.cached_tokens is not None and credible(event.cached_tokens):
                self.cached_tokens = event.cached_tokens
            if event.server_s:
                self.server_s |= {k: s for k, s in event.server_s.items() if 0 <= s < MOST_S}
            if event.error is not None and self.error is None:
                self.error = event.error
            if event.finish_reason:
                self.finish_reason = event.finish_reason
            if (event.text or event.reasoning or event.tool) and not self.end_marker:
                contents += 1
                self._content(event, at)
            if event.end:
                self.end_marker = True
        self.merged += max(0, contents - 1)

    def _content(self, event: Event, at: int) -> None:
        text, total = event.text, event.output_tokens
        if self.first_output_at is None and (text or event.tool):
            self.first_output_at = at
        self.said.append(text)
        if event.reasoning or event.tool:
            if event.reasoning:
                self.reasoning_chunks.append(len(self.chunk_at))
            if event.tool:
                self.tool_chunks.append(len(self.chunk_at))
            text = event.reasoning + text + event.tool
        self.texts.append(text)
        self.chunk_at.append(at)
        self.chunk_total.append(total if total is None or credible(total) else None)

    def note_alike(
        self, meaning: Meaning, run: Run, reads: Sequence[int], times: Sequence[int]
    ) -> None:
        """Take events of one form; `reads` completed them, all with another of `times` each."""
        content, rest, _ = meaning
        texts, total = run.texts, rest.output_tokens
        totals: Sequence[int | None] = [total if credible(total) else None] * len(texts)
        if run.totals:
            totals, rest.output_tokens = run.totals, run.totals[-1]
        self.note([rest], times[reads[-1]])
        if "" in texts:
            reads, totals = list(compress(reads, texts)), list(compress(totals, texts))
            texts = list(filter(None, texts))
        if isinstance(reads, range):
            at = times[reads.start : reads.stop]
        else:
            at = [times[read] for read in reads]
            self.merged += len(reads) - len(set(reads))
        if content != "text":
            chunks = self.reasoning_chunks if content == "reasoning" else self.tool_chunks
            chunks.extend(range(len(self.texts), len(self.texts) + len(texts)))
        if self.first_output_at is None and texts and content != "reasoning":
            self.first_output_at = at[0]
        self.chunk_at.extend(at)
        self.chunk_total.extend(totals)
        self.texts.extend(texts)
        self.said.extend(texts if content == "text" else [""] * len(texts))


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
    ahead: _Ahead | None = None
    number, start = 0, head.size
    while number < len(reads) // 2:
        at, end = reads[2 * number], reads[2 * number + 1]
        number += 1
        if end <= start:
            continue
        content = body.feed(raw[start:end])
        start = end
        if not content:
            continue
        if not reading.chunk_at and len(reading.begins) < REASON_CHARS:
            reading.begins += content[:REASON_CHARS]
        if not begun and content.strip():
            begun = True  # later, a piece of an event that was cut may begin like a document
            whole = [] if _is_whole(protocol, head, content) else None
        if whole is not None:
            whole.append(content)
            continue
        events = decoder.feed(content)
        reading.note(events, at)
        worth = reading.texts and len(raw) - start > LEAST_BYTES and not reading.end_marker
        if worth and body.fresh and getattr(decoder, "fresh", False):
            ahead = ahead or _Ahead(reading, protocol, raw, reads)
            start, number = ahead.skip(start, number)
    at = reads[-2] if reads else 0
    if closed:
        body.close()
    reading.framed_end = body.whole
    if whole is not None:
        _note_whole(reading, protocol, b"".join(whole), at)
    else:
        reading.note(decoder.close(), at)
        reading.stray = words(getattr(decoder, "stray", b""))


class _Ahead:
    """Takes events that are alike, many at a time, where whole reads hold nothing else."""

    def __init__(
        self, reading: Reading, protocol: WireProtocol, raw: bytes, reads: Sequence[int]
    ) -> None:
        self._reading, self._protocol, self._raw = reading, protocol, raw
        self._times, self._ends = reads[::2], reads[1::2]
        self._chunked = reading.head is not None and reading.head.chunked
        self._form: Form | None = None
        self._patience = PATIENCE

    def skip(self, start: int, number: int) -> tuple[int, int]:
        """Where to go on from where an event and the read of this number begin."""
        while self._patience > 0 and len(self._raw) - start > LEAST_BYTES:
            self._patience -= TRY
            known, self._form = self._form, None
            form = known or learn(self._protocol, self._raw, start, chunked=self._chunked)
            end = self._take(form, start, number) if form else start
            if end > start:
                self._form = form
                start, number = end, bisect_right(self._ends, end, number)
            elif known is None:
                break
        return start, number

    def _take(self, form: Form, start: int, number: int) -> int:
        """Note the events of a form that begin at `start`; where the last of them ends."""
        run = form.run(self._raw, start)
        reads = self._reads_of(run.ends, form.after, number) if run else ()
        if run is None or not reads:
            return start
        events = len(reads)
        if events < len(run.ends):
            totals = run.totals and run.totals[:events]
            run = Run(run.texts[:events], totals, run.ends[:events])
        self._reading.note_alike(form.meaning, run, reads, self._times)
        self._patience += events
        return run.ends[-1]

    def _reads_of(self, ends: list[int], after: int, number: int) -> Sequence[int]:
        """Which read completed each event, up to the last event that ends where a read does."""
        each = range(number, number + len(ends))
        if list(self._ends[number : each.stop]) == ends:
            return each
        seen = self._ends[number : bisect_right(self._ends, ends[-1], number)]
        last = max(set(ends).intersection(seen), default=0)
        whole = ends[: bisect_right(ends, last)]
        return [bisect_left(self._ends, end - after, number) for end in whole]


def _is_whole(protocol: WireProtocol, head: Head, content: bytes) -> bool:
    """Whether the body is one JSON document and no stream, whatever the content type says."""
    begins = content.lstrip()[:1]
    return head.status != 200 or (not protocol.streams_json and begins in (b"{", b"[", b"<"))


def _note_whole(reading: Reading, protocol: WireProtocol, body: bytes, at: int) -> None:
    if reading.head is not None and reading.head.status != 200:
        reading.error = words(body)
        return
    if not reading.framed_end:
        return
    event = protocol.decode_whole(body)
    reading.note([event], at)
    if event.has_content and not event.finish_reason:
        reading.end_marker = True  # a document that parses is whole


def credible(count: int | None, least: int = 0) -> bool:
    """Whether a count that a server sent can be one: a number too large or too small is none."""
    return count is not None and least <= count < MOST_TOKENS


def words(body: bytes) -> str:
    """The server's own words in an error body, JSON or not."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:REASON_CHARS].decode(errors="replace").strip()
    if isinstance(decoded, dict):
        for key in ("error", "message", "detail"):
            if decoded.get(key):
                inner = decoded[key]
                if isinstance(inner, dict):
                    inner = inner.get("message") or inner
                return str(inner)[:REASON_CHARS]
    return str(decoded)[:REASON_CHARS]


def last_content_ns(protocol: WireProtocol, raw: bytes, reads: Sequence[int]) -> int | None:
    """When content came last in a stream that is still open; None where none has."""
    at = len(raw)
    for _ in range(
        16 if protocol.event_mark == b"data:" else 0
    ):  # nearly always the last event or the one before it tells
        start = raw.rfind(b"data:", 0, at)
        if start < 0:
            break
        line = raw[start:at].partition(b"\n")[0]
        try:
            events = protocol.decoder().feed(line + b"\n\n")
        except ProtocolFault:
            events = []
        if any(event.has_content for event in events):
            return reads[2 * bisect_left(reads[1::2], start + len(line))]
        at = start
    found = read(protocol, raw, reads, closed=False).chunk_at
    return found[-1] if found else None
