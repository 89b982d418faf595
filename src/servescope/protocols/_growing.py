"""Streams whose events each repeat all the text so far.

An answer of n tokens comes as n events of up to n tokens, megabytes for a long one. Decoding each
would cost the square of the length, so its bytes are compared with those of the event before, and
only what is new is decoded.
"""

from __future__ import annotations

import re

import msgspec

_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"')
_STRING = msgspec.json.Decoder(str)


def added(before: str, text: str) -> str:
    """What is new in a text that comes after another.

    It may also differ from that: a replacement character that became a letter, or the words before
    a stop word that is cut off.
    """
    if text.startswith(before):
        return text[len(before) :]
    pairs = enumerate(zip(before, text, strict=False))
    return text[next((at for at, (a, b) in pairs if a != b), len(text)) :]


class GrowingText:
    """The text of one stream; `opening` matches an event up to the quote that begins its text."""

    def __init__(self, opening: re.Pattern[bytes]) -> None:
        self._opening = opening
        self._stem = b""
        """The event before, up to the quote that ends its text."""
        self._text = ""

    def grow(self, event: bytes) -> tuple[str, int] | None:
        """The new part of the text and where the text's JSON ends; None: decode it all.

        Raises what msgspec raises for a string that is none.
        """
        known = bool(self._stem) and event.startswith(self._stem)
        if known:
            start = len(self._stem)
        elif opening := self._opening.match(event):
            start = opening.end()
        else:
            return None
        rest = _REST_OF_STRING.match(event, start)
        if rest is None:
            return None
        text = _STRING.decode(b'"' + event[start : rest.end()])
        if known:
            self._text += text
        else:
            text = self.replace(text)
        self._stem = event[: rest.end() - 1]
        return text, rest.end()

    def replace(self, text: str) -> str:
        """What is new in a text that was decoded in whole."""
        before, self._text, self._stem = self._text, text, b""
        return added(before, text)
