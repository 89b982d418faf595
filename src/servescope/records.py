"""The schema that joins measuring, explaining and predicting: what happened to each request.

All times are int64 nanoseconds since the run began, from one monotonic clock. A measured and a
simulated run fill the same columns; nothing that reads them can tell which it was.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

COMPLETED = "completed"
TRUNCATED = "truncated"
CANCELLED = "cancelled"
FAILURES = (
    "connect",
    "tls",
    "timeout_connect",
    "timeout_first_token",
    "timeout_total",
    "stalled",
    "http_4xx",
    "http_429",
    "http_5xx",
    "http_other",
    "server_error_event",
    "protocol",
    "incomplete",
    "empty",
    "overrun",
    "too_large",
)
OUTCOMES = (COMPLETED, TRUNCATED, *(f"failed:{name}" for name in FAILURES), CANCELLED)
ANSWERED = (COMPLETED, TRUNCATED)
"""Outcomes whose times and tokens enter the figures: a well-formed answer is an answer."""

WARMUP_STAGE = -1
ABSENT = -1
"""Stands for 'no such time or count' in the integer columns."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What happened to one request. One line of requests.jsonl."""

    request: int
    """Index over the whole run, warm-up included: item `request` is what was asked."""
    stage: int
    """Index of the stage; -1 for warm-up."""
    target: int = 0
    """Which of the run's targets it went to."""
    session: int | None = None
    """What it belongs to with others; None where it stands alone."""
    turn: int = 0
    """Its number among those of its session."""
    due_ns: int
    """When the load said it should start; of a later turn, when the answer before it had ended and
    had been thought about."""
    sent_ns: int = ABSENT
    """Just before the first byte of the request went to the socket."""
    connect_ns: int = 0
    """Connection set-up between due and sent; 0 when a warm connection was at hand."""
    held_ns: int = 0
    """Waiting between due and sent because a declared cap on concurrency was reached."""
    first_byte_ns: int = ABSENT
    """First byte of the response."""
    chunk_ns: list[int] = []
    """Arrival of each chunk of generated content; the first since the run began, each later one
    since the chunk before it (delta-coded: smaller and as exact)."""
    chunk_tokens: list[int] | int | None = None
    """Tokens in each chunk as the server counted them; one int when all are alike; None when the
    server did not say, and figures made of it are estimates."""
    merged_chunks: int = 0
    """Chunks that came out of the same read as the chunk before: their times are upper bounds."""
    first_output_ns: int = ABSENT
    """First chunk that is not reasoning; absent when all was reasoning."""
    end_ns: int = ABSENT
    """End of the response: final event or end of body, whichever came last."""
    asked_input_tokens: int | None = None
    asked_output_tokens: int | None = None
    """The length asked for (`max_tokens`). Never used as the length that came."""
    pinned: bool = False
    """The answer was required to have exactly `asked_output_tokens`."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int = 0
    """Those of `output_tokens` that were reasoning."""
    tool_tokens: int = 0
    """Those that were calls of tools."""
    cached_tokens: int | None = None
    """Prompt tokens served from a prefix cache, where the server says so."""
    count_source: str | None = None
    """Who counted `output_tokens`: server, tokenizer or chunks."""
    outcome: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(OUTCOMES)})$")] = COMPLETED
    reason: str = ""
    """Why it did not complete, in the server's own words where it had any."""
    finish_reason: str | None = None
    status: int | None = None
    """HTTP status."""
    content_type: str = ""
    """As the response's header says; it decides nothing."""
    attempts: int = 1
    server_s: dict[str, float] = {}
    """The server's own timings of this request in seconds: ttft_s, queue_s, ..."""
    prompt_sha256: str = ""
    """First 16 hex digits; with prompt_bytes it tells prompts apart without keeping them."""
    prompt_bytes: int = 0
    answer_sha256: str = ""
    answer_bytes: int = 0
    prompt: str | None = None
    """Only with --keep-text."""
    answer: str | None = None
    """Only with --keep-text."""


class Sample(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One reading of one metric of one source. One line of samples.jsonl."""

    t_ns: int
    source: str
    name: str
    value: float
    labels: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Columns:
    """Records as columns: one row a request. `chunk_*` are ragged: row i owns the flat elements
    `chunk_start[i]:chunk_start[i + 1]`.

    Absent times and counts are -1; outcomes are indices into `OUTCOMES`.
    """

    request: NDArray[np.int64]
    stage: NDArray[np.int64]
    target: NDArray[np.int64]
    turn: NDArray[np.int64]
    due_ns: NDArray[np.int64]
    sent_ns: NDArray[np.int64]
    connect_ns: NDArray[np.int64]
    held_ns: NDArray[np.int64]
    first_byte_ns: NDArray[np.int64]
    first_output_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    merged_chunks: NDArray[np.int64]
    asked_input_tokens: NDArray[np.int64]
    asked_output_tokens: NDArray[np.int64]
    pinned: NDArray[np.bool_]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    reasoning_tokens: NDArray[np.int64]
    tool_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    counted_by_server: NDArray[np.bool_]
    outcome: NDArray[np.int64]
    attempts: NDArray[np.int64]
    chunk_start: NDArray[np.int64]
    """Shape (n + 1,)."""
    chunk_ns: NDArray[np.int64]
    """Flat, absolute (not delta-coded)."""
    chunk_tokens: NDArray[np.int64]
    """Flat; -1 where the server did not count that chunk."""

    def __len__(self) -> int:
        return len(self.request)

    def where(self, mask: NDArray[np.bool_]) -> Columns:
        """The rows where `mask` (shape (n,)) holds, ragged columns included."""
        if mask.all():
            return self
        counts = np.diff(self.chunk_start)
        flat = np.repeat(mask, counts)
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, column in chosen.items():
            if name in ("chunk_ns", "chunk_tokens"):
                chosen[name] = column[flat]
            elif name == "chunk_start":
                chosen[name] = np.concatenate(([0], np.cumsum(counts[mask])))
            else:
                chosen[name] = column[mask]
        return Columns(**chosen)

    def answered(self) -> Columns:
        """The rows whose times and tokens enter the figures."""
        return self.where(np.isin(self.outcome, [OUTCOMES.index(name) for name in ANSWERED]))


def _column(values: Iterable[int | None], n: int) -> NDArray[np.int64]:
    filled = (ABSENT if value is None else value for value in values)
    return np.fromiter(filled, np.int64, n)


def columns(records: Sequence[Record]) -> Columns:
    """Turn records (shape (n,)) into columns."""
    n = len(records)
    start = np.zeros(n + 1, np.int64)
    np.cumsum([len(r.chunk_ns) for r in records], out=start[1:])
    chunk_ns = np.empty(int(start[-1]), np.int64)
    chunk_tokens = np.full(int(start[-1]), ABSENT, np.int64)
    for i, r in enumerate(records):
        row = slice(start[i], start[i + 1])
        np.cumsum(r.chunk_ns, out=chunk_ns[row])
        if r.chunk_tokens is not None:
            chunk_tokens[row] = r.chunk_tokens

    plain = {
        name: _column((getattr(r, name) for r in records), n)
        for name in (
            *("target", "turn", "reasoning_tokens", "tool_tokens"),
            *("request", "stage", "due_ns", "sent_ns", "connect_ns", "held_ns", "first_byte_ns"),
            *("first_output_ns", "end_ns", "merged_chunks", "asked_input_tokens"),
            *("asked_output_tokens", "input_tokens", "output_tokens", "cached_tokens", "attempts"),
        )
    }
    return Columns(
        **plain,
        pinned=np.fromiter((r.pinned for r in records), np.bool_, n),
        counted_by_server=np.fromiter((r.count_source == "server" for r in records), np.bool_, n),
        outcome=_column((OUTCOMES.index(r.outcome) for r in records), n),
        chunk_start=start,
        chunk_ns=chunk_ns,
        chunk_tokens=chunk_tokens,
    )
