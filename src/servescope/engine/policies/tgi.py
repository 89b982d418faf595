"""Text Generation Inference 1.0: a running batch is joined seldom, and what a request may come to
is reserved.

Prompts are computed in batches of their own, during which nobody decodes. A batch that is running
is joined only by 1.2 times as many requests as it has, or after 20 steps by any. A request counts
with its prompt and with all the tokens it asked for, each rounded up to whole blocks; prompts of at
most 4096 tokens are computed at once. Nothing is ever preempted.

Source: huggingface/text-generation-inference v1.0.2, router/src/infer.rs (`batching_task`),
router/src/queue.rs (`next_batch`) and router/src/main.rs (the limits).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import FOREVER, Engine

if TYPE_CHECKING:
    from servescope.engine import Step, Work

MAX_WAITING_STEPS = 20
"""`max_waiting_tokens`: after so many steps without a new request, few may join too."""


class Tgi(Engine):
    """The router's loop: a batch of prompts, then decode steps until it may be joined."""

    name = "tgi-1.0"
    max_num_seqs = FOREVER
    max_num_batched_tokens = 4096
    caches_prefixes = False
    reserves = True
    joined = False
    """Whether the last prompts joined a running batch: then it decodes before others may join."""
    since = 0
    """The count of decode steps when the last prompts were computed."""

    def plan(self, batch: Step) -> bool:
        """Join the running batch if it is time, or else decode."""
        steps = self.decode_steps - self.since + 1
        self.patience = MAX_WAITING_STEPS - steps if steps < MAX_WAITING_STEPS else FOREVER
        if self.joined and steps == 1 and self.batch:
            self.patience = 1
            return True
        least = len(self.batch) * 6 // 5 if steps < MAX_WAITING_STEPS else 0
        if len(self.queue) >= least and len(chosen := self._chosen()) >= max(least, 1):
            self.joined, self.since = bool(self.batch), self.decode_steps
            for work in chosen:
                self.admit(work)
                self.compute(batch, work, work.total)
            return False
        return True

    @property
    def heeds_arrivals(self) -> bool:
        """They count as long as few may not join."""
        return not self.queue or self.decode_steps - self.since + 1 < MAX_WAITING_STEPS

    def _chosen(self) -> list[Work]:
        """Those at the head of the queue that may be admitted together."""
        chosen: list[Work] = []
        size, left_blocks = self.block_tokens, self.kv.available
        left_tokens, seats = self.max_num_batched_tokens, self.max_num_seqs - len(self.batch)
        for work in self.queue:
            prompt_blocks = -(-work.prompt_tokens // size)
            left_tokens -= prompt_blocks * size
            left_blocks -= prompt_blocks - (-work.most_tokens // size)
            if (left_tokens < 0 or left_blocks < 0 or len(chosen) >= seats) and (
                chosen or self.batch
            ):
                break
            chosen.append(work)
        return chosen
