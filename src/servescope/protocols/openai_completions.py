"""OpenAI completions, `POST /v1/completions`, as vLLM, SGLang, llama.cpp and TGI speak it.

A prompt may be token ids: then its length is exact without any tokenizer. The other rules are those
of the chat endpoint.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from servescope.protocols import (
    Ask,
    Event,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
    _openai,
)


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(_openai.ChunkBase):
    choices: list[_Choice] | None = None


class _Request(_openai.RequestBase, kw_only=True):
    prompt: str | list[int | str | list[int]]


_CHUNK = msgspec.json.Decoder(_Chunk)
_REQUEST = msgspec.json.Decoder(_Request)


class OpenAICompletions(WireProtocol, frozen=True, tag="openai-completions"):
    """OpenAI text completions."""

    optional: ClassVar[tuple[str, ...]] = ("usage_each", "min_tokens", "ignore_eos", "usage")
    route: ClassVar[str] = "/v1/completions"
    takes_ids: ClassVar[bool] = True

    def encode(self, ask: Ask) -> bytes:
        """Body of the request; messages are joined as plain paragraphs."""
        prompt = _events.text_or_ids(ask.prompt)
        return msgspec.json.encode(_openai.options(ask) | {"prompt": prompt})

    def decode(self, data: bytes) -> Event:
        """A chunk, or an answer in one piece."""
        chunk = _CHUNK.decode(data)
        event = _openai.common_event(chunk)
        if chunk.choices:
            choice = chunk.choices[0]
            event.text = choice.text or ""
            _openai.finish(event, choice.finish_reason)
        return event

    def parse(self, body: bytes, _path: str) -> Ask:
        """What a request asks."""
        request = _events.parse_request(body, _REQUEST)
        return _openai.ask_of(request, _only_prompt(request.prompt))

    def renderer(self, ask: Ask, reply: Reply) -> Renderer:
        """Chunks of one stream; the first carries the first token."""
        choice = b'{"index":0,"text":@,"logprobs":null,"finish_reason":'
        return _openai.OpenAIRenderer(ask, reply, "text_completion", choice, None)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return _openai.whole_json(reply, "text_completion", choice, output_tokens)

    def render_error(self, status: int, message: str) -> bytes:
        """An error body."""
        return _openai.error_json(status, message)


def _only_prompt(prompt: str | list[int | str | list[int]]) -> str | tuple[int, ...]:
    """A text or token ids, which some clients wrap in a list of one."""
    only: Any = prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        only = prompt[0]
        if len(prompt) > 1:
            raise ProtocolFault("http_4xx", "only one prompt is served in a request")
    if not only:
        raise ProtocolFault("http_4xx", "prompt must not be empty")
    if isinstance(only, str):
        return only
    if not all(isinstance(part, int) for part in only):
        raise ProtocolFault("http_4xx", "prompt must be a text or token ids, not both")
    return tuple(only)
