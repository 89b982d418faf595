"""What OpenAI's two text endpoints share: events, usage, errors and the request's options."""

from __future__ import annotations

from typing import Any

import msgspec

from servescope.datasets import Message
from servescope.protocols import Ask, Event, Reply, _events

_BAD_FINISH = ("error", "abort")


class Details(msgspec.Struct):
    """`prompt_tokens_details`."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """`completion_tokens_details`."""

    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    """Token counts as the server made them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: CompletionDetails | None = None
    reasoning_tokens: int | None = None
    """SGLang has it here."""


class Timings(msgspec.Struct):
    """llama.cpp's `timings`, in milliseconds."""

    prompt_ms: float | None = None
    predicted_ms: float | None = None


class Metrics(msgspec.Struct):
    """vLLM's `metrics` (--enable-per-request-metrics), in milliseconds."""

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None


class ChunkBase(msgspec.Struct):
    """The fields of a chunk or an answer that do not depend on the endpoint."""

    usage: Usage | None = None
    timings: Timings | None = None
    metrics: Metrics | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    detail: Any = None


def common_event(chunk: ChunkBase) -> Event:
    """An event with everything but the content."""
    event = Event()
    usage = chunk.usage
    if usage is not None:
        event.input_tokens = usage.prompt_tokens
        event.output_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            event.cached_tokens = usage.prompt_tokens_details.cached_tokens
        event.reasoning_tokens = usage.reasoning_tokens
        if usage.completion_tokens_details is not None:
            event.reasoning_tokens = usage.completion_tokens_details.reasoning_tokens
    if chunk.timings is not None or chunk.metrics is not None:
        event.server_s = _server_times(chunk.timings, chunk.metrics)
    error = chunk.error or None
    if error is None and not getattr(chunk, "choices", None):
        # SGLang's flat form, FastAPI's, and what `event: error` brings
        error = chunk.message or chunk.detail or ("error" if chunk.object == "error" else None)
    event.error = _events.error_words(error)
    return event


def _server_times(timings: Timings | None, metrics: Metrics | None) -> dict[str, float]:
    times: dict[str, float | None] = {}
    if timings is not None:
        times = {"prefill_s": timings.prompt_ms, "decode_s": timings.predicted_ms}
    if metrics is not None:
        times |= {
            "ttft_s": metrics.time_to_first_token_ms,
            "decode_s": metrics.generation_time_ms,
            "queue_s": metrics.queue_time_ms,
        }
    return {name: ms / 1e3 for name, ms in times.items() if ms is not None}


def finish(event: Event, reason: str | None) -> None:
    """Note a finish reason; some servers send an empty string until the last chunk."""
    if reason:
        event.finish_reason = reason
        if reason in _BAD_FINISH and event.error is None:
            event.error = f"finish reason {reason!r}"


def options(ask: Ask) -> dict[str, Any]:
    """The body's fields that both endpoints share."""
    limit = "max_completion_tokens" if ask.max_completion_tokens else "max_tokens"
    body: dict[str, Any] = {"model": ask.model, limit: ask.output_tokens}
    if ask.stream:
        body["stream"] = True
        usage = {"include_usage": True} if ask.usage or ask.usage_each else {}
        if ask.usage_each:
            usage["continuous_usage_stats"] = True
        if usage:
            body["stream_options"] = usage
    if ask.ignore_eos:
        body["ignore_eos"] = True
    if ask.min_tokens:
        body["min_tokens"] = ask.output_tokens
    return body | ask.extra


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RequestBase(msgspec.Struct, kw_only=True):
    """The fields of a request that both endpoints share, for the server half.

    All may be null: clients send null for what their user left out.
    """

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None


def ask_of(request: RequestBase, prompt: str | tuple[int, ...] | tuple[Message, ...]) -> Ask:
    """What a parsed request asks. The limit is 16 tokens where none is stated, as upstream."""
    stated = (request.max_completion_tokens, request.max_tokens)
    limit = next((number for number in stated if number is not None), None)
    tokens = _events.limit_of("max_tokens", limit, 16)
    stream = request.stream_options or StreamOptions()
    return Ask(
        prompt=prompt,
        model=request.model or "",
        output_tokens=tokens,
        stream=bool(request.stream),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=bool(request.min_tokens and request.min_tokens >= tokens),
        usage=bool(stream.include_usage),
        usage_each=bool(stream.include_usage and stream.continuous_usage_stats),
        max_completion_tokens=request.max_completion_tokens is not None,
    )


def usage_json(reply: Reply, output_tokens: int) -> dict[str, Any]:
    """The usage object that the server half renders."""
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": reply.input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def whole_json(reply: Reply, kind: str, choice: dict[str, Any], output_tokens: int) -> bytes:
    """An answer in one piece."""
    head = {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}
    usage = usage_json(reply, output_tokens)
    return msgspec.json.encode(head | {"choices": [choice], "usage": usage})


class OpenAIRenderer:
    """Chunks of one stream; what all of them have in common is rendered once.

    `choice` is a chunk's choice up to its finish reason, with `@` where the text belongs.
    """

    def __init__(self, ask: Ask, reply: Reply, kind: str, choice: bytes, opening: Any) -> None:  # noqa: ANN401 (a choice as JSON, or None)
        head = {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}
        self._ask, self._reply = ask, reply
        self._head = msgspec.json.encode(head)[:-1]
        self._start, self._middle = choice.split(b"@")
        self._start = b"data: " + self._head + b',"choices":[' + self._start
        self._opening = opening

    def opening(self) -> bytes:
        """The chunk that holds only the role, where there is one."""
        return b"" if self._opening is None else self._event({"choices": [self._opening]})

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """New text."""
        reason = b"null" if finish_reason is None else b'"%b"' % finish_reason.encode()
        usage = b""
        if self._ask.usage_each:
            usage = b',"usage":' + msgspec.json.encode(usage_json(self._reply, output_tokens))
        return b"%b%b%b%b}]%b}\n\n" % (
            self._start,
            msgspec.json.encode(text),
            self._middle,
            reason,
            usage,
        )

    def closing(self, output_tokens: int) -> bytes:
        """Usage where it was asked for, and the end marker."""
        if not self._ask.usage:
            return _events.DONE
        usage = usage_json(self._reply, output_tokens)
        return self._event({"choices": [], "usage": usage}) + _events.DONE

    def error(self, status: int, message: str) -> bytes:
        """An error as vLLM sends it into a stream that began with 200."""
        return _events.event(error_json(status, message)) + _events.DONE

    def _event(self, more: dict[str, Any]) -> bytes:
        return _events.event(b"%b,%b" % (self._head, msgspec.json.encode(more)[1:]))


def error_json(status: int, message: str) -> bytes:
    """An error body as vLLM words it."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 503: "Service Unavailable"}
    kind = kinds.get(status, "InternalServerError")
    error = {"message": message, "type": kind, "param": None, "code": status}
    return msgspec.json.encode({"error": error})
