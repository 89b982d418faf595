"""What most wire formats share.

Typed JSON, events of a stream or lines of it, the server's words in an error, parts of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from servescope.protocols import sse
from servescope.protocols._exchange import Event, ProtocolFault, plain_text

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for what is no JSON, no UTF-8, of the wrong shape or nested too deep."""
DONE = b"data: [DONE]\n\n"


class LineStream:
    """Cuts a byte stream at its line ends, or, where it is `whole`, not at all."""

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Lines that `data` completes. Raises ProtocolFault('too_large')."""
        lines: list[bytes] = []
        if not self._whole and b"\n" in data:
            *lines, data = b"".join([*self._parts, data]).split(b"\n")
            self._parts, self._size = [], 0
        self._parts.append(data)
        self._size += len(data)
        if max(self._size, *map(len, lines), 0) > sse.MAX_EVENT_BYTES:
            raise ProtocolFault("too_large", sse.TOO_LARGE)
        return [line for line in lines if line.strip()]

    def close(self) -> list[bytes]:
        """The last line, whose end may be missing; what is no JSON was cut."""
        rest = b"".join(self._parts)
        try:
            msgspec.json.decode(rest)
        except UNREADABLE:
            return []
        return [rest]


class EventDecoder:
    """Events of one stream; `decode` turns the JSON of one event into its meaning.

    They are server-sent events unless `frames` cuts the stream otherwise. `alone` says that an
    event means the same whatever came before it, and that the text in it is only passed on.
    """

    def __init__(
        self,
        decode: Callable[[bytes], Event],
        frames: sse.EventStream | LineStream | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._decode = decode
        self._frames = frames or sse.EventStream()
        self.alone = alone

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises ProtocolFault."""
        return list(map(self._event, self._frames.feed(data)))

    def close(self) -> list[Event]:
        """Events completed by the end of the body. Raises ProtocolFault."""
        return [self._event(frame) for frame in self._frames.close()]

    @property
    def fresh(self) -> bool:
        """Whether it would read events from here on as a new one would."""
        return self.alone and isinstance(self._frames, sse.EventStream) and self._frames.fresh

    @property
    def stray(self) -> bytes:
        """What came last and is no event, if anything is."""
        return getattr(self._frames, "stray", b"")

    def _event(self, data: bytes) -> Event:
        said = data.strip()
        if said == b"[DONE]":
            return Event(end=True)
        if not said:
            return Event()  # an empty event keeps a connection alive
        return decode_json(self._decode, data)


def decode_json(decode: Callable[[bytes], Event], data: bytes) -> Event:
    """One event; malformed JSON or UTF-8 is a ProtocolFault that shows the bytes."""
    try:
        try:
            return decode(data)
        except msgspec.ValidationError:
            return decode(_without_counts(data))
    except UNREADABLE as error:
        raise ProtocolFault("protocol", f"{error}: {data[:120]!r}") from None


def _without_counts(data: bytes) -> bytes:
    """The same without what only counts: a count that cannot be is no reason to lose a text."""
    found = msgspec.json.decode(data)
    if isinstance(found, dict):
        found = {k: v for k, v in found.items() if k not in ("usage", "timings", "metrics")}
    return msgspec.json.encode(found)


def error_words(*said: Any) -> str | None:  # noqa: ANN401 (whatever JSON the server sent)
    """The server's own words in the first error object that is there, if one is."""
    for error in said:
        if isinstance(error, dict):
            message = error.get("message") or error.get("detail")
            return str(message) if message else msgspec.json.encode(error).decode()
        if error is not None:
            return str(error)
    return None


def event(data: bytes) -> bytes:
    """A server-sent event, an error as well as a piece of an answer."""
    return b"data: %b\n\n" % data


def parse_request(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:  # noqa: ANN401
    """The typed request; raises ProtocolFault in the words that a client should read."""
    try:
        return decoder.decode(body)
    except UNREADABLE as error:
        raise ProtocolFault("http_4xx", str(error)) from None


def limit_of(name: str, stated: int | None, default: int) -> int:
    """The most tokens that a request allows. Raises ProtocolFault where that is none."""
    limit = default if stated is None else stated
    if limit < 1:
        raise ProtocolFault("http_4xx", f"{name} must be at least 1, got {limit}.")
    return limit


def prompt_of(name: str, stated: str | list[int]) -> str | tuple[int, ...]:
    """The prompt of a request, text or token ids. Raises ProtocolFault where it is empty."""
    if not stated:
        raise ProtocolFault("http_4xx", f"{name} must not be empty")
    return stated if isinstance(stated, str) else tuple(stated)


class Part(msgspec.Struct):
    """A part of a message's content in a request."""

    type: str = ""
    text: str | None = None


def content_of(stated: str | Sequence[Part] | None) -> str:
    """A message's text; its parts become lines, as vLLM joins them. Raises ProtocolFault."""
    if isinstance(stated, str):
        return stated
    parts = stated or ()
    if other := [part.type for part in parts if part.text is None]:
        raise ProtocolFault("http_4xx", f"content of type {other[0]!r}: want text")
    return "\n".join(part.text or "" for part in parts)


def text_or_ids(prompt: str | tuple[Any, ...]) -> str | tuple[int, ...]:
    """A prompt for formats that take a text or token ids: messages become paragraphs."""
    ids = isinstance(prompt, tuple) and prompt and isinstance(prompt[0], int)
    return prompt if ids else plain_text(prompt)
