"""OpenAI responses, `POST /v1/responses`, as OpenAI, vLLM, SGLang and llama.cpp speak it.

Rules that the servers force on a reader: only events whose type ends with `.delta` bring something
new, what ends with `.done` and the response at the end repeat it; the name of a function stands in
the item that begins; usage comes once, with the event that ends the stream, of which there are
three: completed, incomplete and failed; no [DONE] need follow. The finish reason is `completed`, or
why the answer is incomplete, such as `max_output_tokens`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from servescope.datasets import Message
from servescope.protocols import (
    Ask,
    Event,
    EventDecoder,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
    _openai,
    messages_of,
)

_CONTENT = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "text",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
    "response.custom_tool_call_input.delta": "tool",
}
"""Where the text of an event belongs."""
_LAST = ("response.completed", "response.incomplete", "response.failed")


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    usage: _Usage | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None


class _Part(_events.Part):
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    name: str | None = None
    arguments: Any = None
    input: Any = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None


class _Whole(_Response):
    output: list[_Item] | None = None


class _NewItem(msgspec.Struct):
    type: str = ""
    name: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: Any = None
    item: _NewItem | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None


class _Input(msgspec.Struct):
    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None


class _Request(msgspec.Struct):
    input: str | list[_Input]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    ignore_eos: bool | None = None


_EVENT = msgspec.json.Decoder(_Event)
_WHOLE = msgspec.json.Decoder(_Whole)
_REQUEST = msgspec.json.Decoder(_Request)


class OpenAIResponses(WireProtocol, frozen=True, tag="openai-responses"):
    """OpenAI responses."""

    least_tokens: ClassVar[int] = 16  # OpenAI's own rule
    optional: ClassVar[tuple[str, ...]] = ("ignore_eos",)  # vLLM's; its other extras differ
    route: ClassVar[str] = "/v1/responses"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request."""
        prompt = ask.prompt if isinstance(ask.prompt, str) else messages_of(ask.prompt)
        body = {"model": ask.model, "input": prompt, "max_output_tokens": ask.output_tokens}
        if ask.stream:
            body["stream"] = True
        if ask.ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body | ask.extra)

    def decoder(self) -> EventDecoder:
        """A fresh decoder for one stream; its events look different from an answer in one piece."""
        return EventDecoder(_piece, alone=True)

    def decode(self, data: bytes) -> Event:
        """An answer that was not streamed."""
        whole = _WHOLE.decode(data)
        event = Event()
        _end(event, whole, whole.status)
        for item in whole.output or ():
            content = _text(item.content)
            if item.type == "reasoning":
                event.reasoning += _text(item.summary) + content
            elif item.type == "message":
                event.text += content
            elif item.type in ("function_call", "custom_tool_call"):
                event.tool += (item.name or "") + str(item.arguments or item.input or "")
        return event

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks. The limit is 16 tokens where none is stated."""
        request = _events.parse_request(body, _REQUEST)
        if not request.input:
            raise ProtocolFault("http_4xx", "input must not be empty")
        return Ask(
            prompt=_prompt(request),
            model=request.model or "",
            output_tokens=_events.limit_of("max_output_tokens", request.max_output_tokens, 16),
            stream=bool(request.stream),
            ignore_eos=bool(request.ignore_eos),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream: a response with one message with one text."""
        return _Renderer(reply)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        return msgspec.json.encode(_ended(reply, text, output_tokens, finish_reason))

    def render_error(self, status: int, message: str) -> bytes:
        """An error body."""
        return _openai.error_json(status, message)


def _prompt(request: _Request) -> str | tuple[Message, ...]:
    """The input as it came; instructions become a system message before it."""
    if isinstance(request.input, str):
        if request.instructions is None:
            return request.input
        messages = [Message("user", request.input)]
    else:
        messages = [_message(item) for item in request.input]
    if request.instructions is not None:
        messages.insert(0, Message("system", request.instructions))
    return tuple(messages)


def _message(item: _Input) -> Message:
    if item.type != "message" or item.role is None:
        raise ProtocolFault("http_4xx", f"input of type {item.type!r}: want messages with a role")
    return Message(item.role, _events.content_of(item.content))


# --- events ---------------------------------------------------------------------------------------


def _piece(data: bytes) -> Event:
    chunk = _EVENT.decode(data)
    event = Event()
    if chunk.type in _CONTENT:
        if isinstance(chunk.delta, str):
            setattr(event, _CONTENT[chunk.type], chunk.delta)
    elif chunk.type in _LAST:
        response = chunk.response or _Response()
        _end(event, response, response.status or chunk.type.removeprefix("response."))
        event.end = True
    elif chunk.type == "response.output_item.added":
        if chunk.item is not None and chunk.item.type in ("function_call", "custom_tool_call"):
            event.tool = chunk.item.name or ""
    elif chunk.error is not None or chunk.type == "error":
        event.error = _events.error_words(chunk.error or chunk.message or "error")
    return event


def _text(parts: list[_Part] | None) -> str:
    return "".join(part.text or part.refusal or "" for part in parts or ())


def _end(event: Event, response: _Response, status: str | None) -> None:
    """Note how a response ended, and its usage."""
    usage = response.usage
    if usage is not None:
        event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
        if usage.input_tokens_details is not None:
            event.cached_tokens = usage.input_tokens_details.cached_tokens
        if usage.output_tokens_details is not None:
            event.reasoning_tokens = usage.output_tokens_details.reasoning_tokens
    if response.error is not None or status in ("failed", "cancelled"):
        event.error = _events.error_words(response.error or f"the response was {status}")
    elif status == "completed":
        event.finish_reason = status
    elif status == "incomplete":
        details = response.incomplete_details
        event.finish_reason = (details.reason if details else None) or status


# --- what the server half sends -------------------------------------------------------------------


def _begun(reply: Reply) -> dict[str, Any]:
    """A response of which nothing has come."""
    return {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": reply.created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": reply.model,
        "output": [],
        "parallel_tool_calls": True,  # this and the next two: strict clients refuse their absence
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }


def _ended(reply: Reply, text: str, output_tokens: int, finish_reason: str) -> dict[str, Any]:
    cut = finish_reason == "length"
    status = "incomplete" if cut else "completed"
    return _begun(reply) | {
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_item(reply, status, [_part(text)])],
        "usage": {
            "input_tokens": reply.input_tokens,
            "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.input_tokens + output_tokens,
        },
    }


def _item(reply: Reply, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": f"msg_{reply.id}", "type": "message", "status": status, "role": "assistant"}
    return head | {"content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class _Renderer:
    """Events of one stream; what all texts have in common is rendered once."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._sequence = 0
        self._texts: list[str] = []
        self._finish = "stop"
        self._at = {"item_id": f"msg_{reply.id}", "output_index": 0, "content_index": 0}
        start = {"type": "response.output_text.delta"} | self._at | {"logprobs": []}
        self._start = b"event: response.output_text.delta\ndata: " + msgspec.json.encode(start)[:-1]

    def opening(self) -> bytes:
        """The response, its message and its text, all of them empty."""
        response = _begun(self._reply)
        item = _item(self._reply, "in_progress", [])
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._event("response.content_part.added", **self._at, part=_part(""))
        )

    def chunk(self, text: str, _output_tokens: int, finish_reason: str | None) -> bytes:
        """New text."""
        self._texts.append(text)
        self._finish = finish_reason or self._finish
        number, self._sequence = self._sequence, self._sequence + 1
        delta = msgspec.json.encode(text)
        return b'%b,"sequence_number":%d,"delta":%b}\n\n' % (self._start, number, delta)

    def closing(self, output_tokens: int) -> bytes:
        """The text, its message and the response, all of them whole."""
        text = "".join(self._texts)
        response = _ended(self._reply, text, output_tokens, self._finish)
        return (
            self._event("response.output_text.done", **self._at, text=text, logprobs=[])
            + self._event("response.content_part.done", **self._at, part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=response["output"][0])
            # As vLLM says even where the limit cut it: many clients read usage from no other event.
            + self._event("response.completed", response=response)
        )

    def error(self, status: int, message: str) -> bytes:
        """An error event; nothing follows it."""
        return self._event("error", code=str(status), message=message, param=None)

    def _event(self, kind: str, **more: object) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence} | more
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(body))
