"""Static batching, for reference: what serving was before requests could join a running batch.

When the batch before is done, one is filled with what waits. Its prompts are padded to the longest;
then it decodes until the longest answer is done. Those who are done before get their last token
when it is made, but their seats are computed on, and nobody takes them. There must be room for the
batch as a rectangle: the longest prompt and the most tokens asked for, times its requests.

Source: Yu et al., 'Orca: A Distributed Serving System for Transformer-Based Generative Models',
OSDI 2022, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import FOREVER, Engine

if TYPE_CHECKING:
    from servescope.engine import Step


class Static(Engine):
    """One batch after the other."""

    name = "static"
    max_num_seqs = 64
    max_num_batched_tokens = FOREVER
    caches_prefixes = False
    reserves = True
    seats = 0
    """Of the batch that is running."""
    prompt_tokens = 0
    """Of each seat, padding included."""
    since = 0
    """The count of decode steps when it began."""

    def plan(self, batch: Step) -> bool:
        """Go on with the batch, or fill the next."""
        if not self.batch:
            self._fill(batch)
            return False
        tokens = self.prompt_tokens + self.decode_steps - self.since
        self.padding_sequences = self.seats - self.decoding
        self.padding_context = self.seats * tokens - self._context
        return True

    @property
    def heeds_arrivals(self) -> bool:
        """Nobody joins."""
        return False

    def _fill(self, batch: Step) -> None:
        prompt = answer = 0
        while self.queue and len(self.batch) < self.max_num_seqs:
            work = next(iter(self.queue))
            prompt = max(prompt, work.prompt_tokens)
            answer = max(answer, work.most_tokens)
            seats = len(self.batch) + 1
            padded = prompt * seats
            too_long = padded > self.max_num_batched_tokens
            blocks = seats * -(-(prompt + answer) // self.block_tokens)
            if self.batch and (too_long or blocks > self.kv.capacity):
                break
            self.admit(work)
            self.compute(batch, work, work.total)
            self.prompt_tokens = prompt
        self.seats, self.since = len(self.batch), self.decode_steps
        batch.padding_tokens = self.prompt_tokens * self.seats - batch.prefill_tokens
