"""What is asked and answered, whatever the wire format."""

from __future__ import annotations

from typing import Any

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


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the server half needs to know of an answer to render its events."""

    id: str
    model: str
    created: int
    """Unix time in seconds."""
    input_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that a prefix cache held."""


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
