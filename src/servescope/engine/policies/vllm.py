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
    from servescope.catalog import Gpu
    from servescope.engine import Step, Work

LARGE_BYTES = 70 * 2**30


class Vllm(Engine):
    """Mixed steps under one budget of tokens."""

    name = "vllm"
    disaggregates = True

    cut: Work | None = None
    """The one whose prompt is computed in part: the last one admitted."""

    @classmethod
    def limits_on(cls, gpu: Gpu) -> dict[str, int]:
        """Those of the API server, `EngineArgs.get_batch_defaults`."""
        if gpu.memory_bytes >= LARGE_BYTES and not gpu.name.startswith("a100"):
            return {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}
        return {"max_num_seqs": 256, "max_num_batched_tokens": 2048}

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
