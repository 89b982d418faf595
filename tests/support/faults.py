"""The faults that servers have, as scripts, and what must come of each.

A healthy answer: the role at once, 10 tokens, the first at 50 ms, then each 10 ms, a finish reason,
usage, [DONE]. A fault is a healthy answer with something done to its events or to their framing.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec

from tests.support.served import Peer, Request, Script, sleep_until

TOKENS, FIRST_S, GAP_S = 10, 0.05, 0.01
USAGE = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}
DONE = b"data: [DONE]\n\n"


class Piece(NamedTuple):
    """Bytes that are due at a time after the request came."""

    at_s: float
    data: bytes
    content: bool = False


def event(delta: dict | None = None, finish: str | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "r", "object": "chat.completion.chunk", "created": 1, "model": "paced"}
    return b"data: " + msgspec.json.encode(chunk | {"choices": choices} | more) + b"\n\n"


ROLE = Piece(0, event({"role": "assistant", "content": ""}))


def tokens(count: int = TOKENS, *, first_s: float = FIRST_S, gap_s: float = GAP_S) -> list[Piece]:
    """Events of one token each."""
    return [
        Piece(first_s + k * gap_s, event({"content": " x"}), content=True) for k in range(count)
    ]


def ending(at_s: float, finish: str = "length", usage: object = USAGE) -> list[Piece]:
    last = [Piece(at_s, event({}, finish))]
    if usage is not None:
        last.append(Piece(at_s, event(None, usage=usage)))
    return [*last, Piece(at_s, DONE)]


def answer(middle: list[Piece] | None = None, **closing: object) -> list[Piece]:
    """All pieces of an answer: role, `middle`, ending."""
    middle = tokens() if middle is None else middle
    return [ROLE, *middle, *ending(middle[-1].at_s, **closing)]


# --- framing --------------------------------------------------------------------------------------


class Line:
    """One answer on its way out, which notes when its first content left."""

    def __init__(self, request: Request, peer: Peer, first_ns: dict[int, int]) -> None:
        self.request, self.peer, self._first_ns = request, peer, first_ns
        self.start_s = request.at_ns / 1e9

    async def play(self, pieces: list[Piece], send: Callable[[bytes], Awaitable[None]]) -> None:
        for at_s, data, content in pieces:
            await sleep_until(self.start_s + at_s)
            await send(data)
            if content:
                self._first_ns.setdefault(self.request.number, self.peer.written_ns[-1])


Act = Callable[[Line], Awaitable[None]]


def streamed(
    pieces: list[Piece], *, kind: str = "text/event-stream", end: bytes = b"0\r\n\r\n"
) -> Act:
    """A chunked answer; without its end when `end` is empty."""

    async def act(line: Line) -> None:
        await line.peer.head(kind)
        await line.play(pieces, line.peer.chunk)
        await line.peer.send(end)

    return act


def unframed(head: str, *, close: bool = True) -> Act:
    """An answer that ends with its connection."""

    async def act(line: Line) -> None:
        await line.peer.send(f"{head}\r\nContent-Type: text/event-stream\r\n\r\n".encode())
        await line.play(answer(), line.peer.send)
        if close:
            line.peer.close()

    return act


def whole(status: int, body: bytes, kind: str = "application/json", *headers: str) -> Act:
    async def act(line: Line) -> None:
        await line.peer.whole(status, body, kind, *headers)

    return act


def then(first: Act, last: Callable[[Peer], object]) -> Act:
    """Something done to the connection after an answer, or a part of one."""

    async def act(line: Line) -> None:
        await first(line)
        await asyncio.sleep(0.02)  # a reset throws away what is still on its way
        last(line.peer)

    return act


async def nothing(line: Line) -> None:
    """No answer."""


async def for_ever(line: Line) -> None:
    """No answer, and nothing more is read."""
    await asyncio.Event().wait()


def and_silence(first: Act) -> Act:
    async def act(line: Line) -> None:
        await first(line)
        await for_ever(line)

    return act


def repeated(piece: bytes, gap_s: float, first: list[Piece] | None = None) -> Act:
    """After the first pieces the same one again and again, for ever."""

    async def act(line: Line) -> None:
        await line.peer.head()
        await line.play(first or [], line.peer.chunk)
        while True:
            await asyncio.sleep(gap_s)
            await line.peer.chunk(piece)

    return act


async def half_a_head(line: Line) -> None:
    await line.peer.send(b"HTTP/1.1 200 OK\r\nContent-Ty")


async def dripped_head(line: Line) -> None:
    """A byte of the headers at a time, for ever."""
    await line.peer.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await asyncio.sleep(0.05)
        await line.peer.send(b"x")


async def coalesced(line: Line) -> None:
    """Everything in one segment, when the last token is made."""
    pieces = answer()
    body = b"".join(piece.data for piece in pieces)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    data = b"%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body)
    await line.play([Piece(pieces[-1].at_s, data, content=True)], line.peer.send)


async def split(line: Line) -> None:
    """Each event cut over many segments: in its chunk's size, after its field, in a character."""
    await line.peer.head()
    for piece in answer([p._replace(data=event({"content": " é€"})) for p in tokens()]):
        data = b"%x\r\n%b\r\n" % (len(piece.data), piece.data)
        field_end = data.index(b"data: ") + len(b"data: ")
        character = data.find("€".encode()) + 1 or field_end + 3
        cuts = [0, 1, field_end, character, len(data) - 3, len(data)]
        for start, end in pairwise(cuts):
            part = Piece(piece.at_s, data[start:end], piece.content and end == cuts[-2])
            await line.play([part], line.peer.send)
            await asyncio.sleep(0.0005)
    await line.peer.end()


async def gzipped(line: Line) -> None:
    packer = zlib.compressobj(wbits=31)
    lines = ("Content-Encoding: gzip", "Transfer-Encoding: chunked")
    await line.peer.head("text/event-stream", *lines)

    async def send(data: bytes) -> None:
        await line.peer.chunk(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))

    await line.play(answer(), send)
    await line.peer.chunk(packer.flush())
    await line.peer.end()


def bomb(size: int) -> Act:
    """A few kilobytes that become very many."""
    body = gzip.compress(b"data: " + b"x" * size + b"\n\n")
    return whole(200, body, "text/event-stream", "Content-Encoding: gzip")


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What the server does, and what must come of the requests that meet it."""

    act: Act
    outcomes: tuple[str, ...] = ("completed",)
    words: str = ""
    """The server's own, that the reason must hold."""
    all: bool = False
    tokens: int = TOKENS
    requests: int = 16
    options: dict[str, object] = field(default_factory=dict)
    """Of the run."""
    server: dict[str, object] = field(default_factory=dict)
    """Options of the server."""


def _mapped(change: Callable[[bytes], bytes]) -> Act:
    return streamed([piece._replace(data=change(piece.data)) for piece in answer()])


def _commented(data: bytes) -> bytes:
    return b": ping\n\nevent: message\nid: 7\nretry: 1000\n" + data


def _usage_each() -> list[Piece]:
    pieces, made = [], 0
    for piece in answer():
        made += piece.content
        usage = USAGE | {"completion_tokens": made, "total_tokens": 20 + made}
        chunk = None if piece.data == DONE else msgspec.json.decode(piece.data[6:])
        data = b"data: %b\n\n" % msgspec.json.encode(chunk | {"usage": usage}) if chunk else DONE
        pieces.append(piece._replace(data=data))
    return pieces


def _reasoned() -> list[Piece]:
    """Six tokens of reasoning, then four of the answer."""
    thought = event({"reasoning_content": " x"})
    return answer([p._replace(data=thought) if k < 6 else p for k, p in enumerate(tokens())])


def _called() -> list[Piece]:
    def delta(k: int) -> bytes:
        function = {"name": "look_up"} if k == 0 else {"arguments": " x"}
        return event({"tool_calls": [{"index": 0, "function": function}]})

    middle = [piece._replace(data=delta(k)) for k, piece in enumerate(tokens())]
    return answer(middle, finish="tool_calls")


def _cut(after: int = 4) -> list[Piece]:
    return [ROLE, *tokens(after)]


_ERROR = b'{"error":{"message":"the engine is out of blocks","type":"InternalServerError"}}'
_HTML = b"<html><body><script>alert(1)</script>Service Unavailable</body></html>"
_EMPTY = b'{"object":"list","data":[]}'
_FIVE = USAGE | {"completion_tokens": 5}
_BAD_UTF8 = event({"content": " @"}).replace(b"@", b"\xff\xfe")
_PROTOCOL, _INCOMPLETE = ("failed:protocol",), ("failed:incomplete",)
_ERROR_EVENT = ("failed:server_error_event",)
_NO_CONTENT = [Piece(0, event(None)), Piece(0, event({"content": None}))]

FAULTS: dict[str, Fault] = {
    "accept_close": Fault(
        then(nothing, Peer.close), ("failed:connect", "failed:incomplete"), "without an answer"
    ),
    "rst_headers": Fault(then(half_a_head, Peer.reset), _INCOMPLETE, "reset by peer"),
    "s429": Fault(
        whole(429, b'{"error":{"message":"slow down"}}', "application/json", "Retry-After: 7"),
        ("failed:http_429",),
        "retry-after: 7; slow down",
    ),
    "s500_json": Fault(whole(500, _ERROR), ("failed:http_5xx",), "the engine is out of blocks"),
    "s503_html": Fault(whole(503, _HTML, "text/html"), ("failed:http_5xx",), _HTML.decode()),
    "s401": Fault(
        whole(401, b"no", "text/plain", 'WWW-Authenticate: Bearer realm="x"'),
        ("failed:http_4xx",),
        'www-authenticate: Bearer realm="x"; no',
    ),
    "json_error_200": Fault(whole(200, _ERROR), _ERROR_EVENT, "the engine is out of blocks"),
    "sse_error_mid": Fault(
        streamed([*_cut(), Piece(0.09, b"data: " + _ERROR + b"\n\n"), Piece(0.09, DONE)]),
        _ERROR_EVENT,
        "the engine is out of blocks",
    ),
    "cut_fin": Fault(
        then(streamed(_cut(), end=b""), Peer.close), _INCOMPLETE, "after its first token"
    ),
    "cut_clean": Fault(streamed(_cut()), _INCOMPLETE, "without a finish reason"),
    "no_done": Fault(streamed(answer()[:-1])),
    "cut_rst": Fault(then(streamed(_cut(), end=b""), Peer.reset), _INCOMPLETE, "reset by peer"),
    "stall": Fault(and_silence(streamed(_cut(), end=b"")), ("failed:stalled",), "after 1 s"),
    "stall_first": Fault(for_ever, ("failed:timeout_first_token",), "after 1 s"),
    "slow_drip": Fault(streamed(answer(tokens(gap_s=0.3))), requests=8),
    "multi_tok": Fault(
        streamed(answer([p._replace(data=event({"content": " x x"})) for p in tokens(5)])),
        all=True,
    ),
    "coalesced": Fault(coalesced, all=True),
    "split_tcp": Fault(split, all=True),
    "crlf": Fault(_mapped(lambda data: data.replace(b"\n", b"\r\n")), all=True),
    "nospace": Fault(_mapped(lambda data: data.replace(b"data: ", b"data:")), all=True),
    "comments": Fault(_mapped(_commented), all=True),
    "no_usage": Fault(streamed(answer(usage=None)), all=True),
    "usage_zero": Fault(streamed(answer(usage=USAGE | {"completion_tokens": 0})), all=True),
    "usage_each": Fault(streamed(_usage_each()), all=True),
    "wrong_ctype": Fault(streamed(answer(), kind="text/plain"), all=True),
    "http10": Fault(unframed("HTTP/1.0 200 OK"), all=True),
    "conn_close": Fault(unframed("HTTP/1.1 200 OK\r\nConnection: close"), all=True),
    "trailers": Fault(streamed(answer(), end=b"0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"), all=True),
    "giant_event": Fault(
        streamed(answer([*tokens(9), Piece(0.2, event({"content": "x" * 10_000_000}))])),
        ("completed", "failed:too_large"),
        requests=8,
    ),
    "endless": Fault(
        repeated(event({"content": " x"}), GAP_S, _cut()),
        ("failed:overrun", "failed:timeout_total"),
        "more than",
    ),
    "bad_json": Fault(
        streamed([*_cut(), Piece(0.09, b'data: {"choices": [{\n\n'), *ending(0.1)]), _PROTOCOL
    ),
    "bad_utf8": Fault(
        streamed(answer([*tokens(9), Piece(0.14, _BAD_UTF8)])), (*_PROTOCOL, "completed")
    ),
    "dup_done": Fault(streamed([*answer(), Piece(0.14, DONE)]), all=True),
    "role_only": Fault(streamed(answer(tokens(first_s=0.2))), all=True),
    "empty_choices": Fault(streamed([*_NO_CONTENT, *answer()[1:]]), all=True),
    "reasoning": Fault(streamed(_reasoned()), all=True),
    "tool_calls": Fault(streamed(_called()), all=True),
    "short_length": Fault(
        streamed(answer(tokens(5), usage=_FIVE)), ("truncated",), all=True, tokens=5
    ),
    "redirect": Fault(
        whole(307, b"", "text/plain", "Location: /elsewhere"),
        ("failed:http_other",),
        "location: /elsewhere",
    ),
    "gzip": Fault(gzipped, all=True),
    "models_empty": Fault(
        streamed(answer()), all=True, options={"model": "paced"}, server={"models": _EMPTY}
    ),
    "empty_stream": Fault(streamed([Piece(0, DONE)]), ("failed:empty",), "without a token"),
    "empty_body": Fault(whole(200, b"", "text/event-stream"), ("failed:empty",), "without a token"),
}


def script(act: Act) -> Script:
    """A fault as the script of a plain server."""

    async def run(request: Request, peer: Peer) -> None:
        await act(Line(request, peer, {}))

    return run
