"""Continuous batching as today's vLLM does it, in its simplest right form.

Each step, every running request that decodes makes a token; what the step's budget of tokens leaves
goes to prompts, in chunks where they are long, first come, first served. A request is admitted when
there are blocks for all its tokens so far. When a decode finds no free block, the youngest running
request gives its blocks back, to be computed anew when its turn comes: at the head of the queue.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from servescope.engine import Step, Work
from servescope.engine.config import EngineConfig
from servescope.engine.cost import LinearCost
from servescope.engine.kv import BlockPool, Sequence


@dataclass(slots=True)
class Totals:
    """Counters since the engine was made."""

    submitted: int = 0
    """Requests taken in. Each finishes or is cancelled."""
    finished: int = 0
    cancelled: int = 0
    turned_away: int = 0
    """Requests that found the queue full."""
    prompt_tokens: int = 0
    """Of requests whose first token was made, cached ones included."""
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_query_tokens: int = 0
    """Prompt tokens that were looked for in the prefix cache."""
    prefix_hit_tokens: int = 0
    steps: int = 0


class Engine:
    """One engine. Whoever calls `step` lets its duration go by before the next call."""

    def __init__(self, config: EngineConfig) -> None:
        self.config, self.totals = config, Totals()
        self._cost = LinearCost.of(config)
        self._kv = BlockPool(
            config.kv_blocks, config.block_tokens, prefix_cache=config.prefix_cache
        )
        self._waiting: OrderedDict[Work, Sequence] = OrderedDict()
        self._running: dict[Work, Sequence] = {}
        """In the order of admission. At most the last one's prompt is computed in part."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests admitted."""
        return len(self._running)

    @property
    def kv_used_ratio(self) -> float:
        """The share of KV blocks that requests hold, 0 to 1."""
        return self._kv.used / self._kv.capacity

    def submit(self, work: Work) -> bool:
        """Queue a request; False where the queue is full.

        Raises ValueError with a sentence for the client where it could never be served.
        """
        size, config = len(work.prompt) + work.output_tokens, self.config
        if not work.prompt or work.output_tokens < 1:
            raise ValueError("The prompt must have at least one token, and so must the answer.")
        if size > config.longest:
            raise ValueError(
                f"This model's maximum context length is {config.longest} tokens. However, you "
                f"requested {work.output_tokens} output tokens and your prompt contains "
                f"{len(work.prompt)} input tokens, for a total of {size} tokens."
            )
        if config.max_waiting is not None and len(self._waiting) >= config.max_waiting:
            self.totals.turned_away += 1
            return False
        self._waiting[work] = Sequence(work, work.prompt + work.answer, len(work.prompt))
        self.totals.submitted += 1
        return True

    def cancel(self, work: Work) -> None:
        """Forget a request, wherever it is; one that the engine does not have is no fault."""
        sequence = self._running.pop(work, None) or self._waiting.pop(work, None)
        if sequence is not None:
            self._kv.release(sequence)
            self.totals.cancelled += 1

    def flush_cache(self) -> None:
        """Empty the prefix cache of all that no running request holds."""
        self._kv.flush()

    def step(self) -> Step | None:
        """Schedule one batch and say what it makes, and how long that takes; None: nothing to do.

        The engine is then as at the end of the step, so that what arrives in between waits.
        """
        batch = Step(0.0, 0, 0, 0)
        scheduled = self._go_on(batch)
        if not batch.preempted:
            self._admit(batch, scheduled)
        if not scheduled:
            return None
        batch.sequences = len(scheduled)
        batch.context_tokens = sum([sequence.computed for sequence in scheduled])
        batch.duration_s = self._cost.duration_s(
            batch.prefill_tokens, batch.sequences, batch.context_tokens
        )
        self._make(batch, scheduled)
        self.totals.steps += 1
        return batch

    def _go_on(self, batch: Step) -> list[Sequence]:
        """Schedule what runs, oldest first."""
        scheduled: list[Sequence] = []
        for sequence in list(self._running.values()):
            if not sequence.room:  # preempted a moment ago, for an older one
                continue
            if not sequence.decoding:
                # It is the last one, so what the decodes leave of the budget is all its own.
                if self._prefill(sequence, batch, len(scheduled)):
                    scheduled.append(sequence)
            elif sequence.computed < sequence.room or self._make_room(sequence, batch):
                sequence.computed += 1
                scheduled.append(sequence)
        return scheduled

    def _admit(self, batch: Step, scheduled: list[Sequence]) -> None:
        """Admit what waits, first come, first served."""
        decodes = sum([sequence.decoding for sequence in scheduled])
        most = self.config.max_sequences
        while self._waiting and len(self._running) < most:
            work, sequence = next(iter(self._waiting.items()))
            if decodes + batch.prefill_tokens >= self.config.max_batched_tokens:
                return
            if not self._kv.admit(sequence):
                return
            self._running[work] = self._waiting.pop(work)
            if not work.scheduled:
                work.scheduled, work.cached_tokens = True, sequence.computed
                if self.config.prefix_cache:
                    self.totals.prefix_query_tokens += len(work.prompt)
                    self.totals.prefix_hit_tokens += sequence.computed
            self._prefill(sequence, batch, decodes)
            scheduled.append(sequence)

    def _prefill(self, sequence: Sequence, batch: Step, decodes: int) -> int:
        """Compute as much of a prompt as the budget of the step allows; returns how much."""
        left = self.config.max_batched_tokens - decodes - batch.prefill_tokens
        tokens = min(left, sequence.total - sequence.computed)
        sequence.computed += tokens
        batch.prefill_tokens += tokens
        # Findable at once: in a step, each layer writes the KV of all tokens before it is read.
        self._kv.note(sequence)
        return tokens

    def _make_room(self, sequence: Sequence, batch: Step) -> bool:
        """Get one more block, from the youngest if need be; False where that is itself."""
        while not self._kv.extend(sequence):
            work, youngest = self._running.popitem()
            self._kv.release(youngest)
            youngest.decoding = False
            self._waiting[work] = youngest
            self._waiting.move_to_end(work, last=False)
            work.preemptions += 1
            self.totals.preemptions += 1
            batch.preempted += 1
            if youngest is sequence:
                return False
        return True

    def _make(self, batch: Step, scheduled: list[Sequence]) -> None:
        """One more token for each sequence whose tokens so far are all computed."""
        made, finished = batch.made, batch.finished
        for sequence in scheduled:
            if sequence.computed < sequence.total:
                continue
            work = sequence.work
            sequence.total += 1
            sequence.decoding = True
            work.made += 1
            made.append(work)
            if work.made == 1:
                self.totals.prompt_tokens += len(work.prompt)
            if work.made == work.output_tokens:
                finished.append(work)
        for work in finished:
            self._kv.release(self._running.pop(work))
        self.totals.generation_tokens += len(made)
        self.totals.finished += len(finished)
