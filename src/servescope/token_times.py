"""When the tokens of each request came: times per request, gaps per chunk and per token.

A gap between chunks is what was observed; a gap between tokens follows from it and from the number
of tokens in the chunk. Where the server counted each chunk that number is known; else the tokens
are spread evenly over the chunks, and the result is `estimated`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from servescope.records import ABSENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servescope.records import Columns

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Time between arrivals within a request, shape (m,) each."""

    row: Ints
    """Which row of the columns."""
    seconds: Floats
    """Between chunks: the gap. Between tokens: the gap divided by the chunk's tokens."""
    weight: Floats
    """How many samples this value stands for: 1, or the chunk's tokens."""
    estimated: bool = False
    """At least one chunk's tokens were not counted by the server."""


@dataclass(frozen=True, slots=True)
class ChunkTokens:
    """Tokens of each chunk, shape as `Columns.chunk_ns`; estimated ones need not be whole."""

    tokens: Floats
    guessed: NDArray[np.bool_]
    """Where the server did not count the chunk."""


def seconds(later: Ints, earlier: Ints) -> Floats:
    """`later - earlier` in seconds; NaN where either is absent."""
    there = (later != ABSENT) & (earlier != ABSENT)
    return np.where(there, (later - earlier) / 1e9, np.nan)


def chunk_counts(columns: Columns) -> Ints:
    """Chunks of each request, shape (n,)."""
    return np.diff(columns.chunk_start)


def first_chunk_ns(columns: Columns) -> Ints:
    """Arrival of each request's first chunk, shape (n,); -1 where it has none."""
    return _chunk_at(columns, columns.chunk_start[:-1])


def last_chunk_ns(columns: Columns) -> Ints:
    """Arrival of each request's last chunk, shape (n,); -1 where it has none."""
    return _chunk_at(columns, columns.chunk_start[1:] - 1)


def ended_ns(columns: Columns) -> Ints:
    """The end of each response, else its last chunk, shape (n,); -1 where neither came."""
    return np.where(columns.end_ns != ABSENT, columns.end_ns, last_chunk_ns(columns))


def chunk_rows(columns: Columns) -> Ints:
    """The row that each chunk belongs to, shape as `Columns.chunk_ns`."""
    return np.repeat(np.arange(len(columns)), chunk_counts(columns))


def chunk_tokens(columns: Columns) -> ChunkTokens:
    """Tokens of each chunk: the server's count; chunks without one share the rest evenly."""
    row = chunk_rows(columns)
    guessed = columns.chunk_tokens == ABSENT
    known = np.where(guessed, 0, columns.chunk_tokens).astype(np.float64)
    left = np.maximum(columns.output_tokens - _sum_rows(columns, known), 0)
    share = left / np.maximum(_sum_rows(columns, guessed), 1)
    return ChunkTokens(np.where(guessed, share[row], known), guessed)


def arriving_tokens(columns: Columns) -> Floats:
    """Tokens that arrived with each chunk, adding up to each answer's total.

    A server may count more at the end than in its chunks (an end token has no text): the
    difference is spread in proportion, so that a rate over the whole stage misses none.
    """
    tokens = chunk_tokens(columns).tokens
    row, sums = chunk_rows(columns), _sum_rows(columns, tokens)
    even = 1 / np.maximum(chunk_counts(columns), 1)
    part = np.where(sums[row] > 0, tokens / np.where(sums > 0, sums, 1)[row], even[row])
    return part * np.maximum(columns.output_tokens, 0)[row]


def chunk_gaps(columns: Columns) -> Gaps:
    """Every gap between two chunks of one request."""
    return _gaps(columns, np.ones(len(columns.chunk_ns), np.bool_))


def token_gaps(columns: Columns) -> Gaps:
    """The same gaps, token-true: a chunk of m tokens stands for m samples of gap / m.

    The first chunk's tokens give none. A chunk without a token gives none either, and the wait for
    the next token goes on over it; after the last token no wait is left.
    """
    counted = chunk_tokens(columns)
    kept = _is_first(columns) | (counted.tokens > 0)
    gaps, weight = _gaps(columns, kept), counted.tokens[kept]
    weight = weight[~_is_first(columns)[kept]]
    guessed = bool((counted.guessed & ~_is_first(columns)).any())
    return Gaps(gaps.row, gaps.seconds / weight, weight, guessed)


def per_request(columns: Columns) -> dict[str, Floats]:
    """The figures that have one value a request, in seconds, shape (n,) each; NaN where absent."""
    first, last = first_chunk_ns(columns), last_chunk_ns(columns)
    e2e = seconds(last, columns.sent_ns)
    tokens = columns.output_tokens
    return {
        "lateness_s": seconds(columns.sent_ns, columns.due_ns),
        "connect_s": np.where(columns.sent_ns != ABSENT, columns.connect_ns / 1e9, np.nan),
        "ttfb_s": seconds(columns.first_byte_ns, columns.sent_ns),
        "ttft_s": seconds(first, columns.sent_ns),
        "ttfo_s": seconds(columns.first_output_ns, columns.sent_ns),
        "ttft_from_due_s": seconds(first, columns.due_ns),
        "e2e_from_due_s": seconds(last, columns.due_ns),
        "e2e_s": e2e,
        "tpot_s": _over(seconds(last, first), tokens - _first_tokens(columns)),
        "normalized_latency_s_per_token": _over(e2e, tokens),
    }


def generator_delay_s(columns: Columns) -> Floats:
    """How late the generator itself was with each request that was sent, in seconds (m,).

    From due to sent, without connection set-up (the network's time) and without waiting under a
    declared cap on concurrency (the user's wish).
    """
    sent = columns.where(columns.sent_ns != ABSENT)
    delay: Floats = (sent.sent_ns - sent.due_ns - sent.connect_ns - sent.held_ns) / 1e9
    return delay


def _over(time: Floats, tokens: Ints) -> Floats:
    return np.where(tokens > 0, time / np.maximum(tokens, 1), np.nan)


def _first_tokens(columns: Columns) -> Ints:
    """Tokens in the first chunk, 1 if unknown; the whole answer where no other chunk follows."""
    several = chunk_counts(columns) > 1
    tokens = columns.output_tokens.copy()
    opening = columns.chunk_tokens[columns.chunk_start[:-1][several]]
    tokens[several] = np.where(opening == ABSENT, 1, opening)
    return tokens


def _chunk_at(columns: Columns, index: Ints) -> Ints:
    found = np.full(len(columns), ABSENT, np.int64)
    there = chunk_counts(columns) > 0
    found[there] = columns.chunk_ns[index[there]]
    return found


def _is_first(columns: Columns) -> NDArray[np.bool_]:
    first = np.zeros(len(columns.chunk_ns), np.bool_)
    first[columns.chunk_start[:-1][chunk_counts(columns) > 0]] = True
    return first


def _sum_rows(columns: Columns, values: NDArray[np.generic]) -> Floats:
    summed = np.bincount(chunk_rows(columns), values.astype(np.float64), len(columns))
    return summed.astype(np.float64)


def _gaps(columns: Columns, kept: NDArray[np.bool_]) -> Gaps:
    """Gaps between neighbours among the `kept` chunks of each request, the first always kept."""
    times, row = columns.chunk_ns[kept], chunk_rows(columns)[kept]
    same = row[1:] == row[:-1]
    gap = np.diff(times)[same] / 1e9
    return Gaps(row[1:][same], gap, np.ones(len(gap)))
