"""Prompts as long as those that a real service got, sharing prefixes where those did."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from servescope.datasets import Item, Turn
from servescope.datasets._read import refuse_input_tokens as refuse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from servescope.datasets import ItemSource, Setting
    from servescope.traces import Trace


class FromTrace(msgspec.Struct, frozen=True, tag="trace"):
    """Prompts and answers as long as those in a trace, in its order, again and again."""

    path: str
    block: int = 512
    """Tokens that each of a row's hash ids stands for."""

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError("want block to be 1 token or more")

    def items(self, setting: Setting) -> ItemSource:
        """Item i is row i, and after the last row comes the first, with another text.

        Raises BadInput naming `--data` when the file is no trace.
        """
        from servescope.traces import read  # noqa: PLC0415 - listing the plug-ins must stay quick

        refuse(setting, "trace")
        return Replay(read("--data", self.path), self.block, setting)


class Replay:
    """The rows of a trace as items."""

    def __init__(self, trace: Trace, block: int, setting: Setting) -> None:
        self.alone = trace.session is None
        self._trace, self._block, self._setting = trace, block, setting
        self._turns = None if trace.session is None else _turns(trace.session)
        # of a prompt's parts only the first pays for what the target adds
        self._inside = replace(setting.ruler, overhead=0)

    def __call__(self, i: int) -> Item:
        """Row i, counted round and round."""
        from servescope.lengths import at  # noqa: PLC0415 - listing must stay quick

        setting, row = self._setting, i % len(self._trace)
        tokens = max(setting.ruler.least, int(self._trace.input_tokens[row]))
        output_tokens = int(self._trace.output_tokens[row])
        if setting.output_tokens is not None:
            output_tokens = at(setting.output_tokens, setting.seed, "output", i)
        return Item(
            prompt=" ".join(self._text(i, part, *key) for part, key in self._parts(i, tokens)),
            input_tokens=tokens,
            output_tokens=output_tokens,
            pinned=True,
        )

    @property
    def notes(self) -> list[str]:
        """What of the file is not asked."""
        left = self._trace.left_out
        return [f"{left:,} rows of the trace without tokens were left out"] if left else []

    def turn(self, i: int) -> Turn:
        """Rows of one session belong together; not with those of the next time round."""
        again, row = divmod(i, len(self._trace))
        if self._trace.session is None or self._turns is None:
            return Turn(i, last=True)
        session = int(self._trace.session[row])
        return Turn(again * len(self._trace) + session, *self._turns[row])

    def _parts(self, i: int, tokens: int) -> list[tuple[int, tuple[str, int]]]:
        """Tokens of each part of a prompt, and what it is the text of: a block, or this item.

        Blocks are counted in the text alone: what the target adds before it may move them, but a
        prefix that is shared has all the tokens that the trace says.
        """
        again, row = divmod(i, len(self._trace))
        hash_ids = self._trace.hash_ids[row] if self._trace.hash_ids else None
        least = self._inside.least
        parts, done, tokens = [], 0, tokens - self._setting.ruler.overhead
        for k, hash_id in enumerate([] if hash_ids is None else hash_ids.tolist()):
            end = min(tokens, (k + 1) * self._block)
            if end - done >= least:
                parts.append((end - done, (f"block {again}", hash_id)))
                done = end
        if tokens - done >= least or not parts:
            parts.append((tokens - done, ("prompt", i)))
        elif tokens > done:  # too little for a word
            length, key = parts.pop()
            parts.append((length + tokens - done, key))
        return parts

    def _text(self, i: int, tokens: int, purpose: str, index: int) -> str:
        """The text of a part of item i; of a block that is not whole, its beginning."""
        if purpose == "prompt":
            return self._prose(tokens, purpose, index)
        block = self._prose(max(tokens, self._block), purpose, index)
        if tokens >= self._block:
            return block
        kept, left = self._cut(block, tokens)
        return " ".join([*kept, self._prose(left, "rest", i)] if left else kept)

    def _cut(self, text: str, tokens: int) -> tuple[list[str], int]:
        """The words of a text up to so many tokens, and how many are left for other words."""
        ruler, words = self._inside, text.split(" ")
        kept, left = 0, tokens
        for n, word in enumerate(words, 1):
            cost = int(ruler.costs[ruler.index[word]]) if word in ruler.index else tokens
            tokens -= cost
            if tokens == 0 or tokens >= ruler.least:
                kept, left = n, tokens
            if tokens <= 0:
                break
        return words[:kept], left

    def _prose(self, tokens: int, purpose: str, index: int) -> str:
        from servescope.seeds import generator  # noqa: PLC0415 - listing must stay quick
        from servescope.text import prose_of_exactly  # noqa: PLC0415

        rng = generator(self._setting.seed, purpose, index)
        return prose_of_exactly(self._inside, tokens, rng)


def _turns(session: NDArray[np.int64]) -> list[tuple[int, bool]]:
    """Which turn of its session each row is, from 0, and whether it is the last."""
    rows: dict[int, list[int]] = {}
    for row, first in enumerate(session.tolist()):
        rows.setdefault(first, []).append(row)
    turns = [(0, False)] * len(session)
    for found in rows.values():
        for number, row in enumerate(found):
            turns[row] = number, number == len(found) - 1
    return turns
