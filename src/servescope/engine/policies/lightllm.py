"""LightLLM of 2023: KV by the token, and a router that looks at the future peak.

Prompts are computed in batches of their own, ten decode steps after the last at the soonest. A
request is admitted if the tokens in the cache would never exceed it even if every answer came to
its limit: of those who run, the peak is when one of them ends. So nothing is ever preempted. (The
router that stops requests when memory runs out is younger, of November 2023.)

Source: ModelTC/lightllm 718e6d6, lightllm/server/router/manager.py (`_step`),
lightllm/server/router/req_queue.py and lightllm/server/api_server.py (the limits).
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from servescope.engine.scheduler import FOREVER, Engine

if TYPE_CHECKING:
    from servescope.engine import Step, Work
    from servescope.engine.config import EngineConfig
    from servescope.engine.cost import Cost

DECODE_STEPS = 10
"""`max_wait_tokens`: between two batches of prompts there are so many at least."""

Future = tuple[int, int]
"""Of a request: minus how many tokens it may still get, and how many it has."""


class LightLlm(Engine):
    """The router's loop."""

    name = "lightllm-2023"
    max_num_seqs = 1000
    block_tokens = 1
    caches_prefixes = False
    since = 0
    """The count of decode steps when the last prompts were computed."""

    def __init__(self, config: EngineConfig, cost: Cost | None = None) -> None:
        super().__init__(config, cost)
        if config.max_num_batched_tokens is None:
            self.max_num_batched_tokens = max(self.kv.capacity // 6, self.max_model_len)

    def plan(self, batch: Step) -> bool:
        """Compute prompts if it is time and they fit, or else decode."""
        wait = self.since + DECODE_STEPS - self.decode_steps if self.batch else 0
        self.patience = wait if wait > 0 else FOREVER
        if self.queue and wait <= 0:
            self._admit_all(batch)
        if batch.prompts:
            self.since = self.decode_steps
            return False
        self.make_room(batch)
        return True

    @property
    def heeds_arrivals(self) -> bool:
        """Nobody is looked at before it is time."""
        return not self.queue and self.decode_steps - self.since >= DECODE_STEPS

    def _admit_all(self, batch: Step) -> None:
        """Admit from the head of the queue what never exceeds the cache."""
        promised = sum([work.prompt_tokens + work.most_tokens for work in self.batch])
        futures: list[Future] = []
        while self.queue and len(self.batch) < self.max_num_seqs:
            work = next(iter(self.queue))
            promised += work.prompt_tokens + work.most_tokens
            if self.batch and promised >= self.kv.capacity * self.block_tokens:
                futures = futures or sorted([self._future(other) for other in self.batch])
                mine = self._future(work)
                wait = self._too_soon(futures, mine)
                if wait:
                    self.patience = wait
                    return
                insort(futures, mine)
            tokens = batch.prefill_tokens + work.total
            if (batch.prompts and tokens > self.max_num_batched_tokens) or not self.admit(work):
                return
            self.compute(batch, work, work.total)

    def _future(self, work: Work) -> Future:
        if work.since < 0:
            return work.made + 1 - work.most_tokens, work.total + 1
        made = work.made + self.decode_steps - work.since
        return made + 1 - work.most_tokens, work.prompt_tokens + made

    def _too_soon(self, futures: list[Future], mine: Future) -> int:
        """How many decode steps at least until a request fits beside others; 0: it does now.

        The peak is when somebody ends: he and those who last longer then have what they have and
        as many tokens more as he may still get. When somebody ends before `mine`, each step that it
        waits leaves one token more; when `mine` ends, that helps only once another ends before it.
        """
        room, has, longer, wait = self.kv.capacity * self.block_tokens, 0, 0, 0
        mine_counted = False
        for future in [*futures, None]:
            if not mine_counted and (future is None or future[0] > mine[0]):
                mine_counted = True
                has += mine[1]
                longer += 1
                if has - mine[0] * longer >= room:
                    wait = mine[0] - futures[longer - 2][0] + 1 if longer > 1 else FOREVER
            if future is None:
                break
            has += future[1]
            longer += 1
            if mine_counted:
                wait = max(wait, has - future[0] * longer - room + 1)
        return wait
