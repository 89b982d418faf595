"""OpenAI chat completions, `POST /v1/chat/completions`, as vLLM, SGLang and llama.cpp speak it.

Rules that the servers force on a reader: a first delta may hold only the role, with content absent,
null or ""; the finish reason comes with the last token (vLLM) or in a chunk of its own (SGLang,
llama.cpp) and may be "" before; usage comes in a chunk without choices, in the finish chunk, in
every chunk or never; an error may arrive inside a stream that began with 200.
"""

from __future__ import annotations

from typing import ClassVar

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
    _openai,
    messages_of,
)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Part(_events.Part, kw_only=True):
    type: str


class _Delta(msgspec.Struct):
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    """How calls were said before there were several."""
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(_openai.ChunkBase):
    choices: list[_Choice] | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Request(_openai.RequestBase, kw_only=True):
    messages: list[_Message]


_CHUNK = msgspec.json.Decoder(_Chunk)
_REQUEST = msgspec.json.Decoder(_Request)


class OpenAIChat(WireProtocol, frozen=True, tag="openai-chat"):
    """OpenAI chat completions."""

    optional: ClassVar[tuple[str, ...]] = ("usage_each", "min_tokens", "ignore_eos", "usage")
    route: ClassVar[str] = "/v1/chat/completions"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; a plain text becomes one user message."""
        return msgspec.json.encode(_openai.options(ask) | {"messages": messages_of(ask.prompt)})

    def decode(self, data: bytes) -> Event:
        """A chunk, or an answer in one piece."""
        chunk = _CHUNK.decode(data)
        event = _openai.common_event(chunk)
        if chunk.choices:
            choice = chunk.choices[0]
            delta = choice.delta or choice.message
            if delta is not None:
                said = delta.content if isinstance(delta.content, str) else _joined(delta.content)
                event.text = said or delta.refusal or ""
                event.reasoning = delta.reasoning_content or delta.reasoning or ""
                if delta.tool_calls or delta.function_call:
                    calls = [call.function for call in delta.tool_calls or ()]
                    event.tool = "".join(map(_tool_text, [*calls, delta.function_call]))
            _openai.finish(event, choice.finish_reason)
        return event

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks."""
        request = _events.parse_request(body, _REQUEST)
        if not request.messages:
            raise ProtocolFault("http_4xx", "messages must not be empty")
        said = (Message(m.role, _events.content_of(m.content)) for m in request.messages)
        return _openai.ask_of(request, tuple(said))

    def renderer(self, ask: Ask, reply: Reply) -> Renderer:
        """Chunks of one stream; the first holds only the role."""
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        choice = b'{"index":0,"delta":{"content":@},"finish_reason":'
        return _openai.OpenAIRenderer(ask, reply, "chat.completion.chunk", choice, role)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return _openai.whole_json(reply, "chat.completion", choice, output_tokens)

    def render_error(self, status: int, message: str) -> bytes:
        """An error body."""
        return _openai.error_json(status, message)


def _tool_text(function: _Function | None) -> str:
    return "" if function is None else (function.name or "") + (function.arguments or "")


def _joined(parts: list[_Part] | None) -> str:
    return "".join(part.text or "" for part in parts or ())
