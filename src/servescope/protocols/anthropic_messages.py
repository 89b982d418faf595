"""Anthropic messages, `POST /v1/messages`, as Anthropic, vLLM, SGLang and llama.cpp speak it.

Rules that the servers force on a reader: prompt tokens come with `message_start`, less those that
the cache held or took, which are told apart; output tokens come so far with `message_delta`, what
`message_start` says of them being a placeholder; the name of a tool stands in the block that
begins; `ping` may come at any time; vLLM lets a [DONE] follow.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from servescope.datasets import Message
from servescope.protocols import (
    Ask,
    Event,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
    messages_of,
)

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_STOP = {"length": "max_tokens", "stop": "end_turn"}


class _Details(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _Details | None = None


class _Block(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Start(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    """An event of a stream, or a whole answer."""

    type: str = ""
    message: _Start | str | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: Any = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_events.Part]


class _Request(msgspec.Struct):
    messages: list[_Message]
    max_tokens: int
    model: str | None = None
    system: str | list[_events.Part] | None = None
    stream: bool | None = None


_EVENT = msgspec.json.Decoder(_Event)
_REQUEST = msgspec.json.Decoder(_Request)


class AnthropicMessages(WireProtocol, frozen=True, tag="anthropic-messages"):
    """Anthropic messages."""

    headers: ClassVar[dict[str, str]] = {"anthropic-version": "2023-06-01"}
    key_header: ClassVar[str] = "x-api-key"
    busy_with: ClassVar[int] = 529
    route: ClassVar[str] = "/v1/messages"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; system messages at the beginning have a field of their own."""
        messages = messages_of(ask.prompt)
        least = len(messages) - 1  # one message there must be, whatever its role
        first = next((i for i in range(least) if messages[i].role != "system"), least)
        body: dict[str, Any] = {"model": ask.model, "max_tokens": ask.output_tokens}
        if first == 1:
            body["system"] = messages[0].content
        elif first > 1:
            body["system"] = [{"type": "text", "text": m.content} for m in messages[:first]]
        body["messages"] = messages[first:]
        if ask.stream:
            body["stream"] = True
        return msgspec.json.encode(body | ask.extra)

    def decode(self, data: bytes) -> Event:
        """An event of a stream, or an answer in one piece."""
        chunk = _EVENT.decode(data)
        event = Event(end=chunk.type == "message_stop", finish_reason=chunk.stop_reason)
        if isinstance(chunk.message, _Start):
            _count(event, chunk.message.usage)
            event.output_tokens = None
        else:
            _count(event, chunk.usage)
        for block in chunk.content or ():
            _take(event, block)
            event.tool += bytes(block.input).decode()
        if chunk.content_block is not None:
            _take(event, chunk.content_block)
        if chunk.delta is not None:
            event.text += chunk.delta.text or ""
            event.reasoning += chunk.delta.thinking or ""
            event.tool += chunk.delta.partial_json or ""
            event.finish_reason = chunk.delta.stop_reason
        if chunk.error is not None or chunk.type == "error":
            event.error = _events.error_words(chunk.error or chunk.message or "error")
        return event

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks; blocks of the system's text become messages at the beginning."""
        request = _events.parse_request(body, _REQUEST)
        if not request.messages:
            raise ProtocolFault("http_4xx", "messages: at least one message is required")
        system = request.system or []
        parts = [_events.Part("text", system)] if isinstance(system, str) else system
        before = [Message("system", _events.content_of([part])) for part in parts]
        messages = [Message(m.role, _events.content_of(m.content)) for m in request.messages]
        return Ask(
            prompt=(*before, *messages),
            model=request.model or "",
            output_tokens=_events.limit_of("max_tokens", request.max_tokens, 0),
            stream=bool(request.stream),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream: a message with one block of text."""
        return _Renderer(reply)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        more = {"content": [{"type": "text", "text": text}], "stop_reason": _STOP[finish_reason]}
        return msgspec.json.encode(_message(reply, output_tokens) | more)

    def render_error(self, status: int, message: str) -> bytes:
        """An error body; as an event of a stream it looks the same."""
        kind = _ERRORS.get(status, "api_error")
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


# --- events ---------------------------------------------------------------------------------------


def _take(event: Event, block: _Block) -> None:
    event.text += block.text or ""
    event.reasoning += block.thinking or ""
    event.tool += block.name or ""


def _count(event: Event, usage: _Usage | None) -> None:
    if usage is None:
        return
    event.cached_tokens = usage.cache_read_input_tokens
    if usage.input_tokens is not None:
        stored = usage.cache_creation_input_tokens or 0
        event.input_tokens = usage.input_tokens + stored + (event.cached_tokens or 0)
    event.output_tokens = usage.output_tokens
    if usage.output_tokens_details is not None:
        event.reasoning_tokens = usage.output_tokens_details.thinking_tokens


# --- what the server half sends -------------------------------------------------------------------


def _message(reply: Reply, output_tokens: int) -> dict[str, Any]:
    """A message of which nothing has come."""
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.input_tokens - reply.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reply.cached_tokens,
            "output_tokens": output_tokens,
        },
    }


class _Renderer:
    """Events of one stream."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._finish = "stop"

    def opening(self) -> bytes:
        """The message and its block, both of them empty."""
        block = {"type": "text", "text": ""}
        return (
            _event("message_start", message=_message(self._reply, 1))
            + _event("content_block_start", index=0, content_block=block)
            + _event("ping")
        )

    def chunk(self, text: str, _output_tokens: int, finish_reason: str | None) -> bytes:
        """New text."""
        self._finish = finish_reason or self._finish
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":%b}}\n\n' % msgspec.json.encode(text)
        )

    def closing(self, output_tokens: int) -> bytes:
        """Why it ended, and the count of tokens."""
        delta = {"stop_reason": _STOP[self._finish], "stop_sequence": None}
        return (
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=delta, usage={"output_tokens": output_tokens})
            + _event("message_stop")
        )

    def error(self, status: int, message: str) -> bytes:
        """An error event; nothing follows it."""
        error = {"type": _ERRORS.get(status, "api_error"), "message": message}
        return _event("error", error=error)


def _event(kind: str, **more: object) -> bytes:
    body = msgspec.json.encode({"type": kind} | more)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)
