"""Prompts of an exact length: random words, or sentences that look like English.

Both are drawn in bulk with numpy: a prompt of 128 tokens takes a fraction of a millisecond, so that
all prompts of a run can be made before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from servescope.errors import BadInput
from servescope.vocabulary import PATTERNS, members

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from servescope.rulers import Ruler


def words_of_exactly(ruler: Ruler, n: int, rng: np.random.Generator) -> str:
    """Random words that make a prompt of `n` tokens as the target counts, its overhead included.

    Raises BadInput naming `--input-tokens` when no words have that length.
    """
    opener, left = _open(ruler, n, rng)
    return _join(ruler, opener, _exactly(ruler, _pick(rng, ruler.plain, left), left, rng))


def prose_of_exactly(ruler: Ruler, n: int, rng: np.random.Generator) -> str:
    """English-looking sentences that make a prompt of `n` tokens, the target's overhead included.

    Where a sentence does not fit, or the ruler knows no punctuation, words without grammar stand
    instead. Raises BadInput naming `--input-tokens` when no words have that length.
    """
    opener, left = _open(ruler, n, rng)
    grammar = _grammar(ruler)
    ends = [e for e in grammar.endings if e < left and grammar.can_fill(left - e)]
    if not ends or not grammar.first:
        return _join(ruler, opener, _exactly(ruler, _pick(rng, ruler.plain, left), left, rng))
    end = ends[int(rng.integers(len(ends)))]
    body = _exactly(ruler, _sentences(grammar, left, rng), left - end, rng)
    return _join(ruler, opener, np.append(body, _pick(rng, grammar.endings[end], 1)))


def _open(ruler: Ruler, n: int, rng: np.random.Generator) -> tuple[str, int]:
    """The first word, and how many tokens are left for the others.

    A prompt begins with no space: chat templates may trim it, and SentencePiece makes a token of
    it. So the first word must be one that costs the same there as ' word' costs inside the text.
    """
    can_fill = _grammar(ruler).can_fill
    left = {int(cost): n - ruler.overhead - int(cost) for cost in set(ruler.costs[ruler.opening])}
    fitting = [cost for cost, rest in left.items() if can_fill(rest)]
    if not fitting:
        want = f"want at least {ruler.least}: the target adds {ruler.overhead} to any prompt"
        if n >= ruler.least:
            want = "want another length: no words of this vocabulary have this one"
        raise BadInput("--input-tokens", n, want)
    able = ruler.opening[np.isin(ruler.costs[ruler.opening], fitting)]
    first = int(_pick(rng, able, 1)[0])
    return ruler.words[first], left[int(ruler.costs[first])]


def _exactly(
    ruler: Ruler, chosen: NDArray[np.int64], total: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The beginning of `chosen` and a few fillers, as indices of words: `total` tokens.

    Takes only a `total` that `can_fill` has approved.
    """
    grammar = _grammar(ruler)
    spent = np.cumsum(ruler.costs[chosen])
    kept = int(np.searchsorted(spent, total, side="right"))
    if kept and grammar.ends_sentence[chosen[kept - 1]]:
        kept -= 1  # fillers begin with no capital
    while True:  # ends at the latest when nothing is kept, for `total` itself can be filled
        missing = total - (int(spent[kept - 1]) if kept else 0)
        coins = _change(tuple(grammar.fillers), missing)
        if coins is not None:
            break
        kept -= 1
    fill = (_pick(rng, grammar.fillers[cost], times) for cost, times in Counter(coins).items())
    return np.concatenate([chosen[:kept], *fill])


@lru_cache(maxsize=4096)
def _change(coins: tuple[int, ...], total: int) -> tuple[int, ...] | None:
    """Coins that make up `total`, ones if there are ones; None when no coins do."""
    if 1 in coins or total < 0:
        return (1,) * total if total >= 0 else None
    made: list[tuple[int, ...] | None] = [(), *[None] * total]
    for value in range(1, total + 1):
        for coin in coins:
            rest = made[value - coin] if coin <= value else None
            if rest is not None:
                made[value] = (*rest, coin)
    return made[total]


def _pick(rng: np.random.Generator, places: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return places[rng.integers(len(places), size=n)]


def _join(ruler: Ruler, opener: str, places: NDArray[np.int64]) -> str:
    words = ruler.words
    return " ".join([opener, *[words[i] for i in places.tolist()]])


@dataclass(frozen=True)
class _Grammar:
    """The patterns of sentences in the words of one ruler, as arrays of indices into these.

    Slot s may be filled by any of `member[start[s] : start[s] + size[s]]`.
    """

    patterns: tuple[NDArray[np.int64], ...]
    """The slots of each pattern."""
    first: tuple[int, ...]
    """Which patterns may stand first, where an opener takes their first slot."""
    mean_cost: float
    """Tokens of a sentence on average."""
    member: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    endings: dict[int, NDArray[np.int64]]
    """Words that can end a text, by cost."""
    fillers: dict[int, NDArray[np.int64]]
    """Words that can stand almost anywhere, by cost."""
    ends_sentence: NDArray[np.bool_]

    def can_fill(self, tokens: int) -> bool:
        """Whether fillers alone can make so many tokens."""
        # Costs are 16 at most, so that what they can make at all has no gaps above 15 * 15.
        coins = tuple(self.fillers)
        return tokens > 256 or _change(coins, tokens) is not None


@lru_cache(maxsize=8)
def _grammar(ruler: Ruler) -> _Grammar:
    slots = sorted({slot for pattern in PATTERNS for slot in pattern.split()})
    fill = {slot: _places(ruler, members(slot)) for slot in slots}
    usable = [p.split() for p in PATTERNS if all(len(fill[slot]) for slot in p.split())]
    size = np.array([len(fill[slot]) for slot in slots], np.int64)
    mean = {slot: float(ruler.costs[found].mean()) for slot, found in fill.items() if len(found)}
    adjectives = _by_cost(ruler, fill["adj"])
    return _Grammar(
        patterns=tuple(np.array([slots.index(slot) for slot in p], np.int64) for p in usable),
        first=tuple(i for i, p in enumerate(usable) if p[0] == "Det"),
        mean_cost=sum(mean[slot] for p in usable for slot in p) / max(1, len(usable)),
        member=np.concatenate([fill[slot] for slot in slots]),
        start=np.cumsum(size) - size,
        size=size,
        endings=_by_cost(ruler, fill["noun."]),
        fillers=adjectives if 1 in adjectives else _by_cost(ruler, ruler.plain),
        ends_sentence=np.array([word.endswith(".") for word in ruler.words], np.bool_),
    )


def _sentences(grammar: _Grammar, tokens: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Words of sentences, of rather more than `tokens` tokens; the very first word is left out."""
    count = int(1.5 * tokens / grammar.mean_cost) + 5
    which = rng.integers(len(grammar.patterns), size=count)
    which[0] = grammar.first[which[0] % len(grammar.first)]
    slots = np.concatenate([grammar.patterns[i] for i in which.tolist()])[1:]
    places = (rng.random(len(slots)) * grammar.size[slots]).astype(np.int64)
    words: NDArray[np.int64] = grammar.member[grammar.start[slots] + places]
    return words


def _places(ruler: Ruler, words: Iterable[str]) -> NDArray[np.int64]:
    return np.array([ruler.index[w] for w in words if w in ruler.index], np.int64)


def _by_cost(ruler: Ruler, places: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    costs = ruler.costs[places]
    return {int(cost): places[costs == cost] for cost in np.unique(costs)}
