"""Made conversations: each turn repeats all that was said before."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from servescope.datasets import Item, Message, Turn, answer_to_come
from servescope.datasets._turns import history, pause_s
from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.datasets import ItemSource, Setting
    from servescope.lengths import Lengths

MOST_SYSTEM_TOKENS = 1_000_000
_TEXTS_KEPT = 4096


class Sessions(msgspec.Struct, frozen=True, tag="sessions"):
    """Conversations of made prose whose context grows with the answers as they come.

    `--input-tokens` is the length of what the user says in each turn.
    """

    turns: str = "5"
    """Turns of a session: a number, or a law such as uniform:2-8."""
    think: str | None = None
    """The pause before a later turn, such as 2s; by default the load's."""
    system: int = 0
    """Tokens of a system prompt that all sessions begin with."""

    def __post_init__(self) -> None:
        pause_s(self.think)
        if not 0 <= self.system <= MOST_SYSTEM_TOKENS:
            raise ValueError(f"system={self.system}: want 0 to {MOST_SYSTEM_TOKENS} tokens")
        self.law()

    def law(self) -> Lengths:
        """How many turns sessions have; raises ValueError when `turns` says it wrongly."""
        from servescope.lengths import parse  # noqa: PLC0415 - numpy; listing must stay quick

        try:
            return parse("turns", self.turns)
        except BadInput:
            want = "want a number of turns such as 5, or a law such as uniform:2-8"
            raise ValueError(f"turns={self.turns}: {want}") from None

    def items(self, setting: Setting) -> ItemSource:
        """The user says 128 tokens in each turn, and is answered 64, unless told otherwise."""
        return _Conversations(self, setting)


class _Conversations:
    """Items of session after session; each says how long the prompt is only where that is known."""

    alone = False

    def __init__(self, data: Sessions, setting: Setting) -> None:
        # numpy is only needed from here on, and listing the plug-ins must stay quick
        from servescope.datasets._made import drawn, shared_prose  # noqa: PLC0415

        self._setting, self._think_s = setting, pause_s(data.think)
        self._sessions = _Boundaries(data.law(), setting.seed)
        self._input_tokens, self._output_tokens = drawn(setting, setting.ruler.least)
        text = shared_prose(setting, "system", data.system) if data.system else ""
        self._system = (Message("system", text),) if text else ()
        self._text = lru_cache(maxsize=_TEXTS_KEPT)(self._write)

    def __call__(self, i: int) -> Item:
        number = self.turn(i).number
        asked = [self._text(k) for k in range(i - number, i + 1)]
        # what a target adds to several messages was never counted
        alone = not number and not self._system
        return Item(
            prompt=asked[0]
            if alone
            else (*self._system, *history(asked, map(answer_to_come, range(number)))),
            input_tokens=self._input_tokens(i) if alone else None,
            output_tokens=self._output_tokens(i),
            pinned=True,
            think_s=self._think_s if number else None,
        )

    def turn(self, i: int) -> Turn:
        """Which turn of which session item i is."""
        return self._sessions.turn(i)

    def _write(self, i: int) -> str:
        from servescope.seeds import generator  # noqa: PLC0415 - numpy, as above
        from servescope.text import prose_of_exactly  # noqa: PLC0415

        rng = generator(self._setting.seed, "prompt", i)
        return prose_of_exactly(self._setting.ruler, self._input_tokens(i), rng)


class _Boundaries:
    """Where sessions begin: their lengths are drawn and summed up as far as anyone has asked."""

    def __init__(self, turns: Lengths, seed: int) -> None:
        self._turns, self._seed = turns, seed
        self._starts = array("q", [0])
        self._lock = Lock()  # each load process is fed by a thread of its own

    def turn(self, i: int) -> Turn:
        from servescope.lengths import Fixed, at  # noqa: PLC0415 - numpy, as above

        if isinstance(self._turns, Fixed):
            session, number = divmod(i, self._turns.tokens)
            return Turn(session, number, number == self._turns.tokens - 1)
        with self._lock:
            starts = self._starts
            while starts[-1] <= i:
                session = len(starts) - 1
                starts.append(starts[-1] + at(self._turns, self._seed, "turns", session))
            session = bisect_right(starts, i) - 1
            return Turn(session, i - starts[session], i + 1 == starts[session + 1])
