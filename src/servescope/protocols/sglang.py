"""SGLang's own `POST /generate`.

Each event repeats all text so far (and all ids); `meta_info` counts exactly. Overload and bad input
come inside a stream that began with 200, as a finish reason `abort` and as an error object.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import msgspec

from servescope.protocols import (
    Ask,
    Event,
    EventDecoder,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
)
from servescope.protocols._growing import GrowingText


class _Finish(msgspec.Struct):
    type: str | None = None
    message: str | None = None


class _Meta(msgspec.Struct):
    finish_reason: _Finish | str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    queue_time: float | None = None
    first_token_latency: float | None = None
    e2e_latency: float | None = None


class _Answer(msgspec.Struct):
    """An event of a stream, or an answer in one piece."""

    text: str | None = None
    meta_info: _Meta | None = None
    error: Any = None
    detail: Any = None


class _Sampling(msgspec.Struct):
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    ignore_eos: bool | None = None


class _Request(msgspec.Struct):
    text: str | None = None
    input_ids: list[int] | None = None
    sampling_params: _Sampling | None = None
    stream: bool | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_REQUEST = msgspec.json.Decoder(_Request)
_OPENING = re.compile(rb'\s*\{\s*"text"\s*:\s*"')


class Sglang(WireProtocol, frozen=True, tag="sglang"):
    """SGLang's native /generate."""

    optional: ClassVar[tuple[str, ...]] = ("min_tokens", "ignore_eos")
    takes_ids: ClassVar[bool] = True
    route: ClassVar[str] = "/generate"
    event_mark: ClassVar[bytes] = b'"meta_info":'  # in no text, where its quotes are escaped

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; `extra` goes into `sampling_params`."""
        sampling: dict[str, Any] = {"max_new_tokens": ask.output_tokens}
        sampling |= {"min_new_tokens": ask.output_tokens} if ask.min_tokens else {}
        sampling |= {"ignore_eos": True} if ask.ignore_eos else {}
        prompt = _events.text_or_ids(ask.prompt)
        body: dict[str, Any] = {"text" if isinstance(prompt, str) else "input_ids": prompt}
        body |= {"sampling_params": sampling | ask.extra}
        return msgspec.json.encode(body | ({"stream": True} if ask.stream else {}))

    def decoder(self) -> EventDecoder:
        """A fresh decoder for one stream."""
        return EventDecoder(_Stream().decode)

    def decode(self, data: bytes) -> Event:
        """An answer that was not streamed."""
        answer = _ANSWER.decode(data)
        return _event(answer, answer.text or "")

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks."""
        request = _events.parse_request(body, _REQUEST)
        if (request.text is None) == (request.input_ids is None):
            raise ProtocolFault("http_4xx", "Either text or input_ids should be provided.")
        stated = request.input_ids if request.text is None else request.text
        sampling = request.sampling_params or _Sampling()
        limit = _events.limit_of("max_new_tokens", sampling.max_new_tokens, 128)
        return Ask(
            prompt=_events.prompt_of("text or input_ids", stated),
            output_tokens=limit,
            stream=bool(request.stream),
            ignore_eos=bool(sampling.ignore_eos),
            min_tokens=bool(sampling.min_new_tokens and sampling.min_new_tokens >= limit),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream."""
        return _Renderer(reply)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        ids = _ids(1, output_tokens)
        finish = _finish(finish_reason, output_tokens)
        inner = msgspec.json.encode(text)[1:-1]
        return _answer_json(inner, ids, _meta(reply), output_tokens, finish)

    def render_error(self, status: int, message: str) -> bytes:
        """An error body: overload as the web framework words it, the rest as SGLang does."""
        if status == 503:
            return msgspec.json.encode({"detail": message})
        return msgspec.json.encode({"error": {"message": message}})


class _Stream:
    """Events of one stream, each of which is decoded only where it is new."""

    def __init__(self) -> None:
        self._text = GrowingText(_OPENING)

    def decode(self, data: bytes) -> Event:
        found = self._text.grow(data)
        if found is not None:
            return _event(_from_meta(data, found[1]), found[0])
        answer = _ANSWER.decode(data)
        return _event(answer, "" if answer.text is None else self._text.replace(answer.text))


def _from_meta(data: bytes, end: int) -> _Answer:
    """An event without what stands between its text and `meta_info`: all ids so far."""
    at = data.find(b'"meta_info"', end)
    try:
        return _ANSWER.decode(b"{" + data[at:] if at > 0 else data)
    except msgspec.DecodeError:
        return _ANSWER.decode(data)


def _event(answer: _Answer, text: str) -> Event:
    event = Event(text=text, error=_events.error_words(answer.error, answer.detail))
    meta = answer.meta_info
    if meta is None:
        return event
    event.input_tokens, event.output_tokens = meta.prompt_tokens, meta.completion_tokens
    event.reasoning_tokens, event.cached_tokens = meta.reasoning_tokens, meta.cached_tokens
    times = {
        "queue_s": meta.queue_time,
        "ttft_s": meta.first_token_latency,
        "e2e_s": meta.e2e_latency,
    }
    event.server_s = {name: s for name, s in times.items() if s is not None} or None
    if isinstance(meta.finish_reason, _Finish):
        event.finish_reason = meta.finish_reason.type
        if event.finish_reason == "abort":
            event.error = meta.finish_reason.message or "finish reason 'abort'"
    else:
        event.finish_reason = meta.finish_reason
    return event


def _finish(reason: str, output_tokens: int) -> dict[str, Any]:
    detail = {"length": output_tokens} if reason == "length" else {"matched": 2}
    return {"type": reason} | detail


def _ids(first: int, last: int) -> bytes:
    """Token ids from one token of the answer to another: they are numbers of no meaning."""
    return b"".join(b",%d" % n if n > 1 else b"1" for n in range(first, last + 1))


def _meta(reply: Reply) -> bytes:
    """The part of `meta_info` that stays the same."""
    head = {"id": reply.id, "prompt_tokens": reply.input_tokens}
    return msgspec.json.encode(head | {"cached_tokens": reply.cached_tokens})[:-1]


def _answer_json(
    text: bytes | bytearray,
    ids: bytes | bytearray,
    meta: bytes,
    output_tokens: int,
    finish: dict[str, Any] | None,
) -> bytes:
    """An answer so far; text and ids are JSON without what encloses them."""
    counted = b',"completion_tokens":%d,"finish_reason":' % output_tokens
    reason = b"null" if finish is None else msgspec.json.encode(finish)
    head, middle = b'{"text":"', b'","output_ids":['
    return b"".join((head, text, middle, ids, b'],"meta_info":', meta, counted, reason, b"}}"))


class _Renderer(Renderer):
    """Events of one stream, each with all text and ids before it."""

    def __init__(self, reply: Reply) -> None:
        self._text, self._ids, self._tokens = bytearray(), bytearray(), 0
        self._meta = _meta(reply)

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """All text and ids so far."""
        self._text += msgspec.json.encode(text)[1:-1]
        self._ids += _ids(self._tokens + 1, output_tokens)
        self._tokens = output_tokens
        return self._event(None if finish_reason is None else _finish(finish_reason, output_tokens))

    def closing(self, _output_tokens: int) -> bytes:
        """The end marker."""
        return _events.DONE

    def error(self, status: int, message: str) -> bytes:
        """Overload is an answer that is aborted; the rest is an error object."""
        if status == 503:
            abort = {"type": "abort", "status_code": status, "message": message}
            return self._event(abort) + _events.DONE
        error = {"message": message, "type": "invalid_request_error", "code": status}
        body = msgspec.json.encode({"error": error | {"retryable": False}})
        return _events.event(body) + _events.DONE

    def _event(self, finish: dict[str, Any] | None) -> bytes:
        body = _answer_json(self._text, self._ids, self._meta, self._tokens, finish)
        return _events.event(body)
