"""One continuous-batching engine without a clock: who calls `step` says how time goes by.

The server (`serve/`) waits for a step's duration in real time, the simulator (`simulate.py`) adds
it up, the planner replays lengths alone (`replay.py`); all see the same engine. Nothing here knows
of sockets, clocks or text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from servescope.engine.lines import Lines, at

if TYPE_CHECKING:
    from collections.abc import Iterator

FS = 10**15
"""Durations are whole femtoseconds: exact, so that many steps at once come to what they come to
one by one."""


@dataclass(slots=True, eq=False)
class Work:
    """A request as the engine sees it, and what has become of it."""

    prompt: tuple[int, ...]
    """Token ids: their values matter to the prefix cache alone. Empty where only their number is
    known; then it is like no other request."""
    output_tokens: int
    """How many tokens its answer will have."""
    owner: Any = None
    """Whatever the caller wants to find again."""
    answer: tuple[int, ...] = ()
    """Token ids of its answer, where they are known beforehand: they too stay in the prefix cache,
    for the next turn of a conversation."""
    prompt_tokens: int = 0
    most_tokens: int = 0
    """What its client allows the answer to have (`max_tokens`); by default what it will have."""
    made: int = 0
    """Output tokens so far; of a request that decodes, brought up to date when it leaves."""
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache held when it was first scheduled."""
    preemptions: int = 0
    scheduled: bool = False
    """Whether it has ever left the queue."""
    brought_tokens: int = 0
    """Tokens whose KV comes with it, from the engine that computed its prompt; 0 once it was
    admitted: what is preempted is computed anew."""

    # What follows is the engine's own.
    computed: int = 0
    """Tokens in the KV cache; of a request that decodes, when it began to."""
    since: int = -1
    """When it began to decode, on the engine's count of decode steps; -1 where it does not."""
    end: int = -1
    """After which decode step it has all its tokens; -1 where it does not decode."""
    blocks: int = 0
    """KV blocks that it holds; of one that decodes, when it began to."""
    keys: list[int] = field(default_factory=list)
    """Of the blocks it holds that others can find."""
    noted: int = 0
    """Full blocks that have been made findable, or need not be."""
    chain: list[int] = field(default_factory=list)
    """Keys of its first full blocks, worked out so far."""

    def __post_init__(self) -> None:
        self.prompt_tokens = self.prompt_tokens or len(self.prompt)
        self.most_tokens = self.most_tokens or self.output_tokens

    @property
    def total(self) -> int:
        """Tokens of its prompt and of its answer so far."""
        return self.prompt_tokens + self.made


@dataclass(slots=True)
class Step:
    """One iteration of the engine, or several alike: a batch, and how long it takes."""

    duration_fs: int = 0
    """Of all of them together."""
    count: int = 1
    """More than one only if nothing but decoding was done, and nobody finished before the last."""
    prefill_tokens: int = 0
    """Prompt tokens computed, those of recomputed requests included, cached ones not."""
    padding_tokens: int = 0
    """Computed beside them, because prompts were padded to one length."""
    decoding: int = 0
    """Requests that have one more token at the end of each iteration."""
    padding_sequences: int = 0
    """Computed beside them, though their answers are whole: seats of a static batch."""
    begun: tuple[Work, ...] = ()
    """Requests whose prompt is computed now: they have one more token, too, and decode from now."""
    made: tuple[Work, ...] = ()
    """Of a step asked for alone, who has one more token at its end, in the order of the batch."""
    finished: tuple[Work, ...] = ()
    """Those whose answer is whole at the end; they have left the engine."""
    preempted: tuple[Work, ...] = ()
    """Those who gave their blocks back before it."""
    prompts: tuple[Work, ...] = ()
    """Whose prompts were computed, or a part of them."""
    pairs: int = 0
    """How many tokens each of the prompt tokens computed attends to, itself included: the sum."""
    prompt_context: int = 0
    """Tokens in the cache of those whose prompts were computed, at its end."""
    context: int = 0
    """Tokens in the cache of those who decode, before it; of padded sequences, padding too."""
    lines: Lines = ()
    """How long each iteration takes, where nothing but decoding was done."""

    @property
    def duration_s(self) -> float:
        """Of all of them together, in seconds."""
        return self.duration_fs / FS

    @property
    def sequences(self) -> int:
        """Requests in the batch."""
        return self.decoding + len(self.prompts)

    def ends_fs(self) -> Iterator[int]:
        """When each iteration ended, in femtoseconds since the first began."""
        if self.count == 1:
            return iter((self.duration_fs,))
        growth = self.decoding + self.padding_sequences
        most = self.context + growth * self.count
        contexts = range(self.context + growth, most + 1, growth)
        return accumulate(at(self.lines, context) for context in contexts)
