"""Keys and passwords: they do not show themselves, and are hidden where a server shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

LEAST_CHARS = 6
"""A text that was cut inside a secret may end with its beginning; fewer characters tell nothing."""


S = TypeVar("S", bound=msgspec.Struct)


class Secret:
    """A key that does not show itself."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "***"

    def hide(self, text: str) -> str:
        """The text with stars for the secret, and for so much of it as a cut has left."""
        for size in range(len(self.value), min(LEAST_CHARS, len(self.value)) - 1, -1):
            text = text.replace(self.value[:size], "***")
        return text


def without(secrets: Iterable[Secret], said: S) -> S:
    """A struct that holds what a server said, with stars for secrets in all its texts."""
    changed: dict[str, str | list[str]] = {}
    for name in said.__struct_fields__:
        value = getattr(said, name)
        if isinstance(value, str):
            changed[name] = _hidden(secrets, value)
        elif isinstance(value, list) and value and isinstance(value[0], str):
            changed[name] = [_hidden(secrets, text) for text in value]
    return msgspec.structs.replace(said, **changed)


def _hidden(secrets: Iterable[Secret], text: str) -> str:
    for secret in secrets:
        text = secret.hide(text)
    return text
