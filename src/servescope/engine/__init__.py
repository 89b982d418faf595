"""One continuous-batching engine without a clock: who calls `step` says how time goes by.

The server (`serve/`) waits for a step's duration in real time, the simulator (`simulate.py`) adds
it up; both see the same engine. Nothing here knows of sockets, clocks or text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Work:
    """A request as the engine sees it, and what has become of it."""

    prompt: tuple[int, ...]
    """Token ids: their values matter to the prefix cache alone."""
    output_tokens: int
    """How many tokens its answer will have."""
    owner: Any = None
    """Whatever the caller wants to find again."""
    made: int = 0
    """Output tokens so far."""
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache held when it was first scheduled."""
    preemptions: int = 0
    scheduled: bool = False
    """Whether it has ever left the queue."""
    answer: tuple[int, ...] = ()
    """Token ids of its answer, where they are known beforehand: they too stay in the prefix cache,
    for the next turn of a conversation."""


@dataclass(slots=True)
class Step:
    """One iteration of the engine: a batch, and how long it takes."""

    duration_s: float
    prefill_tokens: int
    """Prompt tokens computed, those of recomputed requests included, cached ones not."""
    sequences: int
    """Requests in the batch."""
    context_tokens: int
    """Tokens in the KV cache that the batch attends to."""
    made: list[Work] = field(default_factory=list)
    """Requests that have one more token at the end of the step, in the order of the batch."""
    finished: list[Work] = field(default_factory=list)
    """Those of `made` whose answer is whole now; they have left the engine."""
    preempted: int = 0
