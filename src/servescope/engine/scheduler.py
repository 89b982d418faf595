"""What all continuous-batching engines have in common: a queue, a batch, a KV cache, and decode
steps of which many alike are taken at once.

Those who decode advance together, one token each a step. So the engine only counts decode steps:
a request that began at step s with n tokens in the cache has n + (now - s) now, its end is known
when it begins, and of how many the blocks are full at a step is known by their remainders. What a
policy (`policies/`) decides is whose prompts are computed, and whether decoding goes on meanwhile.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servescope.engine import Step, Work
from servescope.engine.cost import LinearCost
from servescope.engine.kv import BlockPool
from servescope.engine.lines import run

if TYPE_CHECKING:
    from servescope.catalog import Gpu
    from servescope.engine.config import EngineConfig
    from servescope.engine.cost import Cost

FOREVER = 1 << 80
"""More femtoseconds than any simulation has."""


KV_TOKENS = 262144
"""Where neither settings nor a GPU's memory say how many there are."""


@dataclass(slots=True)
class Totals:
    """Counters since the engine was made."""

    submitted: int = 0
    """Requests taken in. Each finishes or is cancelled."""
    finished: int = 0
    cancelled: int = 0
    turned_away: int = 0
    """Requests that found the queue full."""
    prompt_tokens: int = 0
    """Of requests whose first token was made, cached ones included."""
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_query_tokens: int = 0
    """Prompt tokens that were looked for in the prefix cache."""
    prefix_hit_tokens: int = 0
    steps: int = 0


class Engine:
    """One engine. Whoever calls `step` lets its duration go by before the next call.

    Subclasses say in `plan` what a step does. The limits that a config leaves open are the class's.
    """

    name = ""
    """What the policy is called; without one, it is none."""
    max_num_seqs = 256
    """Requests in the batch at most."""
    max_num_batched_tokens = 8192
    """Tokens that a step computes at most."""
    max_model_len = 32768
    """Tokens of the longest prompt and answer."""
    block_tokens = 16
    caches_prefixes = True
    """Whether it has a prefix cache at all."""
    reserves = False
    """Whether a request gets the blocks of its whole answer when it is admitted."""
    disaggregates = False
    """Whether it can decode what another engine computed the prompt of."""
    patience = FOREVER
    """After so many decode steps a policy wants to look again, though nothing has happened."""

    def __init__(self, config: EngineConfig, cost: Cost | None = None) -> None:
        self.config, self.totals = config, Totals()
        self.cost: Cost = cost or LinearCost.of(config)
        self.max_num_seqs = config.max_num_seqs or self.max_num_seqs
        self.max_num_batched_tokens = config.max_num_batched_tokens or self.max_num_batched_tokens
        self.block_tokens = config.block_tokens or self.block_tokens
        self.max_model_len = config.max_model_len or self.max_model_len
        cached = config.prefix_cache is not False and self.caches_prefixes
        blocks = (config.kv_tokens or KV_TOKENS) // self.block_tokens
        self.kv = BlockPool(blocks, self.block_tokens, prefix_cache=cached)
        self.longest = min(self.max_model_len, blocks * self.block_tokens)
        """Tokens of the longest prompt and answer that can ever be served."""
        self.queue: OrderedDict[Work, None] = OrderedDict()
        self.batch: dict[Work, None] = {}
        """Those admitted, in the order of admission."""
        self.decoding = 0
        """How many of them decode."""
        self._context = 0
        """Tokens in the cache of those who decode."""
        self.decode_steps = 0
        """Those so far."""
        self._ends: list[tuple[int, int, Work]] = []
        """Heap of (decode step, number, request) when each who decodes has all its tokens."""
        self._number = 0
        self._full = [0] * self.block_tokens
        """Of those who decode, how many have full blocks at decode steps of each remainder."""
        self.padding_sequences = self.padding_context = 0
        """What decode steps compute beside those who decode, and the tokens that they attend to."""

    @classmethod
    def limits_on(cls, _gpu: Gpu) -> dict[str, int]:
        """Limits that it takes on such a GPU where settings leave them open, if they depend on it:
        settings of `EngineConfig`."""
        return {}

    # --- what a caller sees -----------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self.queue)

    @property
    def running(self) -> int:
        """Requests admitted."""
        return len(self.batch)

    @property
    def kv_used_ratio(self) -> float:
        """The share of KV blocks that requests hold, 0 to 1."""
        return self.kv.used / self.kv.capacity

    def check(self, work: Work) -> None:
        """Raise ValueError with a sentence for the client where it could never be served."""
        prompt, answer = work.prompt_tokens, work.most_tokens
        if prompt < 1 or work.output_tokens < 1:
            raise ValueError("The prompt must have at least one token, and so must the answer.")
        if prompt + answer > self.longest:
            raise ValueError(
                f"This model's maximum context length is {self.longest} tokens. However, you "
                f"requested {answer} output tokens and your prompt contains "
                f"{prompt} input tokens, for a total of {prompt + answer} tokens."
            )

    def submit(self, work: Work) -> bool:
        """Queue a request; False where the queue is full. Raises ValueError as `check` does."""
        self.check(work)
        most = self.config.max_waiting
        if most is not None and len(self.queue) >= most:
            self.totals.turned_away += 1
            return False
        self.queue[work] = None
        self.totals.submitted += 1
        return True

    def cancel(self, work: Work) -> None:
        """Forget a request, wherever it is; one that the engine does not have is no fault."""
        if work in self.batch:
            self._leave(work)
        elif work in self.queue:
            del self.queue[work]
        else:
            return
        self.totals.cancelled += 1

    def flush_cache(self) -> None:
        """Empty the prefix cache of all that no running request holds."""
        self.kv.flush()

    def step(self, until_fs: int | None = None, arrival_fs: int = FOREVER) -> Step | None:
        """Schedule one batch and say what it makes, and how long that takes; None: nothing to do.

        The engine is then as at the end of the step, so that what arrives in between waits. With
        `until_fs`, steps that only decode are taken together as long as all but the last end
        before it, and before the next request comes, `arrival_fs` from now, if that can matter;
        without, it is one step, and `made` says who got a token in the order of the batch.
        """
        batch = Step()
        decodes = self.plan(batch) and self.decoding > 0
        if not decodes and not batch.prompts:
            return None
        if until_fs is None and decodes:
            batch.made = tuple([work for work in self.batch if work.since >= 0])
        if batch.prompts:
            self._compute(batch, decodes=decodes)
        else:
            if until_fs is None or batch.preempted:
                until_fs = 1
            elif arrival_fs < until_fs and self.heeds_arrivals:
                until_fs = arrival_fs
            self._decode(batch, until_fs)
        if until_fs is None:
            batch.made += batch.begun
        self.totals.steps += batch.count
        return batch

    # --- what policies use ------------------------------------------------------------------------

    def plan(self, batch: Step) -> bool:
        """Admit requests, and have what is wanted of their prompts computed; returns whether those
        who decode get a token too: then `make_room` was called for them."""
        raise NotImplementedError

    @property
    def heeds_arrivals(self) -> bool:
        """Whether, after `plan`, one more request in the queue could change what is done before a
        request ends. First come, first served, it does not where others wait."""
        return not self.queue

    def make_room(self, batch: Step) -> None:
        """Take the blocks for a decode step, from others where they lack."""
        if self.reserves:
            return
        wanted = self._full[self.decode_steps % self.block_tokens]
        if wanted:
            if wanted > self.kv.available:
                self.evict(batch)
                wanted = self._full[self.decode_steps % self.block_tokens]
            self.kv.take(wanted)

    @property
    def lacks_blocks(self) -> bool:
        """Whether those who decode want more blocks for the next step than there are."""
        return self._full[self.decode_steps % self.block_tokens] > self.kv.available

    def evict(self, batch: Step) -> None:
        """Preempt until there are blocks for a decode step: the youngest first."""
        while self.lacks_blocks:
            self.preempt(batch, next(reversed(self.batch)))

    def preempt(self, batch: Step, work: Work, *, last: bool = False) -> None:
        """Have a request give its blocks back, to be computed anew when its turn comes: from the
        head of the queue, or from its end."""
        self._leave(work)
        self.queue[work] = None
        self.queue.move_to_end(work, last=last)
        work.preemptions += 1
        self.totals.preemptions += 1
        batch.preempted += (work,)

    def admit(self, work: Work, spare_blocks: int = 0) -> bool:
        """Give a request from the queue its blocks and a place in the batch; False where it cannot
        have them and leave so many to spare."""
        tokens = work.prompt_tokens + work.most_tokens if self.reserves else work.total
        if not self.kv.admit(work, tokens, spare_blocks):
            return False
        del self.queue[work]
        self.batch[work] = None
        if work.brought_tokens:
            work.scheduled, work.brought_tokens = True, 0
        elif not work.scheduled:
            work.scheduled, work.cached_tokens = True, work.computed
            if self.kv.prefix_cache:
                self.totals.prefix_query_tokens += work.prompt_tokens
                self.totals.prefix_hit_tokens += work.computed
        return True

    def compute(self, batch: Step, work: Work, tokens: int) -> None:
        """Have so many more tokens of a prompt computed in this step."""
        batch.prompts += (work,)
        batch.pairs += tokens * work.computed + tokens * (tokens + 1) // 2
        work.computed += tokens
        batch.prefill_tokens += tokens
        batch.prompt_context += work.computed
        # Findable at once: in a step, each layer writes the KV of all tokens before it is read.
        self.kv.note(work)

    # --- time goes by -----------------------------------------------------------------------------

    def _compute(self, batch: Step, *, decodes: bool) -> None:
        """One step with prompts in it."""
        if decodes:
            batch.decoding, batch.context = self.decoding, self._context
        batch.duration_fs = self.cost.step(batch)
        if decodes:
            self._advance(batch, 1)
        for work in batch.prompts:
            if work.computed == work.prompt_tokens + work.made:
                self._begin(batch, work)

    def _decode(self, batch: Step, until_fs: int) -> None:
        """As many steps as are alike: until one finishes, blocks run out or `until_fs` comes."""
        ends, decoding = self._ends, self.decoding
        while ends[0][0] != ends[0][2].end:
            heapq.heappop(ends)  # it was preempted or cancelled
        most = 1
        if until_fs > 1:
            most = min(ends[0][0] - self.decode_steps, self.patience)
            if most > 1 and not self.reserves:
                most = self._with_room(most)
        growth = decoding + self.padding_sequences
        batch.decoding, batch.padding_sequences = decoding, self.padding_sequences
        batch.context = context = self._context + self.padding_context
        batch.lines = lines = self.cost.decode(growth)
        count, batch.duration_fs = run(lines, context, growth, most, until_fs)
        if count > 1 and not self.reserves:
            self.kv.take(self._filling(count))
        batch.count = count
        self._advance(batch, count)

    def _filling(self, steps: int) -> int:
        """Blocks that the steps after the next one take, up to so many in all."""
        full, size = self._full, self.block_tokens
        rounds, rest = divmod(steps - 1, size)
        first = (self.decode_steps + 1) % size
        last = first + rest
        if last <= size:
            return rounds * self.decoding + sum(full[first:last])
        return (rounds + 1) * self.decoding - sum(full[last - size : first])

    def _with_room(self, most: int) -> int:
        """How many steps have blocks enough, of at most so many; the next one has."""
        available, size = self.kv.available, self.block_tokens
        rounds = available // self.decoding
        if most <= rounds * size:
            return most
        steps, left = 1 + rounds * size, available - rounds * self.decoding
        while steps < most and self._full[(self.decode_steps + steps) % size] <= left:
            left -= self._full[(self.decode_steps + steps) % size]
            steps += 1
        return steps

    def _advance(self, batch: Step, steps: int) -> None:
        """Those who decode get so many tokens each; who has all of them leaves."""
        made, ends = steps * self.decoding, self._ends
        self.decode_steps += steps
        self._context += made
        self.totals.generation_tokens += made
        while ends and ends[0][0] <= self.decode_steps:
            end, _, work = heapq.heappop(ends)
            if work.end == end:
                self._leave(work)
                batch.finished += (work,)
                self.totals.finished += 1

    def _begin(self, batch: Step, work: Work) -> None:
        """Its prompt is computed: it gets a token, and decodes from now on."""
        if not work.made:
            self.totals.prompt_tokens += work.prompt_tokens
        work.made += 1
        batch.begun += (work,)
        self.totals.generation_tokens += 1
        work.since = self.decode_steps
        self.decoding += 1
        self._context += work.computed
        self._full[(self.decode_steps - work.computed) % self.block_tokens] += 1
        if work.made == work.output_tokens:
            self._leave(work)
            batch.finished += (work,)
            self.totals.finished += 1
        else:
            self._number += 1
            work.end = self.decode_steps + work.output_tokens - work.made
            heapq.heappush(self._ends, (work.end, self._number, work))

    def _leave(self, work: Work) -> None:
        """It has no place in the batch any more, and no blocks."""
        del self.batch[work]
        if work.since >= 0:
            self._full[(work.since - work.computed) % self.block_tokens] -= 1
            steps = self.decode_steps - work.since
            work.computed += steps
            work.made += steps
            self._context -= work.computed
            self.decoding -= 1
            work.since = work.end = -1
            if not self.reserves:
                work.blocks = -(-work.computed // self.block_tokens)
        self.kv.release(work)
