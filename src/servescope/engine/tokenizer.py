"""The simulated model's tokenizer and voice: what it reads and says, without a model.

A token is a word with the space before it, in pieces of 12 characters where it is longer, or one
other character. As with the tokenizers of real models, the cost of ' word' does not depend on its
neighbours, and a conversation so far is a prefix of its next turn.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import count

from servescope.datasets import Message
from servescope.seeds import generator
from servescope.vocabulary import sentences

VOCABULARY = 128_000
"""Ids of texts are below this one; those from it up mark the parts of a conversation."""

_MOST_KNOWN = 1 << 17
_END, _ROLES = VOCABULARY, VOCABULARY + 1
_VOICE_TOKENS = 4096
_LETTERS = "0-9A-Za-z_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u052f"
_PIECE = re.compile(
    rf" ?[{_LETTERS}]{{1,11}}"
    rf"| ?[^\s{_LETTERS}]"
    r"|\n{1,12}"
    r"|[^\S\n]{1,12}(?!\S)"  # all of a run of spaces but the one that belongs to the word after it
    r"|\s"
)


class _Ids(dict[str, int]):
    """The id of each piece of text, worked out once for those that are met first."""

    def __missing__(self, piece: str) -> int:
        number = zlib.crc32(piece.encode(errors="surrogatepass")) % VOCABULARY
        if len(self) < _MOST_KNOWN:
            self[piece] = number
        return number


_ids = _Ids()


def tokenize(text: str) -> list[int]:
    """The token ids of a text, the same everywhere and always."""
    return [_ids[piece] for piece in _PIECE.findall(text)]


def prompt_tokens(prompt: str | tuple[int, ...] | tuple[Message, ...]) -> tuple[int, ...]:
    """The token ids of a prompt.

    A message is its role, its text and an end mark; the role of the answer to come stands last.
    """
    if isinstance(prompt, str):
        return tuple(tokenize(prompt))
    found: list[int] = []
    for part in prompt:
        if isinstance(part, Message):
            found += (_role(part.role), *tokenize(part.content), _END)
        else:
            found.append(part)
    if prompt and isinstance(prompt[-1], Message):
        found.append(_role("assistant"))
    return tuple(found)


def voice(seed: int) -> Iterator[str]:
    """What the model says to `seed`: endless texts of one token each."""
    texts, _, start = _spoken(seed)
    for k in count(start):
        yield texts[k % _VOICE_TOKENS]


def voice_ids(seed: int, tokens: int) -> tuple[int, ...]:
    """The ids of the first `tokens` tokens of `voice(seed)`."""
    _, ids, start = _spoken(seed)
    found = ids[start : start + tokens]
    while len(found) < tokens:
        found += ids[: tokens - len(found)]
    return found


def _role(role: str) -> int:
    return _ROLES + zlib.crc32(role.encode(errors="surrogatepass")) % 256


def _spoken(seed: int) -> tuple[tuple[str, ...], tuple[int, ...], int]:
    """All that is ever said, its ids, and where the answer to `seed` begins: at a sentence."""
    texts, ids, begins = _speech()
    return texts, ids, begins[seed * 2654435761 % len(begins)]


@cache
def _speech() -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    rng = generator(0, "voice")
    pieces: list[str] = []
    while len(pieces) < _VOICE_TOKENS:
        pieces += _PIECE.findall(" " + " ".join(sentences(rng)))
    texts = (*pieces[: _VOICE_TOKENS - 1], ".")  # so that the round ends with a sentence
    begins = tuple((k + 1) % _VOICE_TOKENS for k, text in enumerate(texts) if text == ".")
    return texts, tuple(map(_ids.__getitem__, texts)), begins
