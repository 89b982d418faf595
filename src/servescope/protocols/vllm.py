"""vLLM's first server, `POST /generate` of `vllm.entrypoints.api_server`, 2023 to 2025.

A stream is bare JSON frames, each ended by NUL (later by a newline) and each with the prompt and
all text so far. Nothing tells counts, a finish reason or the end: the body's end is the answer's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from servescope.protocols import (
    Ask,
    Event,
    EventDecoder,
    LineStream,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
    plain_text,
)
from servescope.protocols._growing import GrowingText


class _Frame(msgspec.Struct):
    text: list[str] | None = None
    error: Any = None
    detail: Any = None


class _Request(msgspec.Struct):
    prompt: str
    max_tokens: int | None = None
    stream: bool | None = None
    ignore_eos: bool | None = None


_FRAME = msgspec.json.Decoder(_Frame)
_REQUEST = msgspec.json.Decoder(_Request)
_OPENING = re.compile(rb'\s*\{"text": ?\["')
_ENDING = re.compile(rb"\s*\]\s*\}\s*")


class Vllm(WireProtocol, frozen=True, tag="vllm"):
    """vLLM's legacy /generate."""

    optional: ClassVar[tuple[str, ...]] = ("ignore_eos",)
    echoes_prompt: ClassVar[bool] = True
    refused_with: ClassVar[int] = 500
    route: ClassVar[str] = "/generate"
    event_mark: ClassVar[bytes] = b'{"text":'  # in no text, where its quotes are escaped
    streams_json: ClassVar[bool] = True

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; it holds the sampling parameters, so `extra` too."""
        body: dict[str, Any] = {"prompt": plain_text(ask.prompt), "max_tokens": ask.output_tokens}
        body |= {"stream": True} if ask.stream else {}
        body |= {"ignore_eos": True} if ask.ignore_eos else {}
        return msgspec.json.encode(body | ask.extra)

    def decoder(self) -> EventDecoder:
        """A fresh decoder for one stream."""
        return _Decoder(self.decode)

    def decode(self, data: bytes) -> Event:
        """An answer that was not streamed; a frame is like one."""
        frame = _FRAME.decode(data)
        error = _events.error_words(frame.error, frame.detail)
        return Event(text=frame.text[0] if frame.text and error is None else "", error=error)

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks."""
        request = _events.parse_request(body, _REQUEST)
        return Ask(
            prompt=_events.prompt_of("prompt", request.prompt),
            output_tokens=_events.limit_of("max_tokens", request.max_tokens, 16),
            stream=bool(request.stream),
            ignore_eos=bool(request.ignore_eos),
        )

    def renderer(self, ask: Ask, _reply: Reply) -> Renderer:
        """Frames of one stream."""
        return _Renderer(ask)

    def render_whole(
        self, ask: Ask, _reply: Reply, text: str, _output_tokens: int, _finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        return msgspec.json.encode({"text": [plain_text(ask.prompt) + text]})

    def render_error(self, _status: int, message: str) -> bytes:
        """An error body in the words of its web framework; its own has none."""
        return _error_json(message)


class _Decoder(EventDecoder):
    """Frames of one stream."""

    def __init__(self, whole: Callable[[bytes], Event]) -> None:
        super().__init__(self._frame, LineStream())
        self._whole = whole
        self._text = GrowingText(_OPENING)
        self._came = False

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises ProtocolFault."""
        return super().feed(data.replace(b"\0", b"\n"))

    def close(self) -> list[Event]:
        """Events completed by the end of the body: a frame without its NUL, and the end."""
        try:
            events = self.feed(b"\0")
        except ProtocolFault:
            return []  # it was cut, so this is no end
        return [*events, Event(end=True)] if self._came else events

    def _event(self, frame: bytes) -> Event:
        event = _events.decode_json(self._decode, frame)
        self._came |= event.error is None
        return event

    def _frame(self, frame: bytes) -> Event:
        found = self._text.grow(frame)
        if found is not None:
            text, end = found
            if not _ENDING.fullmatch(frame, end):
                self._whole(frame)  # several answers, or no JSON at all
            return Event(text=text)
        event = self._whole(frame)
        if event.error is None:
            event.text = self._text.replace(event.text)
        return event


def _error_json(message: str) -> bytes:
    return msgspec.json.encode({"detail": message})


class _Renderer(Renderer):
    """Frames of one stream, each with all before it."""

    def __init__(self, ask: Ask) -> None:
        self._frame = bytearray(b'{"text": [')
        self._frame += msgspec.json.encode(plain_text(ask.prompt))[:-1]

    def chunk(self, text: str, _output_tokens: int, _finish_reason: str | None) -> bytes:
        """Prompt and text so far."""
        self._frame += msgspec.json.encode(text)[1:-1]
        return b"".join((self._frame, b'"]}\0'))

    def error(self, _status: int, message: str) -> bytes:
        """An error in a stream that began with 200."""
        return _error_json(message) + b"\0"
