"""What passes between the conductor and a load process: plain structs of integers and bytes.

In: one line of JSON (`Settings`), then requests, through a pipe, so that no key touches a disk and
the pipe's own back-pressure bounds what is rendered ahead. Out: finished exchanges appended to an
unlinked spool file, so that the load loop never waits for whoever reads it and its memory does not
grow. Beside both, a shared page of counters, read and written without a system call.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

# --- requests, in ---------------------------------------------------------------------------------

REQUEST = struct.Struct("<qqqqqqqq")
"""The fields of `Request`, with the length of the body in its place; the body follows."""


class Request(NamedTuple):
    """One request to be sent."""

    number: int
    """Its index over the run."""
    due_ns: int
    """Since the start of the stage; -1 where a user who is free, or the turn before, decides."""
    limit: int
    """The most events that the answer may have."""
    body: bytes
    session: int = -1
    """-1: it stands alone."""
    turn: int = 0
    last: int = 0
    """1: no turn of its session follows."""
    think_ns: int = -1
    """Pause after the answer to the turn before; -1: that of the load."""


def pack_request(request: Request) -> bytes:
    """Bytes for the pipe."""
    number, due_ns, limit, body, *rest = request
    return REQUEST.pack(number, due_ns, limit, len(body), *rest) + body


# --- exchanges, out -------------------------------------------------------------------------------

EXCHANGE = struct.Struct("<qqqqqqqqqqq")
"""length of the rest, request, fate, attempts, due, sent, connect, held, end, count of reads,
length of the detail; then the reads (two int64 each: time, bytes received so far), the detail and
the raw bytes. Times are CLOCK_MONOTONIC nanoseconds; -1 where there is none."""

FATES = (
    "ended",  # the framing says that the response is whole
    "closed",  # the server closed the connection
    "reset",
    "connect",
    "tls",
    "timeout_connect",
    "timeout_first_token",
    "timeout_total",
    "stalled",
    "protocol",
    "overrun",
    "too_large",
    "cancelled",
    "part",  # bytes of an exchange that goes on: its rest follows under the same number
)
PART = FATES.index("part")


class Exchange(NamedTuple):
    """One finished exchange as the load process saw it, undecoded."""

    request: int
    fate: str
    detail: str
    """The system's words where the fate is an error."""
    attempts: int
    due_ns: int
    sent_ns: int
    connect_ns: int
    held_ns: int
    end_ns: int
    reads: array[int]
    """Pairs (time, bytes received so far)."""
    raw: bytes


def pack_exchange(
    numbers: tuple[int, ...], detail: str, reads: array[int], pieces: Sequence[bytes]
) -> bytes:
    """Bytes for the spool; `numbers` are request, fate, attempts, due, sent, connect, held, end."""
    words = detail.encode()[:2000]
    size = EXCHANGE.size - 8 + len(words) + 8 * len(reads) + sum(map(len, pieces))
    head = EXCHANGE.pack(size, *numbers, len(reads) // 2, len(words))
    return b"".join((head, reads.tobytes(), words, *pieces))


def unpack_exchange(frame: bytes) -> Exchange:
    """The exchange in one whole frame."""
    _, request, fate, attempts, due, sent, connect, held, end, n, words = EXCHANGE.unpack_from(
        frame
    )
    at = EXCHANGE.size
    reads = array("q")
    reads.frombytes(frame[at : at + 16 * n])
    at += 16 * n
    detail = frame[at : at + words].decode(errors="replace")
    raw = frame[at + words :]
    return Exchange(
        request, FATES[fate], detail, attempts, due, sent, connect, held, end, reads, raw
    )


def join(parts: list[Exchange], last: Exchange) -> Exchange:
    """The whole exchange of which these parts came before its end."""
    if not parts:
        return last
    reads = array("q")
    for part in (*parts, last):
        reads.extend(part.reads)
    return last._replace(reads=reads, raw=b"".join(part.raw for part in (*parts, last)))


# --- the shared page ------------------------------------------------------------------------------

PAGE_BYTES = 4096
LAG_BINS = 256
"""Bins of the histogram of loop lag, four to each power of two of nanoseconds."""
(
    START_NS,  # conductor: when the stage starts (0: wait)
    STOP,  # conductor: 1 offer no more, 2 end at once
    READY,  # load process: connections are warm and requests at hand
    SENT,
    FINISHED,
    IN_FLIGHT,
    CPU_NS,
    WALL_NS,
    KERNEL_CLOCK,  # 1 when times come from the kernel
    CLOCK_STEPS,
    LAG_MAX_NS,
    WAITING_NS,  # ready to run, while others had the core
    BEHIND_NS,  # the loop was late, or did not run at all
) = range(13)
LAG = 64
"""First slot of the lag histogram."""


def lag_bin(ns: int) -> int:
    """Bin of a lag: its power of two and the next two bits."""
    if ns < 4:
        return 0
    bits = ns.bit_length()
    return bits * 4 + ((ns >> (bits - 3)) & 3)


def lag_of_bin(index: int) -> int:
    """Upper edge in nanoseconds of a bin."""
    bits, quarter = divmod(index, 4)
    return (5 + quarter) << (bits - 3) if bits >= 3 else 4
