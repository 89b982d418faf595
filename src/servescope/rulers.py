"""How a target counts the tokens of a text, learned with few questions.

A `Ruler` knows what each of some common words costs inside running text. Tokenizers of language
models split a text before its spaces first, so the cost of ' word' does not depend on its
neighbours and a text costs the sum of its words. That is verified on the target's own tokenizer;
where it does not hold, or where the target tells too little, the ruler says that it is not exact.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from servescope.errors import BadInput
from servescope.seeds import generator
from servescope.vocabulary import OPENERS, common, forms, frequent_forms, sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Tokenize = Callable[[str], list[int]]

TOKENIZER = "tokenizer"
"""The source of a ruler whose tokenizer is at hand, so that any text can be counted exactly."""

_MOST_QUESTIONS = 64
_LONGEST_WORD = 16
"""Tokens; a word that costs more is left out."""


@dataclass(frozen=True, eq=False)
class Ruler:
    """How a target counts the tokens of a text."""

    source: str
    """Who counts: 'server /tokenize', 'tokenizer', 'calibration'."""
    words: tuple[str, ...]
    """The forms of words a text may be made of."""
    costs: NDArray[np.int64]
    """Tokens that ' word' costs inside running text, shape (len(words),)."""
    ids: tuple[tuple[int, ...], ...] | None = None
    """Token ids of each ' word', where known."""
    overhead: int = 0
    """Tokens the target adds to any prompt of text: BOS, chat template."""
    takes_ids: bool = False
    """The protocol accepts token ids as a prompt."""
    exact: bool = False
    """The counts are verified, not guessed."""
    openers: tuple[str, ...] = ()
    """Words that cost at the very start of a prompt, without a space before them, what they cost
    inside it; empty when nobody checked."""
    chars_per_token: float = 4.0
    count: Callable[[str], int] | None = None
    """Counts the tokens of any text exactly; None when only the target could."""
    ids_overhead: int = 0
    """Tokens the target adds to a prompt of token ids; servers take these as they are."""

    def estimate(self, text: str) -> int:
        """Tokens of `text` itself: exact with a local tokenizer, else by its length."""
        if self.count is not None:
            return self.count(text)
        return max(1, round(len(text) / self.chars_per_token)) if text else 0

    @property
    def least(self) -> int:
        """The shortest prompt of text, in tokens as the target will count them."""
        return self.overhead + int(self.costs[self.opening].min())

    @cached_property
    def opening(self) -> NDArray[np.int64]:
        """Indices of the words a prompt may begin with."""
        known = [self.index[word] for word in self.openers or OPENERS if word in self.index]
        return np.array(known, np.int64) if known else self.plain

    @cached_property
    def index(self) -> dict[str, int]:
        """Where each word stands in `words`."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def plain(self) -> NDArray[np.int64]:
        """Indices of the words in lower case without punctuation; of all if there are none."""
        lower = [i for i, word in enumerate(self.words) if word.isalpha() and word.islower()]
        return np.array(lower or range(len(self.words)), np.int64)

    @cached_property
    def known_ids(self) -> NDArray[np.int64]:
        """Token ids that occur in plain words, each once; empty when unknown."""
        found = {i for word in self.plain.tolist() for i in (self.ids[word] if self.ids else ())}
        return np.array(sorted(found), np.int64)


def ruler_by_words(source: str = "simulated") -> Ruler:
    """The ruler of a target that counts every word and every punctuation mark as one token."""
    return Ruler(source=source, words=forms(), costs=_nominal(forms()), exact=True)


def ruler_from_tokenizer(tokenize: Tokenize, source: str) -> Ruler:
    """The ruler of a target whose tokenizer can be asked, with about ten calls of `tokenize`.

    `tokenize` returns the token ids of a text, with or without special tokens around them, and []
    for a text that is too long for it. With `source` 'tokenizer' it is taken to be local and is
    kept, to count any text exactly.
    """
    count = partial(_count, tokenize)
    aligned = _align(tokenize, forms())
    words, ids = tuple(aligned), tuple(aligned.values())
    ruler = Ruler(
        source=source, words=words, costs=np.array([len(i) for i in ids], np.int64), ids=ids
    )
    ruler = _verified(ruler, count) if len(words) >= len(common()) else ruler
    if not ruler.exact:
        ruler = _guessed(source, count)
    return replace(ruler, count=count) if source == TOKENIZER else ruler


def ruler_from_usage(count: Callable[[str], int]) -> Ruler:
    """The ruler of a target that only tells how many tokens a prompt had, with three or four calls.

    If the most frequent words of English, added once more, make the count rise by exactly their
    number, each of them is one token.
    """
    words = ("The", *common())
    once, twice = count(" ".join(words)), count(" ".join(words + common()))
    if twice - once != len(common()):
        return _guessed("calibration", count)
    overhead = once - len(words)
    more = ("The", *(form for form in frequent_forms() if form not in words), *common())
    if count(" ".join(more)) == overhead + int(_nominal(more).sum()):
        words = more
    return Ruler(
        source="calibration",
        words=words,
        costs=_nominal(words),
        overhead=overhead,
        exact=True,
        openers=("The",),
        chars_per_token=len(" ".join(words)) / int(_nominal(words).sum()),
    )


def load_tokenizer(path: str | Path) -> Tokenize:
    """A function from text to token ids, without special tokens.

    `path` is a Hugging Face tokenizer.json or its directory. Raises BadInput naming `--tokenizer`.
    """
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - optional
    except ImportError:
        want = "needs tokenizers: pip install tokenizers"
        raise BadInput("--tokenizer", path, want) from None
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - the package raises no narrower one
        want = f"want a Hugging Face tokenizer.json: {str(error).splitlines()[0]}"
        raise BadInput("--tokenizer", path, want) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return partial(_encode, tokenizer)


def _encode(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401 - of an optional package
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _count(tokenize: Tokenize, text: str) -> int:
    return len(tokenize(text))


def _text(opener: str, words: Sequence[str]) -> str:
    return " ".join([opener, *words])


def _nominal(words: Sequence[str]) -> NDArray[np.int64]:
    return np.array([1 + (not word.isalpha()) for word in words], np.int64)


def _align(tokenize: Tokenize, words: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Token ids of each ' word', without those that could not be told apart.

    In a text in which every word stands twice in a row its ids are two equal neighbouring blocks,
    so one question aligns all words. What cannot be read is asked again in halves.
    """
    found: dict[str, tuple[int, ...]] = {}
    waiting = deque([words])
    for _ in range(_MOST_QUESTIONS):
        if not waiting:
            break
        asked = waiting.popleft()
        blocks = _blocks(tokenize(_text("The", [w for word in asked for w in (word, word)])), asked)
        found.update(blocks)
        if not blocks and len(asked) > 1:
            half = len(asked) // 2
            waiting.extend([asked[:half], asked[half:]])
    return {word: found[word] for word in words if word in found}


def _blocks(ids: Sequence[int], words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Doubled blocks read one after the other to the end; {} if they are not one for each word."""
    for first in range(min(9, len(ids))):  # special tokens and the opening word stand before them
        found: list[tuple[int, ...]] = []
        at = first
        while len(found) < len(words) and (length := _doubled(ids, at)):
            found.append(tuple(ids[at : at + length]))
            at += 2 * length
        if len(found) == len(words) and len(ids) - at <= 2:  # and perhaps some after them
            return dict(zip(words, found, strict=True))
    return {}


def _doubled(ids: Sequence[int], at: int) -> int:
    """Length of the shortest block at `at` that is followed by its equal; 0 when there is none."""
    for length in range(1, min(_LONGEST_WORD, (len(ids) - at) // 2) + 1):
        if ids[at : at + length] == ids[at + length : at + 2 * length]:
            return length
    return 0


def _verified(ruler: Ruler, count: Callable[[str], int]) -> Ruler:
    """The ruler with its overhead and openers; exact if texts of its words cost their words' sum.

    One text for each opener, of 40 random words: what it costs beyond its words must be the same
    for all openers that can be used.
    """
    rng = generator(0, "sample")
    beyond: dict[str, int] = {}
    chars = tokens = 0
    for opener in (word for word in OPENERS if word in ruler.index):
        sample = rng.integers(len(ruler.words), size=40)
        text = _text(opener, [ruler.words[i] for i in sample])
        asked = int(ruler.costs[sample].sum() + ruler.costs[ruler.index[opener]])
        beyond[opener] = count(text) - asked
        chars, tokens = chars + len(text), tokens + asked
    if not beyond:
        return ruler
    overhead, votes = Counter(beyond.values()).most_common(1)[0]
    return replace(
        ruler,
        overhead=overhead,
        openers=tuple(word for word, more in beyond.items() if more == overhead),
        exact=2 * votes > len(beyond),
        chars_per_token=chars / tokens,
    )


def _guessed(source: str, count: Callable[[str], int]) -> Ruler:
    """A ruler from two questions: right on average over sentences, exact for no single text.

    The same sentences, asked three times over, tell what they cost and what is added. A word's
    share of that goes by its letters, in whole tokens that sum to about what was counted.
    """
    sample = sentences(generator(0, "sample"))
    once, thrice = count(" ".join(sample)), count(" ".join(sample * 3))
    tokens = max(1.0, (thrice - once) / 2)
    letters = np.array([len(word) + 1 for word in forms()])
    place = {word: i for i, word in enumerate(forms())}
    scales = np.geomspace(0.01, 4.0, 1000)[:, np.newaxis]  # tokens per letter
    sums = np.rint(scales * letters[[place[word] for word in sample]]).clip(1).sum(axis=1)
    scale = scales[np.abs(sums - tokens).argmin(), 0]
    return Ruler(
        source=source,
        words=forms(),
        costs=np.rint(scale * letters).clip(1).astype(np.int64),
        overhead=max(0, round(once - tokens)),
        chars_per_token=len(" ".join(sample)) / tokens,
    )
