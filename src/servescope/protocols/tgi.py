"""Hugging Face TGI, `POST /generate_stream` and `POST /generate`, from 1.0 to today's 3.x.

One event a token. A special token such as `</s>` was generated and counts, but is no text: the
answer leaves it out. The event whose `generated_text` is not null is the last, and no `[DONE]`
follows. No length can be required: there is no `ignore_eos`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from msgspec import UNSET

from servescope.protocols import (
    Ask,
    Event,
    EventDecoder,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
    plain_text,
)

_FINISH = {"stop": "eos_token"}
_ERRORS = {422: "validation", 424: "generation", 429: "overloaded", 503: "overloaded"}


class _Token(msgspec.Struct):
    text: str = ""
    special: bool = False


class _Details(msgspec.Struct):
    finish_reason: str | None = None
    generated_tokens: int | None = None
    input_length: int | None = None


class _Answer(msgspec.Struct):
    """An event of a stream, or an answer in one piece."""

    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: Any = None


class _Parameters(msgspec.Struct):
    max_new_tokens: int | None = None
    ignore_eos: Any = UNSET


class _Request(msgspec.Struct):
    inputs: str
    parameters: _Parameters | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_REQUEST = msgspec.json.Decoder(_Request)


class Tgi(WireProtocol, frozen=True, tag="tgi"):
    """Hugging Face Text Generation Inference."""

    refused_with: ClassVar[int] = 422
    busy_with: ClassVar[int] = 429
    route: ClassVar[str] = "/generate_stream"
    whole_route: ClassVar[str] = "/generate"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; `extra` goes into `parameters`."""
        parameters = {"max_new_tokens": ask.output_tokens, "details": True}
        parameters |= {"decoder_input_details": False} | ask.extra
        return msgspec.json.encode({"inputs": plain_text(ask.prompt), "parameters": parameters})

    def decoder(self) -> EventDecoder:
        """A fresh decoder for one stream."""
        return EventDecoder(_Stream().decode)

    def decode(self, data: bytes) -> Event:
        """An answer that was not streamed; it does not tell the prompt's length."""
        answer = _ANSWER.decode(data)
        event = _without_text(answer)
        event.text = answer.generated_text or ""
        return event

    def parse(self, body: bytes, path: str) -> Ask:
        """What a request asks; with `ignore_eos` it is LightLLM's."""
        request = _events.parse_request(body, _REQUEST)
        parameters = request.parameters or _Parameters()
        if parameters.ignore_eos is not UNSET:
            raise ProtocolFault("http_4xx", "parameters has ignore_eos, which TGI does not know")
        return Ask(
            prompt=_events.prompt_of("inputs", request.inputs),
            output_tokens=_events.limit_of("max_new_tokens", parameters.max_new_tokens, 20),
            stream=path.endswith("_stream"),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream."""
        return _Renderer(reply)

    def render_whole(
        self, _ask: Ask, _reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        details = _details(output_tokens, finish_reason) | {"prefill": [], "tokens": []}
        return msgspec.json.encode({"generated_text": text, "details": details})

    def render_error(self, status: int, message: str) -> bytes:
        """An error body."""
        return _error_json(status, message)


def _without_text(answer: _Answer) -> Event:
    event = Event(error=_events.error_words(answer.error))
    if answer.details is not None:
        event.finish_reason = answer.details.finish_reason
        event.output_tokens = answer.details.generated_tokens
        event.input_tokens = answer.details.input_length
    return event


class _Stream:
    """Counts the tokens of one stream: each has its event."""

    def __init__(self) -> None:
        self._tokens = 0

    def decode(self, data: bytes) -> Event:
        answer = _ANSWER.decode(data)
        event = _without_text(answer)
        event.end = answer.generated_text is not None
        if answer.token is not None:
            self._tokens += 1
            event.text = "" if answer.token.special else answer.token.text
            event.output_tokens = event.output_tokens or self._tokens
        return event


def _error_json(status: int, message: str) -> bytes:
    kind = _ERRORS.get(status, "incomplete_generation")
    return msgspec.json.encode({"error": message, "error_type": kind})


class _Renderer(Renderer):
    """Events of one stream; the last repeats the whole text."""

    def __init__(self, reply: Reply) -> None:
        self._input_tokens = reply.input_tokens
        self._texts: list[str] = []
        self._tokens = 0

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """One event a token; of tokens that came together the last has the text."""
        silent = [self._event(n, "", None) for n in range(self._tokens + 1, output_tokens)]
        self._tokens = output_tokens
        self._texts.append(text)
        return b"".join([*silent, self._event(output_tokens, text, finish_reason)])

    def error(self, status: int, message: str) -> bytes:
        """An error in a stream that began with 200; nothing follows it."""
        return _events.event(_error_json(status, message))

    def _event(self, number: int, text: str, finish_reason: str | None) -> bytes:
        token = b'{"id":%d,"text":%b,"logprob":-0.5,"special":false}' % (
            number,
            msgspec.json.encode(text),
        )
        whole, details = b"null", b"null"
        if finish_reason is not None:
            whole = msgspec.json.encode("".join(self._texts))
            made = _details(number, finish_reason) | {"input_length": self._input_tokens}
            details = msgspec.json.encode(made)
        return b'data: {"index":%d,"token":%b,"generated_text":%b,"details":%b}\n\n' % (
            number,
            token,
            whole,
            details,
        )


def _details(output_tokens: int, finish_reason: str) -> dict[str, Any]:
    reason = _FINISH.get(finish_reason, finish_reason)
    return {"finish_reason": reason, "generated_tokens": output_tokens, "seed": None}
