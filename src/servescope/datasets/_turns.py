"""What data sets of conversations have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.datasets import Message
from servescope.errors import BadInput
from servescope.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def history(asked: Sequence[str], answered: Iterable[str]) -> tuple[Message, ...]:
    """The messages of a conversation up to its last question, which has no answer yet."""
    return tuple(_messages(asked, answered))


def _messages(asked: Sequence[str], answered: Iterable[str]) -> Iterator[Message]:
    for question, answer in zip(asked[:-1], answered, strict=True):
        yield Message("user", question)
        yield Message("assistant", answer)
    yield Message("user", asked[-1])


def pause_s(think: str | None) -> float | None:
    """The seconds in a setting such as '2s'; raises ValueError saying what would be right."""
    try:
        return None if think is None else parse_duration_s("think", think)
    except BadInput as error:
        raise ValueError(f"think={think}: {error.want}") from None
