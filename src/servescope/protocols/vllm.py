"""vLLM's first server, `POST /generate` of `vllm.entrypoints.api_server`, 2023 to 2025.

A stream is bare JSON frames, each ended by NUL (later by a newline) and each with the prompt and
all text so far. Nothing tells counts, a finish reason or the end: the body's end is the answer's.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import msgspec

from servescope.protocols import (
    Ask,
    Event,
    ProtocolFault,
    Renderer,
    Reply,
    StreamDecoder,
    WireProtocol,
    _events,
    plain_text,
    sse,
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

    @property
    def event_mark(self) -> bytes:
        """In no text, where its quotes would be escaped."""
        return b'{"text":'

    @property
    def streams_json(self) -> bool:
        """A stream's first frame looks like an answer in one piece."""
        return True

    def path(self, *, stream: bool) -> str:  # noqa: ARG002
        """The same for both."""
        return "/generate"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; it holds the sampling parameters, so `extra` too."""
        body: dict[str, Any] = {"prompt": plain_text(ask.prompt), "max_tokens": ask.output_tokens}
        body |= {"stream": True} if ask.stream else {}
        body |= {"ignore_eos": True} if ask.ignore_eos else {}
        return msgspec.json.encode(body | ask.extra)

    def decoder(self) -> StreamDecoder:
        """A fresh decoder for one stream."""
        return _Decoder()

    def decode_whole(self, body: bytes) -> Event:
        """An answer that was not streamed."""
        return _events.decode_json(_whole, body)

    def parse(self, body: bytes, path: str) -> Ask:  # noqa: ARG002
        """What a request asks."""
        request = _events.parse_request(body, _REQUEST)
        return Ask(
            prompt=_events.prompt_of("prompt", request.prompt),
            output_tokens=_events.limit_of("max_tokens", request.max_tokens, 16),
            stream=bool(request.stream),
            ignore_eos=bool(request.ignore_eos),
        )

    def renderer(self, ask: Ask, reply: Reply) -> Renderer:
        """Frames of one stream."""
        del reply
        return _Renderer(ask)

    def render_whole(
        self, ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        del reply, output_tokens, finish_reason
        return msgspec.json.encode({"text": [plain_text(ask.prompt) + text]})

    def render_error(self, status: int, message: str) -> bytes:
        """An error body in the words of its web framework; its own has none."""
        del status
        return _error_json(message)


class _Decoder:
    """Frames of one stream."""

    def __init__(self) -> None:
        self._text = GrowingText(_OPENING)
        self._parts: list[bytes] = []
        self._size = 0
        self._came = False

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises ProtocolFault."""
        data = data.replace(b"\0", b"\n")
        *frames, rest = data.split(b"\n")
        if frames:
            frames[0] = b"".join([*self._parts, frames[0]])
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        if max(self._size, *map(len, frames), 0) > sse.MAX_EVENT_BYTES:
            words = f"a frame is larger than {sse.MAX_EVENT_BYTES:,} bytes"
            raise ProtocolFault("too_large", words)
        return [self._event(frame) for frame in frames if frame.strip()]

    def close(self) -> list[Event]:
        """Events completed by the end of the body: a frame without its NUL, and the end."""
        rest, events = b"".join(self._parts).strip(), []
        if rest:
            try:
                events.append(self._event(rest))
            except ProtocolFault:
                return []  # it was cut, so this is no end
        return [*events, Event(end=True)] if self._came else events

    def _event(self, frame: bytes) -> Event:
        event = _events.decode_json(self._decode, frame)
        self._came |= event.error is None
        return event

    def _decode(self, frame: bytes) -> Event:
        found = self._text.grow(frame)
        if found is not None:
            text, end = found
            if not _ENDING.fullmatch(frame, end):
                _whole(frame)  # several answers, or no JSON at all
            return Event(text=text)
        event = _whole(frame)
        if event.error is None:
            event.text = self._text.replace(event.text)
        return event


def _whole(data: bytes) -> Event:
    frame = _FRAME.decode(data)
    error = frame.detail if frame.error is None else frame.error
    if error is not None:
        return Event(error=_events.error_words(error))
    return Event(text=frame.text[0] if frame.text else "")


def _error_json(message: str) -> bytes:
    return msgspec.json.encode({"detail": message})


class _Renderer(_events.BareRenderer):
    """Frames of one stream, each with all before it."""

    def __init__(self, ask: Ask) -> None:
        self._frame = bytearray(b'{"text": [')
        self._frame += msgspec.json.encode(plain_text(ask.prompt))[:-1]

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """Prompt and text so far."""
        del output_tokens, finish_reason
        self._frame += msgspec.json.encode(text)[1:-1]
        return b"".join((self._frame, b'"]}\0'))

    def error(self, status: int, message: str) -> bytes:  # noqa: ARG002
        """An error in a stream that began with 200."""
        return _error_json(message) + b"\0"
