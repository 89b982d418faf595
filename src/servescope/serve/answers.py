"""Answers as scripts: well-formed ones of OpenAI chat completions, and what can be done to one.

A healthy answer: the role at once, 10 tokens, the first at 50 ms, then each 10 ms, a finish reason,
usage, [DONE]. A faulty one is a healthy one with something done to its pieces, to their framing or
to its connection. Every script here is a function of the request and the peer.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from servescope.serve.scripted import (
    LAST_CHUNK,
    Peer,
    Request,
    Script,
    chunk,
    head,
    sleep_until,
)

TOKENS, FIRST_S, GAP_S = 10, 0.05, 0.01
USAGE = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}
DONE = b"data: [DONE]\n\n"
_GRACE_S = 0.02
"""A reset throws away what is still on its way, so it comes a little later."""


class Piece(NamedTuple):
    """Bytes that are due at a time after the request came."""

    at_s: float
    data: bytes
    content: bool = False


# --- what is said ---------------------------------------------------------------------------------


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: object) -> bytes:
    """One event of a stream; without a choice where there is no `delta`."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "r", "object": "chat.completion.chunk", "created": 1, "model": "paced"}
    return b"data: " + msgspec.json.encode(chunk | {"choices": choices} | more) + b"\n\n"


ROLE = Piece(0, event({"role": "assistant", "content": ""}))


def tokens(
    count: int = TOKENS,
    *,
    first_s: float = FIRST_S,
    gap_s: float = GAP_S,
    delta: Callable[[int], dict[str, Any]] = lambda _: {"content": " x"},
) -> list[Piece]:
    """Events of one token each; `delta(k)` is what event k says."""
    return [Piece(first_s + k * gap_s, event(delta(k)), content=True) for k in range(count)]


def ending(at_s: float, finish: str | None = "length", usage: object = USAGE) -> list[Piece]:
    """Finish reason, usage unless it is None, [DONE]."""
    last = [Piece(at_s, event({}, finish))]
    if usage is not None:
        last.append(Piece(at_s, event(None, usage=usage)))
    return [*last, Piece(at_s, DONE)]


def answer(middle: list[Piece] | None = None, **closing: Any) -> list[Piece]:  # noqa: ANN401
    """All pieces of an answer: role, `middle`, ending."""
    middle = tokens() if middle is None else middle
    return [ROLE, *middle, *ending(middle[-1].at_s, **closing)]


def cut(after: int = 4) -> list[Piece]:
    """The beginning of an answer."""
    return [ROLE, *tokens(after)]


def mapped(change: Callable[[bytes], bytes], pieces: list[Piece] | None = None) -> list[Piece]:
    """An answer with something done to the bytes of each piece."""
    return [piece._replace(data=change(piece.data)) for piece in pieces or answer()]


def running_usage() -> list[Piece]:
    """An answer that tells usage so far in every event."""
    pieces, made = [], 0
    for piece in answer():
        made += piece.content
        usage = USAGE | {"completion_tokens": made, "total_tokens": 20 + made}
        chunk = None if piece.data == DONE else msgspec.json.decode(piece.data[6:])
        data = b"data: %b\n\n" % msgspec.json.encode(chunk | {"usage": usage}) if chunk else DONE
        pieces.append(piece._replace(data=data))
    return pieces


# --- how it is framed -----------------------------------------------------------------------------


def byte_chunks(data: bytes) -> bytes:
    """A chunk for each byte."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in data)


async def play(
    request: Request, peer: Peer, pieces: Iterable[Piece], frame: Callable[[bytes], bytes] = chunk
) -> None:
    """Send the pieces when they are due, and note when the first content left."""
    for at_s, data, content in pieces:
        await sleep_until(request.at_ns / 1e9 + at_s)
        await peer.send(frame(data))
        if content and not request.first_content_ns:
            request.first_content_ns = peer.written_ns[-1]


def streamed(
    pieces: list[Piece],
    first: bytes = head(),
    *,
    frame: Callable[[bytes], bytes] = chunk,
    end: bytes = LAST_CHUNK,
) -> Script:
    """Head, pieces in their framing, end; a cut body where `end` is empty."""

    async def script(request: Request, peer: Peer) -> None:
        await peer.send(first)
        await play(request, peer, pieces, frame)
        await peer.send(end)

    return script


def unframed(pieces: list[Piece], first: bytes) -> Script:
    """A body as it is: the connection ends it, or a length that `first` tells."""
    return streamed(pieces, first, frame=bytes, end=b"")


def sized(pieces: list[Piece], more: int = 0, *lines: str) -> Script:
    """A body with a content-length, which is off by `more` bytes."""
    length = sum(len(piece.data) for piece in pieces) + more
    return unframed(pieces, head(f"Content-Length: {length}", *lines))


def whole(status: int, body: bytes, kind: str = "application/json", *lines: str) -> Script:
    """An answer in one piece, at once."""

    async def script(request: Request, peer: Peer) -> None:  # noqa: ARG001
        await peer.whole(status, body, kind, *lines)

    return script


def at_once(body: bytes) -> Script:
    """A whole answer with content, in one piece when its last token is made."""
    first = head(f"Content-Length: {len(body)}", kind="application/json")

    async def script(request: Request, peer: Peer) -> None:
        await play(request, peer, [Piece(answer()[-1].at_s, first + body, content=True)], bytes)

    return script


async def coalesced(request: Request, peer: Peer) -> None:
    """Everything in one segment, when the last token is made."""
    pieces = answer()
    data = head() + chunk(b"".join(piece.data for piece in pieces)) + LAST_CHUNK
    await play(request, peer, [Piece(pieces[-1].at_s, data, content=True)], bytes)


async def split(request: Request, peer: Peer) -> None:
    """Each event cut over many segments: in its chunk's size, after its field, in a character."""
    await peer.send(head())
    for piece in answer(tokens(delta=lambda _: {"content": " é€"})):
        data = chunk(piece.data)
        field_end = data.index(b"data: ") + len(b"data: ")
        character = data.find("€".encode()) + 1 or field_end + 3
        cuts = [0, 1, field_end, character, len(data) - 3, len(data)]
        for start, end in pairwise(cuts):
            part = Piece(piece.at_s, data[start:end], piece.content and end == cuts[-2])
            await play(request, peer, [part], bytes)
            await asyncio.sleep(0.0005)
    await peer.send(LAST_CHUNK)


def compressed(coding: str, wbits: int, *, whole: bool = True) -> Script:
    """A compressed stream, flushed after each event; without its own end where not `whole`."""

    async def script(request: Request, peer: Peer) -> None:
        packer = zlib.compressobj(wbits=wbits)
        await peer.send(head(f"Content-Encoding: {coding}", "Transfer-Encoding: chunked"))
        await play(
            *(request, peer, answer()),
            lambda data: chunk(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)),
        )
        if whole:
            await peer.send(chunk(packer.flush()))
        await peer.send(LAST_CHUNK)

    return script


# --- what becomes of the connection ---------------------------------------------------------------


async def nothing(request: Request, peer: Peer) -> None:
    """No answer."""


async def for_ever(request: Request, peer: Peer) -> None:  # noqa: ARG001
    """No answer, and nothing more is read."""
    await asyncio.Event().wait()


def sent(data: bytes) -> Script:
    """These bytes."""

    async def script(request: Request, peer: Peer) -> None:  # noqa: ARG001
        await peer.send(data)

    return script


def then(first: Script, last: Callable[[Peer], object]) -> Script:
    """Something done to the connection after an answer, or a part of one."""

    async def script(request: Request, peer: Peer) -> None:
        await first(request, peer)
        await asyncio.sleep(_GRACE_S)
        last(peer)

    return script


def and_silence(first: Script) -> Script:
    """Nothing more after an answer, or a part of one; the connection stays open."""

    async def script(request: Request, peer: Peer) -> None:
        await first(request, peer)
        await for_ever(request, peer)

    return script


def repeated(
    piece: bytes, gap_s: float, pieces: Iterable[Piece] = (), *, framed: bool = True
) -> Script:
    """After the first pieces the same bytes again and again, for ever; no head if not `framed`."""

    async def script(request: Request, peer: Peer) -> None:
        if framed:
            await peer.send(head())
        await play(request, peer, pieces, chunk if framed else bytes)
        while True:
            await asyncio.sleep(gap_s)
            await peer.send(chunk(piece) if framed else piece)

    return script


dripped_head = repeated(b"x", 0.05, [Piece(0, b"HTTP/1.1 200 OK\r\nX-Slow: ")], framed=False)
"""A byte of the headers at a time, for ever."""
