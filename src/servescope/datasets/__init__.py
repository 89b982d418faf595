"""What is asked. One file a data set; a data set turns an index into an item, the same each time.

`Item` is the noun of this floor. A data set is a tagged struct with a method
`items(setting) -> ItemSource`; it reads and checks its files there, before the first
request, and raises BadInput with the field `--data`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import msgspec

from servescope import plugins

if TYPE_CHECKING:
    from servescope.lengths import Lengths
    from servescope.rulers import Ruler


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks."""

    prompt: str | tuple[int, ...] | tuple[Message, ...]
    """Text, token ids, or messages."""
    input_tokens: int | None = None
    """The prompt length wanted, as the server will count it; None when the data decides."""
    output_tokens: int
    """The most tokens the answer may have."""
    pinned: bool = False
    """The answer must have exactly `output_tokens`: ask the server to ignore its end token."""
    think_s: float | None = None
    """Of a later turn: the pause after the answer before it; None leaves it to the load."""

    @property
    def prompt_bytes(self) -> bytes:
        """What identifies the prompt: its text, or its token ids or messages as JSON."""
        if isinstance(self.prompt, str):
            return self.prompt.encode()
        return msgspec.json.encode(self.prompt)


class Turn(NamedTuple):
    """Where an item stands among those that belong together."""

    session: int
    """Turns of one session are asked one after the other."""
    number: int = 0
    """From 0 up. A later turn is due when the answer before it has ended and been thought about."""
    last: bool = False
    """No turn of the session follows: what was answered in it need be kept no longer."""


class ItemSource(Protocol):
    """The items of a run: item number i is a pure function of i and the seed."""

    @property
    def alone(self) -> bool:
        """Whether there are no sessions: `turn` is not asked then."""
        ...

    def __call__(self, i: int) -> Item:
        """Make item i. May be asked in any order, from several threads."""
        ...

    def turn(self, i: int) -> Turn:
        """Where item i stands; quick, and without making the item.

        A session's turns have rising indices. A stage never begins inside a session.
        """
        ...


class Single(msgspec.Struct, frozen=True):
    """A source in which every item stands alone."""

    make: Callable[[int], Item]
    alone: ClassVar[bool] = True

    def __call__(self, i: int) -> Item:
        """Item i."""
        return self.make(i)

    def turn(self, i: int) -> Turn:
        """A session of its own."""
        return Turn(i, last=True)


def answer_to_come(turn: int) -> str:
    """What stands in a prompt for the answer that turn `turn` of its session will have got.

    The load process puts the answer there as it came: the history is live. The marks are private
    characters of Unicode, which stay as they are in JSON and occur in no text.
    """
    return f"\ue0f0{turn}\ue0f1"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a data set may need to know of the trial."""

    seed: int
    ruler: Ruler
    """How the target counts the tokens of a text."""
    input_tokens: Lengths | None = None
    """`--input-tokens`; None when the user did not say."""
    output_tokens: Lengths | None = None


class Dataset(Protocol):
    """What every file in this folder provides."""

    def items(self, setting: Setting) -> ItemSource:
        """Read what there is to read and return the source of items."""
        ...


def parse(field: str, text: str) -> Dataset:
    """The data set that `--data NAME[:settings]` asks for; raises BadInput naming `field`."""
    found: Dataset = plugins.parse(field, __name__, text)
    return found
