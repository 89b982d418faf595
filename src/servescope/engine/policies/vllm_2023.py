"""vLLM of 2023: prompts first, in steps of their own.

While requests wait that fit, a step computes whole prompts and nobody decodes; otherwise everybody
does. A request is admitted when there are blocks for all its tokens so far and a hundredth of all
is left over. Where decodes lack blocks, the youngest give all theirs back and are recomputed
(requests of one sequence are never swapped out). A prompt beyond a step's tokens is refused: v0.1.4
ends it without a token. It does so too where a preempted request has become longer than that; here
such a one is computed alone.

Sources: vllm-project/vllm v0.1.4 and v0.2.6, vllm/core/scheduler.py and block_manager.py (watermark
0.01), vllm/engine/arg_utils.py (the limits); padding came with pull request 1381, in v0.2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import Engine

if TYPE_CHECKING:
    from servescope.engine import Step, Work
    from servescope.engine.config import EngineConfig
    from servescope.engine.cost import Cost

WATERMARK = 0.01
"""This share of the blocks is left free when a request is admitted."""
MAX_PADDING_TOKENS = 256
"""A batch of prompts is padded by so many tokens at most."""


class Vllm01(Engine):
    """v0.1.4: prompts stand one after the other in a batch of at most 2560 tokens, whatever the
    model's context."""

    name = "vllm-0.1"
    max_num_batched_tokens = 2560
    caches_prefixes = False
    pads = False
    """Whether prompts are padded to the longest of their batch."""

    def check(self, work: Work) -> None:
        """As of any engine, and no prompt may have more tokens than a step."""
        super().check(work)
        prompt, limit = work.prompt_tokens, self.max_num_batched_tokens
        if prompt > limit:
            raise ValueError(f"Input prompt ({prompt} tokens) is too long: the limit is {limit}")

    def plan(self, batch: Step) -> bool:
        """Compute prompts if any may be admitted, or else decode."""
        longest = 0
        while self.queue and len(self.batch) < self.max_num_seqs:
            work = next(iter(self.queue))
            tokens = batch.prefill_tokens + work.total
            padded = max(longest, work.total) * (len(batch.prompts) + 1) if self.pads else tokens
            over = padded > self.max_num_batched_tokens or padded - tokens > MAX_PADDING_TOKENS
            if over and batch.prompts:  # what was preempted beyond the budget goes alone
                break
            spare_blocks = int(WATERMARK * self.kv.capacity) if self.batch else 0
            if not self.admit(work, spare_blocks):
                break
            self.compute(batch, work, work.total)
            longest = max(longest, work.total)
        if batch.prompts:
            if self.pads:
                batch.padding_tokens = longest * len(batch.prompts) - batch.prefill_tokens
            return False
        self.make_room(batch)
        return True


class Vllm02(Vllm01):
    """v0.2.2 to v0.2.6: prompts are padded to the longest of their batch.

    The padded tokens are at most as many as the longest request may have, or 2048.
    """

    name = "vllm-0.2"
    pads = True

    def __init__(self, config: EngineConfig, cost: Cost | None = None) -> None:
        super().__init__(config, cost)
        if config.max_num_batched_tokens is None:
            self.max_num_batched_tokens = max(self.max_model_len, 2048)
