"""SGLang: prompts first, the longest cached prefix first, and a guess at how long answers get.

While requests wait that fit, a step computes prompts, cut into chunks of 8192 tokens, and nobody
decodes. The queue is ordered by the prefix that the cache holds (RadixAttention), unless more than
128 wait. A request is admitted if there is room for it and for a share of what those who run may
still get; the share shrinks with every decode step. Where decodes lack memory, those with the
fewest tokens are retracted, and the share becomes what has been seen so far.

Source: sgl-project/sglang, python/sglang/srt/managers/schedule_policy.py (`PrefillAdder`, LPM),
scheduler.py and schedule_batch.py (`retract_decode`), environ.py (the constants), as of v0.4 with
`--schedule-policy lpm`; there, two that share a prefix which is not yet cached are not computed in
one step, here they are, and the prefix once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.engine.scheduler import FOREVER, Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servescope.catalog import Gpu
    from servescope.engine import Step, Work

INIT_SHARE = 0.7
"""`new_token_ratio` at first and whenever the engine is idle."""
LEAST_SHARE = 0.098
SHARE_DECAY = (INIT_SHARE - LEAST_SHARE) / 600
"""How much smaller it gets in a decode step."""
MOST_GUESSED = 4096
"""No answer is thought to get more tokens than this."""
LPM_LONGEST_QUEUE = 128
SMALL_BYTES = 25_000 * 2**20
"""On smaller GPUs prompts are cut to 2048 tokens (server_args.py)."""
RETRACT_STEPS = 20
"""Retraction leaves room for so many decode steps."""


class SgLang(Engine):
    """Prefill before decode, with retraction."""

    name = "sglang"
    disaggregates = True
    max_num_seqs = 2048
    block_tokens = 1
    share, since = INIT_SHARE, 0
    """The share, and the count of decode steps when it was set."""
    full = FOREVER
    """With so many in the batch a request found no room: none is tried until one of them leaves."""
    cut: Work | None = None
    """The one whose prompt is computed in part."""

    @classmethod
    def limits_on(cls, gpu: Gpu) -> dict[str, int]:
        """How long a chunk is."""
        return {"max_num_batched_tokens": 2048 if gpu.memory_bytes < SMALL_BYTES else 8192}

    def plan(self, batch: Step) -> bool:
        """Compute prompts if any may be admitted, or else decode."""
        if not self.batch:
            self.full = FOREVER
            if not self.queue:
                self.share, self.since = INIT_SHARE, self.decode_steps
        left = self.max_num_batched_tokens
        if self.cut is not None and self.cut in self.batch:
            left = self._compute_some(batch, self.cut, left)
        if self.queue and left > 0 and len(self.batch) < self.full:
            self._admit_all(batch, left)
        if batch.prompts:
            return False
        self.make_room(batch)
        return True

    def _admit_all(self, batch: Step, left: int) -> None:
        self.full = FOREVER
        size, share = self.block_tokens, self._share_now()
        now = self.decode_steps  # as of `_to_come`, in one go: this is asked at every step
        to_come = [
            work.most_tokens - work.made - (now - work.since if work.since >= 0 else 0)
            for work in self.batch
        ]
        promised = sum([min(tokens, MOST_GUESSED) for tokens in to_come])
        room = self.kv.available * size - share * promised
        for work in self._in_order():
            if left <= 0:
                return
            wanted = work.total - self.kv.find(work) * size + self._to_come(work)
            fits = wanted < room and len(self.batch) < self.max_num_seqs
            if not ((fits or not self.batch) and self.admit(work)):
                self.full = len(self.batch)
                return
            room -= wanted
            left = self._compute_some(batch, work, left)

    def _in_order(self) -> Iterator[Work]:
        """The queue, as long as each that it yields is admitted."""
        if self.kv.prefix_cache and len(self.queue) <= LPM_LONGEST_QUEUE:
            yield from sorted(self.queue, key=self.kv.find, reverse=True)
        while self.queue:
            yield next(iter(self.queue))

    def _compute_some(self, batch: Step, work: Work, left: int) -> int:
        tokens = min(left, work.total - work.computed)
        self.compute(batch, work, tokens)
        self.cut = work if work.computed < work.total else None
        return left - tokens

    def _made(self, work: Work) -> int:
        return work.made + (self.decode_steps - work.since if work.since >= 0 else 0)

    def _to_come(self, work: Work) -> int:
        steps = self.decode_steps - work.since if work.since >= 0 else 0
        return min(work.most_tokens - work.made - steps, MOST_GUESSED)

    def _share_now(self) -> float:
        return max(self.share - SHARE_DECAY * (self.decode_steps - self.since), LEAST_SHARE)

    def evict(self, batch: Step) -> None:
        """Retract those with the fewest tokens made, of them the longest prompts first."""
        youngest = sorted(self.batch, key=lambda work: (self._made(work), -work.prompt_tokens))
        for work in youngest[:-1]:
            spare_tokens = self.kv.available * self.block_tokens
            if spare_tokens >= RETRACT_STEPS * self.decoding and not self.lacks_blocks:
                break
            self.preempt(batch, work, last=True)
        left = list(self.batch)
        seen = sum(map(self._made, left)) + RETRACT_STEPS * len(left)
        self.share = min(1.0, seen / (sum([work.most_tokens for work in left]) + 1))
        self.since, self.full = self.decode_steps, FOREVER
