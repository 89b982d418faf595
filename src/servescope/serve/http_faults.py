"""What a fault is, and those of connections, statuses, headers and framing."""

from __future__ import annotations

from dataclasses import dataclass

from servescope.serve.answers import (
    TOKENS,
    and_silence,
    answer,
    byte_chunks,
    coalesced,
    compressed,
    cut,
    dripped_head,
    for_ever,
    nothing,
    repeated,
    sent,
    sized,
    split,
    streamed,
    then,
    unframed,
    whole,
)
from servescope.serve.scripted import LAST_CHUNK, Peer, Script, chunk, head

COMPLETED = ("completed",)


@dataclass(frozen=True)
class Fault:
    """What the server does, and what must come of the requests that meet it."""

    does: str
    script: Script
    outcomes: tuple[str, ...] = COMPLETED
    """Any of these is right."""
    words: str = ""
    """Of the server or of the cause, that the reason must hold."""
    all: bool = False
    """Every request meets it, not one in four."""
    tokens: int = TOKENS
    """Of a completed answer."""
    requests: int = 16
    models: bytes | None = None
    """The server's list of models, where that is not one model."""
    away_at: int = 0
    away_s: float = 0.0
    """The server is gone for so long, from this request on."""
    refuses: bool = False
    """Nobody listens at all."""

    @property
    def answered(self) -> bool:
        """Whether requests that meet it are in the figures."""
        return bool({"completed", "truncated"} & set(self.outcomes))


def failed(*kinds: str) -> tuple[str, ...]:
    """Outcomes of failures."""
    return tuple(f"failed:{kind}" for kind in kinds)


INCOMPLETE, PROTOCOL = failed("incomplete"), failed("protocol")
FIRST_TOKEN, HTTP_5XX = failed("timeout_first_token"), failed("http_5xx")
HTTP_4XX, HTTP_OTHER = failed("http_4xx"), failed("http_other")
LOST = failed("connect", "incomplete")
WORDS = "the engine is out of blocks"
ERROR = b'{"error":{"message":"%b","type":"InternalServerError"}}' % WORDS.encode()
HTML = b"<html><body><script>alert(1)</script>Service Unavailable</body></html>"

_ESCAPES = b'{"error":{"message":"\\u001b[2J\\u0007gone"}}'
_DATE = "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
_ODD_CASE = (
    b"HTTP/1.1 200 OK\r\ntRANSFER-eNCODING:CHUNKED\r\nCONTENT-TYPE:text/event-stream\r\n\r\n"
)
_SMALL_FIRST = head("X-Folded: one", "\ttwo: three", "Transfer-Encoding: chunked")
_CHUNKED = "Transfer-Encoding: chunked"
_TWICE = b"".join([head(), *(chunk(piece.data) for piece in answer()), LAST_CHUNK]) * 2
_HTTP2 = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80\x00\x04\x00\x01\x00\x00"
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
_DUPLICATE = head("Content-Length: 5", "Content-Length: 6")


def _extended(data: bytes) -> bytes:
    return b'%x;name="a;b";more\r\n%b\r\n' % (len(data), data)


def _closing(first: bytes) -> Script:
    return then(unframed(answer(), first), Peer.close)


def _lone(data: bytes) -> Script:
    """Bytes and the end of the connection."""
    return then(sent(data), Peer.close)


HTTP_FAULTS: dict[str, Fault] = {
    # --- connections ----------------------------------------------------------------------------
    "refused": Fault("no listener at all", nothing, ("unreachable",), "refused", refuses=True),
    "accept_close": Fault(
        "connection accepted, closed without an answer",
        then(nothing, Peer.close),
        LOST,
        "without an answer",
    ),
    "accept_rst": Fault(
        "connection accepted, reset without an answer",
        then(nothing, Peer.reset),
        LOST,
        "reset by peer",
    ),
    "rst_headers": Fault(
        "reset in the middle of the response headers",
        then(sent(b"HTTP/1.1 200 OK\r\nContent-Ty"), Peer.reset),
        INCOMPLETE,
        "reset by peer",
    ),
    "cut_headers": Fault(
        "closed in the middle of the response headers",
        _lone(b"HTTP/1.1 200 OK\r\nContent-Ty"),
        INCOMPLETE,
    ),
    "close_headers": Fault("closed right after the headers", _lone(head()), INCOMPLETE),
    "cut_fin": Fault(
        "chunked body cut by FIN after 4 tokens",
        then(streamed(cut(), end=b""), Peer.close),
        INCOMPLETE,
        "after its first token",
    ),
    "cut_rst": Fault(
        "RST after 4 tokens",
        then(streamed(cut(), end=b""), Peer.reset),
        INCOMPLETE,
        "reset by peer",
    ),
    "conn_close": Fault(
        "`Connection: close` each time", _closing(head("Connection: close")), all=True
    ),
    "silent_close": Fault(
        "closes after each answer without saying so",
        then(streamed(answer()), Peer.close),
        all=True,
    ),
    "rst_after": Fault("RST after each whole answer", then(streamed(answer()), Peer.reset)),
    "restart": Fault(
        "gone for 1.5 s in mid-run, all connections reset",
        nothing,
        LOST,
        requests=60,
        away_at=20,
        away_s=1.5,
    ),
    "die_return": Fault(
        "gone for 2 s at request 50 of 100, then back",
        nothing,
        LOST,
        requests=100,
        away_at=50,
        away_s=2.0,
    ),
    # --- silence --------------------------------------------------------------------------------
    "stall": Fault(
        "silence for ever after 4 tokens",
        and_silence(streamed(cut(), end=b"")),
        failed("stalled"),
        "after 1 s",
    ),
    "stall_first": Fault("no answer at all, connection open", for_ever, FIRST_TOKEN, "after 1 s"),
    "stall_headers": Fault(
        "silence in the middle of the response headers",
        and_silence(sent(b"HTTP/1.1 200 OK\r\nContent-Ty")),
        FIRST_TOKEN,
        "after 1 s",
    ),
    "stall_interim": Fault(
        "`100 Continue`, then silence", and_silence(sent(_INTERIM)), FIRST_TOKEN, "after 1 s"
    ),
    "endless_interim": Fault(
        "interim responses for ever",
        repeated(_INTERIM, 0.02, framed=False),
        FIRST_TOKEN,
        "after 1 s",
    ),
    "drip_headers": Fault(
        "a byte of the headers at a time, for ever", dripped_head, FIRST_TOKEN, "after 1 s"
    ),
    "stall_done": Fault(
        "all but the end of the body came, then silence",
        and_silence(streamed(answer()[:-1], end=b"")),
        failed("stalled"),
        "after 1 s",
    ),
    # --- statuses -------------------------------------------------------------------------------
    "s204": Fault("204 without a body", sent(b"HTTP/1.1 204 No Content\r\n\r\n"), HTTP_OTHER),
    "redirect": Fault(
        "307 to another path",
        whole(307, b"", "text/plain", "Location: /elsewhere"),
        HTTP_OTHER,
        "location: /elsewhere",
    ),
    "redirect_host": Fault(
        "302 to another host",
        whole(302, b"", "text/plain", "Location: http://198.51.100.1/"),
        HTTP_OTHER,
        "location: http://198.51.100.1/",
    ),
    "s401": Fault(
        "401 with WWW-Authenticate",
        whole(401, b"no", "text/plain", 'WWW-Authenticate: Bearer realm="x"'),
        HTTP_4XX,
        'www-authenticate: Bearer realm="x"; no',
    ),
    "s408": Fault(
        "408 and the end of the connection",
        then(whole(408, b"", "text/plain", "Connection: close"), Peer.close),
        HTTP_4XX,
        "HTTP 408",
    ),
    "s413": Fault("413 with a text", whole(413, b"too long", "text/plain"), HTTP_4XX, "too long"),
    "s429": Fault(
        "429 with Retry-After",
        whole(429, b'{"error":{"message":"slow down"}}', "application/json", "Retry-After: 7"),
        failed("http_429"),
        "retry-after: 7; slow down",
    ),
    "s500_json": Fault("500 with a JSON error", whole(500, ERROR), HTTP_5XX, WORDS),
    "s500_large": Fault(
        "500 with 1 MB of text", whole(500, b"no " * 350_000, "text/plain"), HTTP_5XX, "no no no"
    ),
    "s500_escapes": Fault(
        "500 with escape sequences for a terminal", whole(500, _ESCAPES), HTTP_5XX, "gone"
    ),
    "s503_html": Fault(
        "503 with an HTML body that holds a script",
        whole(503, HTML, "text/html"),
        HTTP_5XX,
        HTML.decode(),
    ),
    "s503_date": Fault(
        "503 with a date in Retry-After",
        whole(503, b"", "text/plain", _DATE),
        HTTP_5XX,
        "07:28:00 GMT",
    ),
    "s504_html": Fault(
        "504 of a proxy, with HTML and without a length",
        _lone(head("Connection: close", status="HTTP/1.1 504 Gateway Time-out") + HTML),
        HTTP_5XX,
        HTML.decode(),
    ),
    "interim": Fault(
        "100 and 103 before the answer", streamed(answer(), _INTERIM + head()), all=True
    ),
    # --- no HTTP --------------------------------------------------------------------------------
    "http09": Fault("a stream without a head", _lone(answer()[1].data), PROTOCOL, "not HTTP"),
    "http2": Fault("HTTP/2 on a plain port", _lone(_HTTP2), PROTOCOL, "not HTTP"),
    "tls_alert": Fault("TLS on a plain port", _lone(_TLS_ALERT), PROTOCOL, "not HTTP"),
    # --- headers and framing --------------------------------------------------------------------
    "http10": Fault(
        "HTTP/1.0, no chunking, ends by FIN",
        _closing(head("Server: x", status="HTTP/1.0 200 OK")),
        all=True,
    ),
    "wrong_ctype": Fault("text/plain", streamed(answer(), head(kind="text/plain")), all=True),
    "no_ctype": Fault("no content type", streamed(answer(), head(kind=None)), all=True),
    "odd_case": Fault("names in odd case, no blanks", streamed(answer(), _ODD_CASE), all=True),
    "folded": Fault("a header folded over two lines", streamed(answer(), _SMALL_FIRST), all=True),
    "lf_head": Fault(
        "header lines end with LF", streamed(answer(), head().replace(b"\r\n", b"\n")), all=True
    ),
    "trailers": Fault(
        "chunked trailers",
        streamed(answer(), end=b"0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"),
        all=True,
    ),
    "chunk_ext": Fault("chunk extensions", streamed(answer(), frame=_extended), all=True),
    "byte_chunks": Fault("a chunk for each byte", streamed(answer(), frame=byte_chunks), all=True),
    "coalesced": Fault("all events in one TCP segment", coalesced, all=True),
    "split_tcp": Fault(
        "events cut over many segments, also inside a UTF-8 character", split, all=True
    ),
    "length": Fault("a stream with its content-length", sized(answer()), all=True),
    "length_chunked": Fault(
        "chunked, and a content-length that is wrong",
        streamed(answer(), head("Content-Length: 7", _CHUNKED)),
        all=True,
    ),
    "length_long": Fault(
        "fewer bytes than the content-length, then FIN",
        then(sized(answer(), 5), Peer.close),
        INCOMPLETE,
    ),
    "length_short": Fault(
        "more bytes than the content-length, in one piece",
        sent(head("Content-Length: 400") + b"".join(piece.data for piece in answer())),
        PROTOCOL,
        "more bytes than",
    ),
    "two_lengths": Fault(
        "two content-lengths that differ", sent(_DUPLICATE), PROTOCOL, "content-length"
    ),
    "bad_chunk": Fault(
        "a chunk size that is no number after 4 tokens",
        then(streamed(cut(), end=b"zz\r\n"), Peer.close),
        PROTOCOL,
        "chunk size",
    ),
    "bad_chunk_open": Fault(
        "a chunk size that is no number after 4 tokens, then silence",
        and_silence(streamed(cut(), end=b"zz\r\n")),
        PROTOCOL,
        "chunk size",
    ),
    "long_chunk": Fault(
        "a chunk longer than its size",
        then(streamed(cut(), end=b"2\r\nabc\r\n0\r\n\r\n"), Peer.close),
        PROTOCOL,
        "longer than its size",
    ),
    "after_end": Fault(
        "bytes after the last chunk, then silence",
        and_silence(streamed(answer(), end=LAST_CHUNK + b"more")),
        PROTOCOL,
        "bytes after the last chunk",
    ),
    "twice": Fault("the answer comes twice", sent(_TWICE), PROTOCOL, "bytes after the last chunk"),
    # --- compression ----------------------------------------------------------------------------
    "gzip": Fault("gzip-compressed stream", compressed("gzip", 31), all=True),
    "deflate": Fault("deflated stream", compressed("deflate", 15), all=True),
    "gzip_cut": Fault("gzip that ends too early", compressed("gzip", 31, whole=False), INCOMPLETE),
    "gzip_lie": Fault(
        "called gzip but is plain",
        streamed(answer(), head("Content-Encoding: gzip", _CHUNKED)),
        PROTOCOL,
        "compressed",
    ),
    "brotli": Fault(
        "brotli, which was not asked for",
        streamed(answer(), head("Content-Encoding: br", _CHUNKED)),
        PROTOCOL,
        "'br' was not asked for",
    ),
    "te_gzip": Fault(
        "gzip as a transfer coding, which was not asked for",
        streamed(answer(), head("Transfer-Encoding: gzip, chunked")),
        PROTOCOL,
        "'gzip' was not asked for",
    ),
}
