"""Sessions: which later turns wait, when each may go, and what was answered before it.

The same in real and in virtual time: the caller says when a turn ended, and what its answer was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from servescope.datasets import Turn

W = TypeVar("W")
"""What a turn is to the caller."""
A = TypeVar("A")
"""What an answer is."""

Ready = Callable[[W, int, int, list[A]], None]
"""Called with a turn, when it is due, its user (-1: none) and the answers of its session so far."""


@dataclass(slots=True)
class _Later(Generic[W]):
    """A turn that waits for the answer before it."""

    what: W
    due_ns: int
    think_ns: int


@dataclass(slots=True)
class _Past(Generic[A]):
    """What has happened in a session."""

    turns: int = 0
    ended_ns: int = 0
    well: bool = True
    answers: list[A] = field(default_factory=list)


class Sessions(Generic[W, A]):
    """The sessions of one load process, or of a simulated stage."""

    def __init__(self, ready: Ready[W, A]) -> None:
        self._ready = ready
        self._waiting: dict[int, deque[_Later[W]]] = {}
        self._past: dict[int, _Past[A]] = {}
        self._lost: list[W] = []

    def __bool__(self) -> bool:
        """Whether turns wait."""
        return bool(self._waiting)

    def add(self, turn: Turn, what: W, *, due_ns: int, think_ns: int) -> None:
        """A later turn is known: it goes `think_ns` after the answer before it, not before due."""
        later, past = _Later(what, due_ns, think_ns), self._past.get(turn.session)
        if past is not None and not past.well:
            self._lost.append(what)
        elif past is None or past.turns < turn.number:
            self._waiting.setdefault(turn.session, deque()).append(later)
        else:
            self._go(later, past, -1)

    def ended(self, turn: Turn, at_ns: int, answer: A | None, user: int) -> bool:
        """A turn ended, well if there is an answer; whether its user goes on with the next one."""
        past = self._past.setdefault(turn.session, _Past())
        past.turns, past.ended_ns = turn.number + 1, at_ns
        if answer is None:
            past.well = False
        else:
            past.answers.append(answer)
        waiting = self._waiting.pop(turn.session, None)
        goes_on = bool(waiting) and past.well
        if waiting and past.well:
            self._go(waiting.popleft(), past, user)
            if waiting:
                self._waiting[turn.session] = waiting
        elif waiting:
            self._lost += [later.what for later in waiting]
        if turn.last:
            del self._past[turn.session]
        return goes_on and user >= 0

    def give_up(self, *, everything: bool = False) -> list[W]:
        """Turns that will never be due; with `everything`, also those whose session never began."""
        while everything and self._waiting:
            self._lost += [later.what for later in self._waiting.popitem()[1]]
        lost, self._lost = self._lost, []
        return lost

    def _go(self, later: _Later[W], past: _Past[A], user: int) -> None:
        due_ns = max(past.ended_ns + later.think_ns, later.due_ns)
        self._ready(later.what, due_ns, user, past.answers)
