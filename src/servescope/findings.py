"""What an analysis found: one sentence with its number, its evidence and how strongly it is shown.

A finding is about the service; its sibling, the doubt, is about whether a figure can be believed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Strength = Literal["shown", "likely"]
"""`shown`: the interval leaves no other reading; `likely`: the number says so, without one."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of analysis."""

    kind: str
    """Which analysis found it: the name of its module, such as `steady` or `saturation`."""
    sentence: str
    """For people, with the number in it."""
    strength: Strength
    stage: int | None = None
    """Number of the stage, as in the records; None where it is about the whole run."""
    value: float | None = None
    """The number, in the unit that the sentence names."""
    evidence: dict[str, float | str | None] = {}
    """What it rests on, by name with the unit in it."""
