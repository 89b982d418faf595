"""Facts to be found in a text: who paid or got how much, where and when."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from servescope.rulers import Ruler

GIVEN = (
    "Anna", "Bruno", "Clara", "Daniel", "Elena", "Felix", "Grace", "Henrik", "Irene", "Jonas",
    "Karin", "Lucas", "Maria", "Nils", "Olga", "Peter", "Rosa", "Simon", "Teresa", "Victor",
)  # fmt: skip
FAMILY = (
    "Adler", "Baker", "Castro", "Duarte", "Evans", "Fischer", "Garcia", "Hansen", "Ivanov",
    "Jensen", "Keller", "Lindqvist", "Moreau", "Novak", "Okafor", "Petrov", "Rossi", "Santos",
    "Tanaka", "Weber",
)  # fmt: skip
PLACES = (
    "Athens", "Berlin", "Cairo", "Dublin", "Geneva", "Havana", "Istanbul", "Kyoto", "Lisbon",
    "Madrid", "Nairobi", "Oslo", "Porto", "Quito", "Rome", "Seville", "Tokyo", "Utrecht",
    "Vienna", "Warsaw",
)  # fmt: skip
_DEEDS = ("paid", "received", "lent", "borrowed", "raised", "spent", "won", "lost")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_FIRST, _LAST = date(1900, 1, 1).toordinal(), date(1999, 12, 31).toordinal()


class Fact(NamedTuple):
    """One of them."""

    day: date
    person: str
    deed: str
    amount: int
    place: str

    @property
    def written_day(self) -> str:
        """Its date as it is written in a text: 14 March 1987."""
        return f"{self.day.day} {_MONTHS[self.day.month - 1]} {self.day.year}"

    def __str__(self) -> str:
        day = self.written_day
        return f"On {day} {self.person} {self.deed} {self.amount:,} dollars in {self.place}."


def draw(rng: np.random.Generator, n: int) -> list[Fact]:
    """`n` facts in no order, of `n` different days."""
    days = rng.choice(np.arange(_FIRST, _LAST + 1), size=n, replace=False)
    picks = rng.integers((len(GIVEN), len(FAMILY), len(_DEEDS), len(PLACES)), size=(n, 4))
    amounts = rng.integers(1_000, 100_000, size=n)
    return [
        Fact(date.fromordinal(day), f"{GIVEN[g]} {FAMILY[f]}", _DEEDS[d], amount, PLACES[p])
        for day, amount, (g, f, d, p) in zip(
            days.tolist(), amounts.tolist(), picks.tolist(), strict=True
        )
    ]


def longest(ruler: Ruler) -> Fact:
    """A fact that costs about as many tokens as any."""
    given, family, deed, place, month = (
        max(words, key=ruler.estimate) for words in (GIVEN, FAMILY, _DEEDS, PLACES, _MONTHS)
    )
    day = date(1999, _MONTHS.index(month) + 1, 28)
    return Fact(day, f"{given} {family}", deed, 99_999, place)


def strewn(prose: str, facts: list[Fact], spots: list[float]) -> str:
    """The prose with the facts between its sentences, fact k after the share `spots[k]` of it.

    Where there are no sentences, for want of full stops, they stand between its words.
    """
    words = prose.split()
    ends = [place for place, word in enumerate(words, 1) if word.endswith(".")]
    gaps = [0, *(ends or range(1, len(words) + 1))]
    parts: list[str] = []
    done = 0
    for spot, fact in sorted(zip(spots, facts, strict=True)):
        gap = gaps[int(spot * len(gaps))]
        parts += [*words[done:gap], str(fact)]
        done = gap
    return " ".join([*parts, *words[done:]])
