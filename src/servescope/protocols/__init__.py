"""Wire formats as pure functions of bytes, both halves of each in one file.

The client half encodes an `Ask` and decodes events; the server half parses an `Ask` and renders
events. No sockets, no clock. A protocol is a tagged `WireProtocol` in a file of this folder.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec

from servescope.datasets import Message
from servescope.errors import BadInput
from servescope.plugins import find, make


class ProtocolFault(Exception):
    """The bytes break the wire format; `kind` is the failure class that this makes."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What one request says, whatever the wire format."""

    prompt: str | tuple[int, ...] | tuple[Message, ...]
    output_tokens: int
    """The most tokens the answer may have."""
    model: str = ""
    stream: bool = True
    ignore_eos: bool = False
    min_tokens: bool = False
    """Require `output_tokens` as the least, too."""
    usage: bool = False
    """Token counts at the end of a stream."""
    usage_each: bool = False
    """Token counts so far in every chunk."""
    max_completion_tokens: bool = False
    """Spell the limit `max_completion_tokens`, as newer OpenAI models require."""
    extra: dict[str, Any] = {}
    """More parameters, sent as they are in the part of the body that has the engine's."""


class Event(msgspec.Struct, kw_only=True):
    """The meaning of one event of a stream, or of a whole answer."""

    text: str = ""
    reasoning: str = ""
    tool: str = ""
    """Text of tool-call deltas."""
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    """So far, as the server counts."""
    reasoning_tokens: int | None = None
    """Those of them that were spent on reasoning, as the server counts."""
    cached_tokens: int | None = None
    server_s: dict[str, float] | None = None
    """The server's own timings in seconds."""
    error: str | None = None
    """The server's words, when this is an error and not an answer."""
    end: bool = False
    """The protocol's end marker."""

    @property
    def has_content(self) -> bool:
        """Whether something generated came: text, reasoning or a tool call."""
        return bool(self.text or self.reasoning or self.tool)


class StreamDecoder(Protocol):
    """Bytes of a decoded response body in, events out, however the bytes are cut."""

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises ProtocolFault."""
        ...

    def close(self) -> list[Event]:
        """Events completed by the end of the body. Raises ProtocolFault."""
        ...


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the server half needs to know of an answer to render its events."""

    id: str
    model: str
    created: int
    """Unix time in seconds."""
    input_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that a prefix cache held."""


class Renderer(Protocol):
    """Server half of one stream: what is sent, in order. Every part may be no bytes at all."""

    def opening(self) -> bytes:
        """What comes before the first token, such as a chunk with only the role."""
        ...

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None) -> bytes:
        """New text, with the count of tokens so far; `length` or `stop` with the last."""
        ...

    def closing(self, output_tokens: int) -> bytes:
        """What follows the last chunk: usage, the end marker."""
        ...

    def error(self, status: int, message: str) -> bytes:
        """An error inside the stream, and whatever marks its end after it."""
        ...


class WireProtocol(msgspec.Struct, frozen=True):
    """Both halves of one wire format. What holds for most formats stands here as a default."""

    takes_ids: ClassVar[bool] = False
    """Whether a prompt may be token ids."""
    echoes_prompt: ClassVar[bool] = False
    """Whether an answer's text begins with the prompt's."""
    refused_with: ClassVar[int] = 400
    """Server half: the status of a request that asks what cannot be."""
    busy_with: ClassVar[int] = 503
    """Server half: the status of a request that is turned away because of overload."""

    @property
    def optional(self) -> tuple[str, ...]:
        """Fields of Ask that a server may refuse, the first to be given up first."""
        return ()

    @property
    def headers(self) -> dict[str, str]:
        """Headers that a request of this protocol has beyond the usual ones."""
        return {}

    @property
    def key_header(self) -> str:
        """The header that carries an API key: there as `Bearer KEY`, in any other as it is."""
        return "Authorization"

    @property
    def event_mark(self) -> bytes:
        """Bytes that each event of a stream holds once: counts events without decoding them."""
        return b"data:"

    @property
    def streams_json(self) -> bool:
        """Whether a stream is bare JSON frames, so that it looks like an answer in one piece."""
        return False

    def path(self, *, stream: bool) -> str:
        """Where an answer in pieces, or in one piece, is asked for."""
        raise NotImplementedError

    # --- client half ------------------------------------------------------------------------------

    def encode(self, ask: Ask) -> bytes:
        """The body of the request."""
        raise NotImplementedError

    def decoder(self) -> StreamDecoder:
        """A fresh decoder for one stream."""
        raise NotImplementedError

    def decode_whole(self, body: bytes) -> Event:
        """An answer that was not streamed. Raises ProtocolFault."""
        raise NotImplementedError

    # --- server half ------------------------------------------------------------------------------

    def parse(self, body: bytes, path: str) -> Ask:
        """What a body sent to `path` asks. Raises ProtocolFault with kind 'http_4xx'.

        Where protocols share a path, each refuses what is another's.
        """
        raise NotImplementedError

    def renderer(self, ask: Ask, reply: Reply) -> Renderer:
        """A fresh renderer for one stream."""
        raise NotImplementedError

    def render_whole(
        self, ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer that is not streamed."""
        raise NotImplementedError

    def render_error(self, status: int, message: str) -> bytes:
        """The body of an error with its HTTP status."""
        raise NotImplementedError


Declared = str | dict[str, Any]
"""A protocol as the user says it: its name, or its settings with the name under `name`."""


def declared(field: str, said: Declared) -> WireProtocol:
    """The protocol that was said. Raises BadInput naming `field`."""
    settings = {"name": said} if isinstance(said, str) else dict(said)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise BadInput(field, said, "want its name under `name`")
    found: WireProtocol = make(field, "servescope.protocols", name, settings)
    return found


def known() -> dict[str, WireProtocol]:
    """Every protocol that needs no settings, by name."""
    found = find("servescope.protocols")
    bare = {name: kind for name, kind in found.items() if not _required(kind)}
    return {name: kind() for name, kind in bare.items()}  # type: ignore[misc]


def _required(kind: type[msgspec.Struct]) -> bool:
    return any(field.required for field in msgspec.structs.fields(kind))


def plain_text(prompt: str | tuple[int, ...] | tuple[Message, ...]) -> str:
    """A prompt as one text, for formats that know no messages: they become paragraphs.

    Raises TypeError for token ids: who takes none must not be asked with them.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message.content for message in messages_of(prompt))


def messages_of(prompt: str | tuple[int, ...] | tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt as messages; a plain text becomes one of the user's."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    found = tuple(part for part in prompt if isinstance(part, Message))
    if len(found) != len(prompt):
        raise TypeError("token ids are no messages")
    return found
