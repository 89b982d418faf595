"""Keys and passwords: they do not show themselves, and are hidden where a server shows them."""

from __future__ import annotations

LEAST_CHARS = 6
"""A text that was cut inside a secret may end with its beginning; fewer characters tell nothing."""


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
