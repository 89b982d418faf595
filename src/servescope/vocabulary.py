"""The bundled words and the patterns of sentences made of them.

A *form* is a word as it stands in a text, with its capital and its punctuation: 'word', 'Word',
'word,' and 'word.' are four forms, for a tokenizer counts each differently.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PATTERNS = (
    "Det noun went adv.",
    "Det adj noun past det noun.",
    "Det noun link adj.",
    "Det noun prep det noun link adj, and pron went prep det noun.",
    "Det adj noun past det noun prep det adj noun.",
    "Det noun past det nouns, but det adj noun went adv.",
    "Dets nouns past det adj noun.",
    "Dets nouns went adv prep det noun.",
    "Dets adj nouns links adj, so pron past det noun.",
    "Dets nouns prep det noun past dets adj nouns.",
    "Pron past det noun.",
    "Pron past det adj noun prep dets nouns.",
    "Pron went prep det noun, conj det noun past det adj noun.",
    "Pron past dets nouns conj pron went prep det adj noun.",
    "Start, det noun past det adj noun.",
    "Start, pron past dets nouns prep det noun.",
    "Start, dets adj nouns went prep det noun, and det noun link adj.",
    "Start pron past det noun conj det adj noun went adv.",
    "Prep det adj noun, pron past det noun.",
    "Prep det noun, dets nouns past dets nouns, dets nouns and dets adj nouns.",
    "Conj det noun past det noun, pron past det adj noun prep det noun.",
    "Conj pron past dets adj nouns, det noun prep det noun link adj, adj and adj.",
    "Det adj noun, det noun and det noun past det adj noun prep dets nouns.",
    "Det noun past det noun, conj pron past dets nouns prep det noun, conj dets nouns went adv.",
)
"""A word of a pattern is a class of words.txt, or else itself; its capital, comma or full stop is
the form's."""

OPENERS = ("The", "This", "That", "Our", "His", "My", "Your", "Each")
"""Words a prompt may begin with: 'The' and ' The' are one token each in nearly every vocabulary."""


@cache
def classes() -> dict[str, tuple[str, ...]]:
    """The words of words.txt by class, each once within its class."""
    text = Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: tuple(dict.fromkeys(words.split())) for name, _, words in lines}


def members(slot: str) -> tuple[str, ...]:
    """The forms that can fill a slot of a pattern: for 'Noun.' these are 'Time.', 'Year.', ..."""
    bare = slot.rstrip(",.")
    words = classes().get(bare.lower(), (bare.lower(),))
    cased = [word.capitalize() for word in words] if bare[0].isupper() else words
    return tuple(word + slot[len(bare) :] for word in cased)


@cache
def plain() -> tuple[str, ...]:
    """Every bundled word once: lower case, no punctuation."""
    return tuple(dict.fromkeys(word for words in classes().values() for word in words))


@cache
def forms() -> tuple[str, ...]:
    """Every form a text made here may hold, plain words first."""
    slots = sorted({slot for pattern in PATTERNS for slot in pattern.split()})
    filled = (form for slot in slots for form in members(slot))
    return tuple(dict.fromkeys([*plain(), *OPENERS, *filled]))


def common() -> tuple[str, ...]:
    """The most frequent words of English: one token each in nearly any vocabulary."""
    return classes()["common"]


@cache
def frequent_forms(each: int = 10) -> tuple[str, ...]:
    """Every form of the first `each` words of the classes, which are the most frequent of them."""
    words = {word for members in classes().values() for word in members[:each]}
    return tuple(form for form in forms() if form.rstrip(",.").lower() in words)


def sentences(rng: np.random.Generator) -> list[str]:
    """The forms of one sentence of each pattern, in order."""
    fillings = (members(slot) for pattern in PATTERNS for slot in pattern.split())
    return [filling[int(rng.integers(len(filling)))] for filling in fillings]
