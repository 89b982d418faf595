"""What most wire formats share: typed JSON, server-sent events, the server's words in an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from servescope.protocols import Event, ProtocolFault, plain_text
from servescope.protocols.sse import EventStream

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for what is no JSON, no UTF-8, of the wrong shape or nested too deep."""
DONE = b"data: [DONE]\n\n"


class EventDecoder:
    """Events of one stream; `decode` turns the JSON of one event into its meaning."""

    def __init__(self, decode: Callable[[bytes], Event]) -> None:
        self._stream = EventStream()
        self._decode = decode

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises ProtocolFault."""
        return [self._event(e) for e in self._stream.feed(data)]

    def close(self) -> list[Event]:
        """Events completed by the end of the body. Raises ProtocolFault."""
        return [self._event(e) for e in self._stream.close()]

    def _event(self, data: bytes) -> Event:
        if data.strip() == b"[DONE]":
            return Event(end=True)
        if not data.strip():
            return Event()  # an empty event keeps a connection alive
        return decode_json(self._decode, data)


class BareRenderer:
    """A stream with nothing before its first token and nothing after its last."""

    def opening(self) -> bytes:
        """No bytes."""
        return b""

    def closing(self, output_tokens: int) -> bytes:  # noqa: ARG002
        """No bytes."""
        return b""


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


def error_words(error: Any) -> str:  # noqa: ANN401 (whatever JSON the server sent)
    """The server's own words in an error object."""
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail")
        return str(message) if message else msgspec.json.encode(error).decode()
    return str(error)


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


def text_or_ids(prompt: str | tuple[Any, ...]) -> str | tuple[int, ...]:
    """A prompt for formats that take a text or token ids: messages become paragraphs."""
    ids = isinstance(prompt, tuple) and prompt and isinstance(prompt[0], int)
    return prompt if ids else plain_text(prompt)
