"""Conversations people had with an assistant, in the format of the ShareGPT collection."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from servescope.datasets._read import Entry, Passes, decode_json, in_order, read_text
from servescope.datasets._read import refuse_input_tokens as refuse
from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.datasets import ItemSource, Setting

LEAST_TOKENS = 4
"""Shorter prompts and answers are left out, as is the custom of benchmarks with this data."""

_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant", "chatgpt", "model")


class ShareGPT(msgspec.Struct, frozen=True, tag="sharegpt"):
    """First question of each conversation; the answer is as long as the one it got then."""

    path: str
    max_input: int = 1024
    """Longer prompts are left out (tokens)."""
    max_total: int = 2048
    """Conversations whose prompt and answer are longer together are left out (tokens)."""
    shuffle: bool = True
    """Ask in an order drawn from the seed, each prompt once before any comes again."""
    unique: bool = True
    """Number prompts that come again, so that a prefix cache cannot flatter the figures."""

    def items(self, setting: Setting) -> ItemSource:
        """Conversations are chosen by their own lengths, so `--output-tokens` changes no prompt.

        Raises BadInput naming `--data` when the file cannot be read or nothing of it is usable.
        """
        refuse(setting, "sharegpt")
        conversations = decode_json(read_text(self.path), self.path)
        if not isinstance(conversations, list):
            raise BadInput("--data", self.path, "want a JSON list of conversations")
        ordered = in_order(conversations, setting.seed, shuffle=self.shuffle)
        nothing = BadInput(
            "--data",
            self.path,
            f"want conversations with a question and an answer of {LEAST_TOKENS} tokens or more, "
            f"the question of at most {self.max_input} and both of at most {self.max_total}",
        )

        def read(conversation: object) -> Entry | None:
            return self._entry(conversation, setting)

        return Passes(ordered, read, setting, unique=self.unique, nothing=nothing)

    def _entry(self, conversation: object, setting: Setting) -> Entry | None:
        pair = _first_pair(conversation)
        if pair is None:
            return None
        asked, answered = (setting.ruler.estimate(text) for text in pair)
        usable = (
            min(asked, answered) >= LEAST_TOKENS
            and asked <= self.max_input
            and asked + answered <= self.max_total
        )
        if not usable:
            return None
        own = answered if setting.output_tokens is None else None
        return Entry(prompt=pair[0], output_tokens=own, pinned=True)


def _first_pair(conversation: object) -> tuple[str, str] | None:
    """The first question and the answer right after it; None where there is no such pair."""
    if not isinstance(conversation, dict):
        return None
    turns = conversation.get("conversations") or conversation.get("conversation")
    said = [_turn(turn) for turn in turns] if isinstance(turns, list) else []
    for (who, question), (replier, answer) in pairwise(said):
        if who in _ASKS:
            return (question, answer) if replier in _ANSWERS and question and answer else None
    return None


def _turn(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        return "", ""
    who = turn.get("from") or turn.get("role")
    what = turn.get("value") or turn.get("content")
    return (who, what) if isinstance(who, str) and isinstance(what, str) else ("", "")
