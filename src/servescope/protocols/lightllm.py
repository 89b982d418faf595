"""LightLLM, `POST /generate_stream` and `POST /generate`, from 2023 to today.

Since 2024 an event tells its counts and whether the answer is `finished`. The events of 2023 told
neither: then the end of the body is the end of the answer. No `[DONE]` in any version.
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


class _Token(msgspec.Struct):
    text: str = ""
    count_output_tokens: int | None = None
    prompt_tokens: int | None = None


class _Error(msgspec.Struct):
    error: Any = None
    message: Any = None


class _Chunk(_Error):
    token: _Token | None = None
    finished: bool | None = None
    finish_reason: str | None = None


class _Whole(_Error):
    generated_text: list[str] | str | None = None
    count_output_tokens: int | None = None
    prompt_tokens: int | None = None
    finish_reason: str | None = None


class _Parameters(msgspec.Struct):
    max_new_tokens: int | None = None
    ignore_eos: bool | None = None
    details: Any = UNSET
    decoder_input_details: Any = UNSET


class _Request(msgspec.Struct):
    inputs: str
    parameters: _Parameters | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_WHOLE = msgspec.json.Decoder(_Whole)
_REQUEST = msgspec.json.Decoder(_Request)


class LightLLM(WireProtocol, frozen=True, tag="lightllm"):
    """LightLLM's own routes."""

    optional: ClassVar[tuple[str, ...]] = ("ignore_eos",)
    refused_with: ClassVar[int] = 417
    route: ClassVar[str] = "/generate_stream"
    whole_route: ClassVar[str] = "/generate"

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; `extra` goes into `parameters`."""
        parameters = {"max_new_tokens": ask.output_tokens, "ignore_eos": ask.ignore_eos} | ask.extra
        return msgspec.json.encode({"inputs": plain_text(ask.prompt), "parameters": parameters})

    def decoder(self) -> EventDecoder:
        """A fresh decoder for one stream."""
        return _Decoder()

    def decode(self, data: bytes) -> Event:
        """An answer that was not streamed."""
        answer = _WHOLE.decode(data)
        text = answer.generated_text
        return Event(
            text="".join(text[:1]) if isinstance(text, list) else text or "",
            output_tokens=answer.count_output_tokens,
            input_tokens=answer.prompt_tokens,
            finish_reason=answer.finish_reason or None,
            error=_events.error_words(answer.error, answer.message),
        )

    def parse(self, body: bytes, path: str) -> Ask:
        """What a request asks; one for details is TGI's."""
        request = _events.parse_request(body, _REQUEST)
        parameters = request.parameters or _Parameters()
        for name in ("details", "decoder_input_details"):
            if getattr(parameters, name) is not UNSET:
                words = f"parameters has {name}, which LightLLM does not know"
                raise ProtocolFault("http_4xx", words)
        return Ask(
            prompt=_events.prompt_of("inputs", request.inputs),
            output_tokens=_events.limit_of("max_new_tokens", parameters.max_new_tokens, 16),
            stream=path.endswith("_stream"),
            ignore_eos=bool(parameters.ignore_eos),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream, as today's versions send them."""
        return _Renderer(reply)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        answer = {"generated_text": [text], "count_output_tokens": output_tokens}
        more = {"finish_reason": finish_reason, "prompt_tokens": reply.input_tokens}
        return msgspec.json.encode(answer | more)

    def render_error(self, _status: int, message: str) -> bytes:
        """An error body, the same for each status."""
        return _error_json(message)


class _Decoder(EventDecoder):
    """Events of one stream, whose end may be that of the body."""

    def __init__(self) -> None:
        super().__init__(self._chunk, alone=True)
        self._ends_with_body = False

    def close(self) -> list[Event]:
        """Events completed by the end of the body. Raises ProtocolFault."""
        events = super().close()
        ended = self._ends_with_body and not self.stray
        return [*events, Event(end=True)] if ended else events

    def _chunk(self, data: bytes) -> Event:
        chunk = _CHUNK.decode(data)
        event = Event(
            end=bool(chunk.finished),
            finish_reason=chunk.finish_reason or None,
            error=_events.error_words(chunk.error, chunk.message),
        )
        if chunk.token is not None:
            event.text = chunk.token.text
            event.output_tokens = chunk.token.count_output_tokens
            event.input_tokens = chunk.token.prompt_tokens
            self._ends_with_body = chunk.finished is None
        return event


def _error_json(message: str) -> bytes:
    return msgspec.json.encode({"message": message})


class _Renderer(Renderer):
    """Events of one stream."""

    def __init__(self, reply: Reply) -> None:
        self._prompt = (
            b',"prompt_tokens":%d},"generated_text":null,"finished":' % reply.input_tokens
        )

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """New text."""
        reason = b'false,"finish_reason":null'
        if finish_reason is not None:
            reason = b'true,"finish_reason":"%b"' % finish_reason.encode()
        return (
            b'data:{"token":{"id":%d,"text":%b,"logprob":-0.5,"special":false,'
            b'"count_output_tokens":%d%b%b,"details":null}\n\n'
        ) % (output_tokens, msgspec.json.encode(text), output_tokens, self._prompt, reason)

    def error(self, _status: int, message: str) -> bytes:
        """An error in a stream that began with 200; nothing follows it."""
        return b"data:%b\n\n" % _error_json(message)
