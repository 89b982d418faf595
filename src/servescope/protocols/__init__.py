"""Wire formats as pure functions of bytes, both halves of each in one file.

The client half encodes an `Ask` and decodes events; the server half parses an `Ask` and renders
events. No sockets, no clock. A protocol is a tagged struct in a file of this folder.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec

from servescope.datasets import Message


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
    """More fields of the body, sent as they are."""


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
    input_tokens: int


class WireProtocol(Protocol):
    """Both halves of one wire format."""

    path: ClassVar[str]
    optional: ClassVar[tuple[str, ...]]
    """Fields of Ask that a server may refuse, the first to be given up first."""
    takes_ids: ClassVar[bool]
    """Whether a prompt may be token ids."""

    def encode(self, ask: Ask) -> bytes:
        """Client half: the body of the request."""
        ...

    def decoder(self) -> StreamDecoder:
        """Client half: a fresh decoder for one stream."""
        ...

    def decode_whole(self, body: bytes) -> Event:
        """Client half: an answer that was not streamed. Raises ProtocolFault."""
        ...

    def parse(self, body: bytes) -> Ask:
        """Server half: what the body asks. Raises ProtocolFault with kind 'http_4xx'."""
        ...

    def render_opening(self, reply: Reply) -> bytes:
        """Server half: what a stream sends before its first token; may be nothing."""
        ...

    def render_chunk(
        self, ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str | None
    ) -> bytes:
        """Server half: new text, with the count of tokens so far."""
        ...

    def render_closing(self, ask: Ask, reply: Reply, output_tokens: int) -> bytes:
        """Server half: what follows the last chunk: usage, the end marker."""
        ...

    def render_whole(
        self, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """Server half: an answer that is not streamed."""
        ...

    def render_error(self, status: int, message: str) -> bytes:
        """Server half: the body of an error, also as an event inside a stream."""
        ...
