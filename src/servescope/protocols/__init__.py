"""Wire formats as pure functions of bytes, both halves of each in one file.

The client half encodes an `Ask` and decodes events; the server half parses an `Ask` and renders
events. No sockets, no clock. A protocol is a tagged `WireProtocol` in a file of this folder.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec

from servescope.errors import BadInput
from servescope.plugins import find, make
from servescope.protocols._events import EventDecoder as EventDecoder
from servescope.protocols._events import LineStream as LineStream
from servescope.protocols._events import decode_json
from servescope.protocols._exchange import Ask as Ask
from servescope.protocols._exchange import Event as Event
from servescope.protocols._exchange import ProtocolFault as ProtocolFault
from servescope.protocols._exchange import Reply as Reply
from servescope.protocols._exchange import messages_of as messages_of
from servescope.protocols._exchange import plain_text as plain_text


class StreamDecoder(Protocol):
    """Bytes of a decoded response body in, events out, however the bytes are cut."""

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises ProtocolFault."""
        ...

    def close(self) -> list[Event]:
        """Events completed by the end of the body. Raises ProtocolFault."""
        ...


class Renderer(Protocol):
    """Server half of one stream: what is sent, in order. Every part may be no bytes at all."""

    def opening(self) -> bytes:
        """What comes before the first token, such as a chunk with only the role."""
        return b""

    def chunk(self, text: str, output_tokens: int, finish_reason: str | None, /) -> bytes:
        """New text, with the count of tokens so far; `length` or `stop` with the last."""
        ...

    def closing(self, _output_tokens: int, /) -> bytes:
        """What follows the last chunk: usage, the end marker."""
        return b""

    def error(self, status: int, message: str, /) -> bytes:
        """An error inside the stream, and whatever marks its end after it."""
        ...


class WireProtocol(msgspec.Struct, frozen=True):
    """Both halves of one wire format. What holds for most formats stands here as a default."""

    takes_ids: ClassVar[bool] = False
    """Whether a prompt may be token ids."""
    least_tokens: ClassVar[int] = 1
    """The shortest limit on an answer that servers accept."""
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

    @property
    def route(self) -> str:
        """Path that is asked."""
        raise NotImplementedError

    @property
    def whole_route(self) -> str | None:
        """Path that is asked for an answer in one piece, where it is another."""
        return None

    def path(self, *, stream: bool) -> str:
        """Where an answer in pieces, or in one piece, is asked for."""
        return self.route if stream else self.whole_route or self.route

    # --- client half ------------------------------------------------------------------------------

    def encode(self, ask: Ask) -> bytes:
        """The body of the request."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Event:
        """What the JSON of an answer in one piece means, or of an event if they look the same.

        May raise what msgspec raises; of that becomes a ProtocolFault.
        """
        raise NotImplementedError

    def decoder(self) -> StreamDecoder:
        """A fresh decoder for one stream, of server-sent events that `decode` reads."""
        return EventDecoder(self.decode, alone=True)

    def decode_whole(self, body: bytes) -> Event:
        """An answer that was not streamed. Raises ProtocolFault."""
        return decode_json(self.decode, body)

    # --- server half ------------------------------------------------------------------------------

    def parse(self, body: bytes, path: str, /) -> Ask:
        """What a body sent to `path` asks. Raises ProtocolFault with kind 'http_4xx'.

        Where protocols share a path, each refuses what is another's.
        """
        raise NotImplementedError

    def renderer(self, ask: Ask, reply: Reply, /) -> Renderer:
        """A fresh renderer for one stream."""
        raise NotImplementedError

    def render_whole(
        self, ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str, /
    ) -> bytes:
        """An answer that is not streamed."""
        raise NotImplementedError

    def render_error(self, status: int, message: str, /) -> bytes:
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
    kind = find("servescope.protocols").get(name)
    if isinstance(said, str) and kind is not None and _required(kind):
        raise BadInput(field, name, "want its settings too, in an experiment file")
    try:
        found: WireProtocol = make(field, "servescope.protocols", name, settings)
    except BadInput as error:  # `make` says how it would stand on the command line
        raise BadInput(field, error.value, error.want.partition(f": {name}:")[0]) from None
    return found


def known() -> dict[str, WireProtocol]:
    """Every protocol that needs no settings, by name."""
    found = find("servescope.protocols")
    bare = {name: kind for name, kind in found.items() if not _required(kind)}
    return {name: kind() for name, kind in bare.items()}  # type: ignore[misc]


def _required(kind: type[msgspec.Struct]) -> bool:
    return any(field.required for field in msgspec.structs.fields(kind))
