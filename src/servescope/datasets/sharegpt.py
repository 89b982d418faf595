"""Conversations people had with an assistant, in the format of the ShareGPT collection."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from servescope.datasets import answer_to_come
from servescope.datasets._read import Entry, Passes, decode_json, in_order, read_text
from servescope.datasets._read import refuse_input_tokens as refuse
from servescope.datasets._turns import history, pause_s
from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.datasets import ItemSource, Message, Setting

LEAST_TOKENS = 4
"""Shorter first questions and answers are left out, as is the custom of benchmarks."""

_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant", "chatgpt", "model")


class ShareGPT(msgspec.Struct, frozen=True, tag="sharegpt"):
    """Questions of recorded conversations; each answer is as long as the one it got then."""

    path: str
    turns: str = "1"
    """The most questions to ask of a conversation, or 'all'."""
    history: str = "live"
    """What a later turn repeats as the answers before it: those that come now (live), or those of
    the file (recorded)."""
    think: str | None = None
    """The pause before a later turn, such as 1s; by default the load's."""
    max_input: int = 1024
    """Longer questions are left out (tokens)."""
    max_total: int = 2048
    """All questions and answers of a conversation are no longer together (tokens)."""
    shuffle: bool = True
    """Ask in an order drawn from the seed, each prompt once before any comes again."""
    unique: bool = True
    """Number prompts that come again, so that a prefix cache cannot flatter the figures."""

    def __post_init__(self) -> None:
        if self.turns != "all" and not (self.turns.isdecimal() and int(self.turns)):
            raise ValueError(f"turns={self.turns}: want a number from 1 up, or all")
        if self.history not in ("live", "recorded"):
            raise ValueError(f"history={self.history}: want live or recorded")
        pause_s(self.think)

    def items(self, setting: Setting) -> ItemSource:
        """Conversations are chosen by their own lengths, so `--output-tokens` changes no prompt.

        Raises BadInput naming `--data` when the file cannot be read or nothing of it is usable.
        """
        refuse(setting, "sharegpt")
        conversations = decode_json(read_text(self.path), self.path, "one JSON list")
        if not isinstance(conversations, list):
            raise BadInput("--data", self.path, "want a JSON list of conversations")
        ordered = in_order(conversations, setting.seed, shuffle=self.shuffle)
        nothing = BadInput(
            "--data",
            self.path,
            f"want conversations with a question and an answer of {LEAST_TOKENS} tokens or more, "
            f"the question of at most {self.max_input} and both of at most {self.max_total}",
        )

        def read(conversation: object) -> tuple[list[Entry], str]:
            return self._entries(conversation, setting)

        alone = self.turns == "1"
        return Passes(ordered, read, setting, unique=self.unique, nothing=nothing, alone=alone)

    def _entries(self, conversation: object, setting: Setting) -> tuple[list[Entry], str]:
        """The turns to ask, and why not all that were wanted."""
        pairs = _pairs(conversation)
        if not pairs:
            return [], "conversations left out: no question with an answer right after it"
        entries: list[Entry] = []
        total = 0
        for question, answer in pairs[: None if self.turns == "all" else int(self.turns)]:
            asked, answered = setting.ruler.estimate(question), setting.ruler.estimate(answer)
            total += asked + answered
            if why := self._why_not(asked, answered, total, first=not entries):
                return entries, f"conversations {'cut short' if entries else 'left out'}: {why}"
            entries.append(
                Entry(
                    prompt=self._prompt(pairs[: len(entries) + 1]),
                    output_tokens=answered if setting.output_tokens is None else None,
                    pinned=True,
                    think_s=pause_s(self.think) if entries else None,
                )
            )
        return entries, ""

    def _why_not(self, asked: int, answered: int, total: int, *, first: bool) -> str:
        if first and min(asked, answered) < LEAST_TOKENS:
            return f"a question or an answer of fewer than {LEAST_TOKENS} tokens"
        if asked > self.max_input:
            return f"a question of more than {self.max_input} tokens (max_input)"
        if total > self.max_total:
            return f"more than {self.max_total} tokens with the answer (max_total)"
        return ""

    def _prompt(self, pairs: list[tuple[str, str]]) -> str | tuple[Message, ...]:
        asked = [question for question, _ in pairs]
        if len(asked) == 1:
            return asked[0]
        recorded = self.history == "recorded"
        before = enumerate(pairs[:-1])
        return history(asked, [a if recorded else answer_to_come(t) for t, (_, a) in before])


def _pairs(conversation: object) -> list[tuple[str, str]]:
    """Questions with the answer right after each, from the first on, as long as they alternate."""
    if not isinstance(conversation, dict):
        return []
    turns = conversation.get("conversations") or conversation.get("conversation")
    said = [_turn(turn) for turn in turns] if isinstance(turns, list) else []
    first = next((place for place, (who, _) in enumerate(said) if who in _ASKS), len(said))
    pairs: list[tuple[str, str]] = []
    for (who, question), (replier, answer) in list(pairwise(said[first:]))[::2]:
        if not (who in _ASKS and replier in _ANSWERS and question and answer):
            break
        pairs.append((question, answer))
    return pairs


def _turn(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        return "", ""
    who = turn.get("from") or turn.get("role")
    what = turn.get("value") or turn.get("content")
    return (who, what) if isinstance(who, str) and isinstance(what, str) else ("", "")
