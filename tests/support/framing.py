"""Bytes cut into pieces and put into HTTP responses, with the place where each byte came to lie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

EVERY = range(1 << 20)
"""Cuts after every byte."""
CUTS = st.lists(st.integers(0, 1 << 16), max_size=24) | st.just(EVERY)


def cut(data: bytes, cuts) -> list[bytes]:
    """`data` in pieces, none of them empty, cut at `cuts` modulo its length."""
    if cuts is EVERY:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@dataclass
class Framed:
    """A whole HTTP response."""

    raw: bytes
    at: list[int]
    """Where in `raw` each byte of the body lies."""
    closed: bool
    """Whether its end is the close of the connection."""

    def reads(self, cuts) -> list[int]:
        """Pairs (time, bytes so far) as a load process notes them: one a piece, 1000 ns apart."""
        pairs, end = [], 0
        for number, piece in enumerate(cut(self.raw, cuts), 1):
            end += len(piece)
            pairs += [number * 1000, end]
        return pairs

    def came(self, body_end: int, reads: list[int]) -> int:
        """The time of the read that brought the body's byte before `body_end`."""
        last = self.at[body_end - 1]
        return next(at for at, end in zip(reads[::2], reads[1::2], strict=True) if end > last)


def chunked(head: bytes, body: bytes, cuts=(), extension: bytes = b"") -> Framed:
    """`body` in transfer chunks; `head` has no blank line yet."""
    raw = bytearray(head + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    at: list[int] = []
    for piece in cut(body, cuts):
        raw += b"%x%b\r\n" % (len(piece), extension)
        at += range(len(raw), len(raw) + len(piece))
        raw += piece + b"\r\n"
    return Framed(bytes(raw + b"0\r\n\r\n"), at, closed=False)


def sized(head: bytes, body: bytes) -> Framed:
    """`body` with its content-length."""
    raw = b"%b\r\nContent-Length: %d\r\n\r\n" % (head, len(body))
    return Framed(raw + body, list(range(len(raw), len(raw) + len(body))), closed=False)


def unsized(head: bytes, body: bytes) -> Framed:
    """`body` that the close of the connection ends."""
    raw = head + b"\r\n\r\n"
    return Framed(raw + body, list(range(len(raw), len(raw) + len(body))), closed=True)
