"""One line of what is found."""

from __future__ import annotations

from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One thing about the machine."""

    name: str = ""
    value: str
    advice: str = ""
    """What to do about it where it limits, in a sentence."""
    facts: dict[str, Any] = {}
    """The value for programs; units are in the names."""
