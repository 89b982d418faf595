"""TensorRT-LLM: in-flight batching that never evicts.

Each step, every request in the generation phase makes a token; whole prompts are computed beside
them as far as the budget of tokens goes, first come, first served. A request is admitted when there
are blocks for its prompt and for all the tokens it asked for (`GUARANTEED_NO_EVICT`), so that it is
never paused. Contexts are chunked only where they are longer than the budget: by default none is,
and such a prompt is refused, so whoever serves them has chunking on.

Source: NVIDIA/TensorRT-LLM documentation, 'Paged Attention, IFB, and Request Scheduling' and
'Tuning Max Batch Size and Max Num Tokens'; limits are those of `trtllm-build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import Engine

if TYPE_CHECKING:
    from servescope.engine import Step, Work


class TensorRtLlm(Engine):
    """Mixed steps of whole prompts, with all blocks reserved."""

    name = "tensorrt-llm"
    disaggregates = True
    max_num_seqs = 2048
    max_num_batched_tokens = 8192
    block_tokens = 32
    reserves = True

    cut: Work | None = None
    """The one whose prompt is computed in part."""

    def plan(self, batch: Step) -> bool:
        """Decode, go on with the prompt that was cut, and compute the prompts that fit beside."""
        most = self.max_num_batched_tokens
        left = most - self.decoding
        if self.cut is not None and self.cut in self.batch:
            left = self._compute_some(batch, self.cut, left)
        while self.queue and left > 0 and len(self.batch) < self.max_num_seqs:
            work = next(iter(self.queue))
            found = self.kv.find(work) * self.block_tokens
            tokens = work.total - max(found, min(work.brought_tokens, work.total - 1))
            if left < tokens <= most or not self.admit(work):
                break
            left = self._compute_some(batch, work, left)
        return True

    def _compute_some(self, batch: Step, work: Work, left: int) -> int:
        tokens = min(work.total - work.computed, left)
        if tokens > 0:
            self.compute(batch, work, tokens)
        self.cut = work if work.computed < work.total else None
        return left - tokens
