"""TensorRT-LLM: in-flight batching that never evicts.

Each step, every request in the generation phase makes a token; whole prompts are computed beside
them as far as the budget of tokens goes, first come, first served. A request is admitted when there
are blocks for its prompt and for all the tokens it asked for (`GUARANTEED_NO_EVICT`), so that it is
never paused. Contexts are not chunked, as is the default.

Source: NVIDIA/TensorRT-LLM documentation, 'Paged Attention, IFB, and Request Scheduling' and
'Tuning Max Batch Size and Max Num Tokens'; limits are those of `trtllm-build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import Engine

if TYPE_CHECKING:
    from servescope.engine import Step


class TensorRtLlm(Engine):
    """Mixed steps of whole prompts, with all blocks reserved."""

    name = "tensorrt-llm"
    disaggregates = True
    max_num_seqs = 2048
    max_num_batched_tokens = 8192
    block_tokens = 32
    reserves = True

    def plan(self, batch: Step) -> bool:
        """Decode, and compute the prompts that fit beside."""
        left = self.max_num_batched_tokens - self.decoding
        while self.queue and len(self.batch) < self.max_num_seqs:
            work = next(iter(self.queue))
            found = self.kv.find(work) * self.block_tokens
            tokens = work.total - max(found, min(work.brought_tokens, work.total - 1))
            alone = tokens > self.max_num_batched_tokens and not batch.prompts  # or never
            if (tokens > left and not alone) or not self.admit(work):
                break
            self.compute(batch, work, tokens)
            left -= tokens
        return True
