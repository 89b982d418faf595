"""vLLM today: chunked prefill.

Each step, every request that decodes makes a token; what the step's budget of tokens leaves goes to
prompts, in chunks where they are long, first come, first served. A request is admitted when there
are blocks for all its tokens so far (`scheduler_reserve_full_isl`).

Source: vllm-project/vllm v0.19, vllm/v1/core/sched/scheduler.py. The limits that it takes by
default depend on the GPU: as a server 2048 tokens and 256 requests, but 8192 and 1024 with 70 GiB
or more that are not an A100's (vllm/engine/arg_utils.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import Engine

if TYPE_CHECKING:
    from servescope.engine import Step, Work


class Vllm(Engine):
    """Mixed steps under one budget of tokens."""

    name = "vllm"

    cut: Work | None = None
    """The one whose prompt is computed in part: the last one admitted."""

    def plan(self, batch: Step) -> bool:
        """Decode, then go on with the prompt that was cut, then admit."""
        self.make_room(batch)
        left = self.max_num_batched_tokens - self.decoding
        if self.cut is not None and self.cut in self.batch:
            left = self._compute_some(batch, self.cut, left)
        if not batch.preempted:
            queue = self.queue
            while queue and left > 0 and len(self.batch) < self.max_num_seqs:
                work = next(iter(queue))
                if not self.admit(work):
                    break
                left = self._compute_some(batch, work, left)
        return True

    def _compute_some(self, batch: Step, work: Work, left: int) -> int:
        tokens = work.total - work.computed
        self.cut = work if tokens > left else None
        tokens = min(tokens, left)
        if tokens > 0:
            self.compute(batch, work, tokens)
        return left - tokens
