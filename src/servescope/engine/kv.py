"""The paged KV cache: who holds how many blocks, and which full blocks can be found again.

A block has no number here, for nobody reads its content. A full block whose tokens are known has a
key, the hash of its tokens and of the key before it: equal keys mean equal tokens from the start.
Blocks that nobody holds stay findable until room is needed; the one unused for longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from servescope.engine import Work


@dataclass(slots=True, eq=False)
class Sequence:
    """A request and its part of the KV cache."""

    work: Work
    ids: tuple[int, ...]
    """Its tokens, as far as they are known beforehand."""
    total: int
    """Tokens of its prompt and of its answer so far."""
    decoding: bool = False
    """Its prompt is computed, so that each step makes one token."""
    computed: int = 0
    """Tokens in the cache."""
    room: int = 0
    """Tokens that its blocks can hold; 0 when it does not run."""
    keys: list[int] = field(default_factory=list)
    """Of the blocks it holds that others can find."""
    noted: int = 0
    """Full blocks that have been made findable, or need not be."""
    chain: list[int] = field(default_factory=list)
    """Keys of its first full blocks, worked out so far."""


class BlockPool:
    """The blocks of one engine. Each operation costs O(blocks that change hands)."""

    def __init__(self, blocks: int, block_tokens: int, *, prefix_cache: bool) -> None:
        self.capacity, self.block_tokens, self.prefix_cache = blocks, block_tokens, prefix_cache
        self._empty = blocks
        """Blocks with nothing to be found in them."""
        self._holders: dict[int, int] = {}
        """How many sequences hold each findable block; none of them 0."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Findable blocks that nobody holds, the one unused for longest first."""

    @property
    def available(self) -> int:
        """Blocks that can be had at once."""
        return self._empty + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return self.capacity - self.available

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence the blocks for all its tokens so far; False where these are too many.

        What of it is found in the cache counts as computed, but for its last token: computing that
        makes the next one.
        """
        found = self._find(sequence)
        wanted = -(-sequence.total // self.block_tokens) - len(found)
        if wanted > self.available - sum(key in self._idle for key in found):
            return False
        for key in found:
            self._holders[key] = self._holders.get(key, 0) + 1
            self._idle.pop(key, None)
        self._take(wanted)
        sequence.keys, sequence.noted = found, len(found)
        sequence.computed = len(found) * self.block_tokens
        sequence.room = (len(found) + wanted) * self.block_tokens
        return True

    def extend(self, sequence: Sequence) -> bool:
        """Give a sequence whose blocks are full one more; False where there is none."""
        if not self.available:
            return False
        self.note(sequence)
        self._take(1)
        sequence.room += self.block_tokens
        return True

    def note(self, sequence: Sequence) -> None:
        """Make the full blocks of a sequence findable."""
        if not self.prefix_cache:
            return
        full = min(sequence.computed, len(sequence.ids)) // self.block_tokens
        for k in range(sequence.noted, full):
            key = self._key(sequence, k)
            if key not in self._holders and key not in self._idle:
                self._holders[key] = 1
                sequence.keys.append(key)
        sequence.noted = max(full, sequence.noted)

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back; what was computed can still be found."""
        self.note(sequence)
        self._empty += sequence.room // self.block_tokens - len(sequence.keys)
        for key in reversed(sequence.keys):  # the end of a text is of less use than its beginning
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self._idle[key] = None
        sequence.keys, sequence.noted, sequence.computed, sequence.room = [], 0, 0, 0

    def flush(self) -> None:
        """Forget what nobody holds."""
        self._empty += len(self._idle)
        self._idle.clear()

    def _find(self, sequence: Sequence) -> list[int]:
        found: list[int] = []
        if self.prefix_cache:
            for k in range(min(sequence.total - 1, len(sequence.ids)) // self.block_tokens):
                key = self._key(sequence, k)
                if key not in self._holders and key not in self._idle:
                    break
                found.append(key)
        return found

    def _key(self, sequence: Sequence, k: int) -> int:
        chain, size = sequence.chain, self.block_tokens
        while len(chain) <= k:
            start = len(chain) * size
            before = chain[-1] if chain else 0
            chain.append(hash((before, sequence.ids[start : start + size])))
        return chain[k]

    def _take(self, blocks: int) -> None:
        evicted = max(0, blocks - self._empty)
        self._empty -= blocks - evicted
        for _ in range(evicted):
            self._idle.popitem(last=False)
