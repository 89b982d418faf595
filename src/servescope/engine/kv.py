"""The paged KV cache: who holds how many blocks, and which full blocks can be found again.

A block has no number here, for nobody reads its content. A full block whose tokens are known has a
key, the hash of its tokens and of the key before it: equal keys mean equal tokens from the start.
The blocks of a request of which only lengths are known are findable by itself alone, all under one
key. Blocks that nobody holds stay findable until room is needed; the ones unused for longest go
first, of one request the last first: the end of a text is of less use than its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servescope.engine import Work


class BlockPool:
    """The blocks of one engine. Each operation costs O(keys that change hands)."""

    def __init__(self, blocks: int, block_tokens: int, *, prefix_cache: bool) -> None:
        self.capacity, self.block_tokens, self.prefix_cache = blocks, block_tokens, prefix_cache
        self.available = blocks
        """Blocks that can be had at once: the empty ones, and findable ones that nobody holds."""
        self._holders: dict[int, int] = {}
        """How many requests hold each findable block; none of them 0."""
        self._idle: OrderedDict[int | Work, int] = OrderedDict()
        """Findable blocks that nobody holds, by key; the ones unused for longest first."""
        self._idle_blocks = 0

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return self.capacity - self.available

    def find(self, work: Work) -> int:
        """How many of the first blocks of a request are there, the one of its last token not
        counted: computing that makes the next one."""
        if not self.prefix_cache:
            return 0
        if not work.prompt:
            return min(self._idle.get(work, 0), (work.total - 1) // self.block_tokens)
        found, holders, idle = 0, self._holders, self._idle
        for k in range(min(work.total - 1, self._known(work)) // self.block_tokens):
            key = self._key(work, k)
            if key not in holders and key not in idle:
                break
            found += 1
        return found

    def admit(self, work: Work, tokens: int, spare: int = 0) -> bool:
        """Give a request the blocks for so many tokens; False where they would leave fewer than
        `spare` blocks. What of it is found in the cache, or comes with it, counts as computed.
        """
        found = self.find(work)
        wanted = -(-tokens // self.block_tokens)
        if work.prompt:
            keys = work.chain[:found]
            idle = sum([key in self._idle for key in keys]) if found else 0
        else:
            keys, idle = [], found
        taken = wanted - found
        if taken + idle + spare > self.available:
            return False
        if found:
            if work.prompt:
                for key in keys:
                    self._holders[key] = self._holders.get(key, 0) + 1
                    self._idle.pop(key, None)
                self._idle_blocks -= idle
            else:
                self._idle_blocks -= self._idle.pop(work)
        self.available -= idle
        self.take(taken)
        work.keys, work.noted, work.blocks = keys, found, wanted
        # Of KV that was brought, the last token is computed again: that makes the next one.
        work.computed = max(found * self.block_tokens, min(work.brought_tokens, work.total - 1))
        return True

    def take(self, blocks: int) -> None:
        """Blocks change hands; there must be so many available."""
        self.available -= blocks
        while self._idle_blocks > self.available:
            key, there = self._idle.popitem(last=False)
            over = self._idle_blocks - self.available
            if there > over:
                self._idle[key] = there - over
                self._idle.move_to_end(key, last=False)
                self._idle_blocks -= over
            else:
                self._idle_blocks -= there

    def note(self, work: Work) -> None:
        """Make the full blocks of a request findable."""
        if self.prefix_cache and work.prompt:
            full = min(work.computed, self._known(work)) // self.block_tokens
            for k in range(work.noted, full):
                key = self._key(work, k)
                if key not in self._holders and key not in self._idle:
                    self._holders[key] = 1
                    work.keys.append(key)
            work.noted = max(full, work.noted)

    def release(self, work: Work) -> None:
        """Take all blocks of a request back; what was computed can still be found."""
        self.note(work)
        before = self.available
        self.available += work.blocks
        if work.keys:
            shared = 0
            for key in reversed(work.keys):
                self._holders[key] -= 1
                if self._holders[key]:
                    shared += 1
                else:
                    del self._holders[key]
                    self._idle[key] = 1
                    self._idle_blocks += 1
            self.available = before + work.blocks - shared
        elif self.prefix_cache and not work.prompt:
            full = work.computed // self.block_tokens
            if full:
                self._idle[work] = full
                self._idle_blocks += full
        work.keys, work.noted, work.computed, work.blocks = [], 0, 0, 0

    def flush(self) -> None:
        """Forget what nobody holds."""
        self._idle.clear()
        self._idle_blocks = 0

    def _known(self, work: Work) -> int:
        return len(work.prompt) + len(work.answer)

    def _key(self, work: Work, k: int) -> int:
        chain, size = work.chain, self.block_tokens
        if len(chain) <= k:
            ids = work.prompt + work.answer
            while len(chain) <= k:
                start = len(chain) * size
                before = chain[-1] if chain else 0
                chain.append(hash((before, ids[start : start + size])))
        return chain[k]
