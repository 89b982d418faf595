"""vLLM today: chunked prefill.

Each step, every request that decodes makes a token; what the step's budget of tokens leaves goes to
prompts, in chunks where they are long, first come, first served. A request is admitted when there
are blocks for all its tokens so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import Engine

if TYPE_CHECKING:
    from servescope.engine import Step, Work


class Vllm(Engine):
    """Mixed steps under one budget of tokens."""

    cut: Work | None = None
    """The one whose prompt is computed in part: the last one admitted."""

    def plan(self, batch: Step) -> bool:
        """Decode, then go on with the prompt that was cut, then admit."""
        self.make_room(batch)
        left = self.config.max_batched_tokens - self.decoding
        if self.cut is not None and self.cut in self.batch:
            left = self._compute_some(batch, self.cut, left)
        if not batch.preempted:
            queue = self.queue
            while queue and left > 0 and len(self.batch) < self.config.max_sequences:
                work = next(iter(queue))
                if not self.admit(work):
                    break
                left = self._compute_some(batch, work, left)
        return True

    def _compute_some(self, batch: Step, work: Work, left: int) -> int:
        tokens = min(left, work.total - work.computed)
        if tokens > 0:
            self.compute(batch, work, tokens)
        self.cut = work if work.computed < work.total else None
        return left - tokens
