"""llama.cpp's own `POST /completion`.

One event a token, also where the text is still empty, and a last one with `stop: true` and no text.
No `[DONE]`. Every event counts the tokens so far.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from servescope.protocols import Ask, Event, Renderer, Reply, WireProtocol, _events

_STOP_TYPES = {"length": "limit", "stop": "eos"}
_ERRORS = {400: "invalid_request_error", 404: "not_found_error", 503: "unavailable_error"}


class _Timings(msgspec.Struct):
    """Times in milliseconds."""

    cache_n: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class _Answer(msgspec.Struct):
    """An event of a stream, or an answer in one piece."""

    content: str = ""
    stop: bool = False
    stop_type: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    timings: _Timings | None = None
    error: Any = None


class _Request(msgspec.Struct):
    prompt: str | list[int]
    n_predict: int | None = None
    model: str | None = None
    stream: bool | None = None
    ignore_eos: bool | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_REQUEST = msgspec.json.Decoder(_Request)


class LlamaCpp(WireProtocol, frozen=True, tag="llamacpp"):
    """llama.cpp's native /completion."""

    optional: ClassVar[tuple[str, ...]] = ("ignore_eos",)
    takes_ids: ClassVar[bool] = True
    route: ClassVar[str] = "/completion"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; it holds the sampling parameters, so `extra` too."""
        body: dict[str, Any] = {"prompt": _events.text_or_ids(ask.prompt)}
        body |= {"n_predict": ask.output_tokens}
        body |= {"model": ask.model} if ask.model else {}
        body |= {"stream": True} if ask.stream else {}
        body |= {"ignore_eos": True} if ask.ignore_eos else {}
        return msgspec.json.encode(body | ask.extra)

    def decode(self, data: bytes) -> Event:
        """An event of a stream, or an answer in one piece."""
        answer = _ANSWER.decode(data)
        event = Event(
            text=answer.content,
            input_tokens=answer.tokens_evaluated,
            output_tokens=answer.tokens_predicted,
            end=answer.stop,
            finish_reason=answer.stop_type if answer.stop else None,
            error=_events.error_words(answer.error),
        )
        if answer.timings is not None:
            timings = answer.timings
            times = {"prefill_s": timings.prompt_ms, "decode_s": timings.predicted_ms}
            event.server_s = {name: ms / 1e3 for name, ms in times.items() if ms is not None}
            event.cached_tokens = timings.cache_n
        return event

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks; one without end, which is upstream's default, gets 16 tokens."""
        request = _events.parse_request(body, _REQUEST)
        return Ask(
            prompt=_events.prompt_of("prompt", request.prompt),
            model=request.model or "",
            output_tokens=_events.limit_of("n_predict", request.n_predict, 16),
            stream=bool(request.stream),
            ignore_eos=bool(request.ignore_eos),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream."""
        return _Renderer(reply)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        return _final_json(reply, text, output_tokens, finish_reason)

    def render_error(self, status: int, message: str) -> bytes:
        """An error body."""
        return _error_json(status, message)


def _final_json(reply: Reply, text: str, output_tokens: int, finish_reason: str) -> bytes:
    final = {
        "index": 0,
        "content": text,
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": reply.model,
        "tokens_predicted": output_tokens,
        "tokens_evaluated": reply.input_tokens,
        "truncated": False,
        "stop_type": _STOP_TYPES.get(finish_reason, finish_reason),
        "stopping_word": "",
        "tokens_cached": reply.input_tokens + output_tokens - 1,
        "timings": {"cache_n": reply.cached_tokens},
    }
    return msgspec.json.encode(final)


def _error_json(status: int, message: str) -> bytes:
    error = {"code": status, "message": message, "type": _ERRORS.get(status, "server_error")}
    return msgspec.json.encode({"error": error})


class _Renderer(Renderer):
    """Events of one stream."""

    def __init__(self, reply: Reply) -> None:
        self._reply, self._finish_reason = reply, "stop"
        self._end = b',"tokens_evaluated":%d}\n\n' % reply.input_tokens

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """New text."""
        self._finish_reason = finish_reason or self._finish_reason
        return (
            b'data: {"index":0,"content":%b,"tokens":[%d],"stop":false,"id_slot":-1,'
            b'"tokens_predicted":%d%b'
        ) % (msgspec.json.encode(text), output_tokens, output_tokens, self._end)

    def closing(self, output_tokens: int) -> bytes:
        """The event that tells why it stopped."""
        final = _final_json(self._reply, "", output_tokens, self._finish_reason)
        return _events.event(final)

    def error(self, status: int, message: str) -> bytes:
        """An error in a stream that began with 200; nothing follows it."""
        return _events.event(_error_json(status, message))
