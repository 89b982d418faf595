"""Any other JSON API, declared as data: what a request looks like, and where its answer is.

A request is a JSON object with placeholders: `${prompt}`, `${messages}`, `${model}`,
`${output_tokens}` and `${stream}`. An answer is read at paths such as `choices.0.delta.content`,
in each event of a stream and in an answer in one piece alike. There are no expressions and no code.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from servescope.protocols import (
    Ask,
    Event,
    EventDecoder,
    LineStream,
    ProtocolFault,
    Renderer,
    Reply,
    WireProtocol,
    _events,
    messages_of,
    plain_text,
)
from servescope.protocols._growing import added
from servescope.protocols._tree import (
    Tree,
    as_text,
    filled,
    holds,
    merged,
    placeholders,
    put,
    read_back,
    step,
)

_PATHS = ("text", "reasoning", "finish_reason", "input_tokens", "output_tokens", "error")
_MARKS = {"sse": b"data:", "lines": b"\n", "whole": b"\0"}
_ROUTE = re.compile(r"/[!-\"$-~]*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SET_ELSEWHERE = {"accept", "accept-encoding", "authorization", "connection", "content-length"}
_SET_ELSEWHERE |= {"content-type", "host", "transfer-encoding", "user-agent"}
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class Template(WireProtocol, frozen=True, tag="template"):
    """Any JSON API: what to send, and where in its events the answer is."""

    request: dict[str, Any]
    """The body, with placeholders."""
    route: str
    """Path that is asked."""
    text: str
    """Path of the text in an event; an event without it has none."""
    whole_route: str | None = None
    """Path that is asked for an answer in one piece, where it is another."""
    frames: Literal["sse", "lines", "whole"] = "sse"
    """What a stream is made of: server-sent events, lines of JSON; whole: it never streams."""
    cumulative: bool = False
    """Text and reasoning are all so far, not only what is new."""
    reasoning: str | None = None
    finish_reason: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    error: str = "error"
    """Path of what only an error has."""
    end: str | None = None
    """What marks the end: the data of an event, such as `[DONE]`, or `path:` and the path of what
    is true only then. Without it, the end of the body does."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """More headers of a request; an API key is not for here."""
    key_header: str = "Authorization"
    """The header that carries the API key: there as `Bearer KEY`, in any other as it is."""
    pinned: dict[str, Any] = msgspec.field(default_factory=dict)
    """More of the body where an answer must have exactly the tokens asked for, such as
    `{"ignore_eos": true}`; objects are merged."""

    def __post_init__(self) -> None:
        """Find what cannot be before anything is sent. Raises ValueError."""
        if not placeholders("request", self.request) & {"prompt", "messages"}:
            raise ValueError("request: want ${prompt} or ${messages} in it")
        placeholders("pinned", self.pinned)
        for route in (self.route, self.whole_route):
            if route is not None and not _ROUTE.fullmatch(route):
                raise ValueError(f"route: {route!r}: want a path such as /generate")
        for name in _PATHS:
            _check_path(name, getattr(self, name))
        if self.end is not None and not self.end.strip():
            raise ValueError("end: want the data of the last event, or path: and a path")
        _check_path("end", self.end_path)
        for header, value in {self.key_header: "", **self.headers}.items():
            if not _HEADER.fullmatch(header) or not value.isascii() or not value.isprintable():
                raise ValueError(f"headers: {header!r}: want a name and one line of ASCII")
        for header in self.headers:
            if header.lower() in {*_SET_ELSEWHERE, self.key_header.lower()}:
                raise ValueError(f"headers: {header!r}: want none that is set anyway")

    @property
    def end_path(self) -> str | None:
        """The path that `end` names, where it names one."""
        return self.end[5:] if self.end is not None and self.end.startswith("path:") else None

    @property
    def optional(self) -> tuple[str, ...]:
        """Only what `pinned` is for."""
        return ("ignore_eos",) if self.pinned else ()

    @property
    def event_mark(self) -> bytes:
        """What each event has once; an answer in one piece has none."""
        return _MARKS[self.frames]

    @property
    def streams_json(self) -> bool:
        """A stream of lines does."""
        return self.frames == "lines"

    def path(self, *, stream: bool) -> str:
        """The route, or that for an answer in one piece."""
        return super().path(stream=stream and self.frames != "whole")

    def encode(self, ask: Ask) -> bytes:
        """Body of the request, with the values in their places."""
        request = merged(self.request, self.pinned) if ask.ignore_eos else self.request
        values = {
            "prompt": plain_text(ask.prompt),
            "messages": messages_of(ask.prompt),
            "model": ask.model,
            "output_tokens": ask.output_tokens,
            "stream": ask.stream and self.frames != "whole",
        }
        return msgspec.json.encode(filled(request, values) | ask.extra)

    def decoder(self) -> EventDecoder:
        """A fresh decoder for one stream."""
        return _Decoder(self)

    def decode(self, data: bytes) -> Event:
        """An answer in one piece."""
        return _Meaning(self)(data)

    def parse(self, body: bytes, path: str) -> Ask:
        """What a request asks, read where the placeholders stand. The limit may be unstated."""
        sent = _events.parse_request(body, _OBJECT)
        found = read_back(self.request, sent)
        prompt = found["messages"] if "messages" in found else found["prompt"]
        if not prompt:
            raise ProtocolFault("http_4xx", "the prompt must not be empty")
        streams = self.frames != "whole" and path != self.whole_route
        return Ask(
            prompt=prompt,
            model=found.get("model", ""),
            output_tokens=_events.limit_of("the limit", found.get("output_tokens"), 16),
            stream=found.get("stream", streams),
            ignore_eos=bool(self.pinned) and holds(sent, self.pinned),
        )

    def renderer(self, _ask: Ask, reply: Reply) -> Renderer:
        """Events of one stream, with nothing but what there are paths for."""
        return _Renderer(self, reply)

    def render_whole(
        self, _ask: Ask, reply: Reply, text: str, output_tokens: int, finish_reason: str
    ) -> bytes:
        """An answer in one piece."""
        answer = put(None, self.text, text)
        return msgspec.json.encode(_ended(self, answer, reply, output_tokens, finish_reason))

    def render_error(self, _status: int, message: str) -> bytes:
        """An error body; as an event of a stream it looks the same."""
        return msgspec.json.encode(put(None, self.error, message))


def _check_path(name: str, path: str | None) -> None:
    if path is not None and not (path.isprintable() and all(path.split("."))):
        raise ValueError(f"{name}: {path!r}: want keys with dots between, such as choices.0.text")


# --- client half ----------------------------------------------------------------------------------


class _Meaning:
    """Turns the JSON of events into what they mean, one after another."""

    def __init__(self, wire: Template) -> None:
        paths = {name: getattr(wire, name) for name in _PATHS} | {"end": wire.end_path}
        self._keys = {name: path.split(".") for name, path in paths.items() if path is not None}
        self._so_far = {"text": "", "reasoning": ""}
        self._cumulative = wire.cumulative

    def __call__(self, data: bytes) -> Event:
        """One event. Raises ProtocolFault where a path leads to something else than it should."""
        event = Event()
        tree = msgspec.json.decode(data)
        for name, keys in self._keys.items():
            value = tree
            for key in keys:
                value = step(value, key)
            if value is not None:
                self._note(event, name, value)
        return event

    def _note(self, event: Event, name: str, value: Tree) -> None:
        if name == "end":
            event.end = bool(value)
        elif name == "error":
            event.error = _events.error_words(value) if value else None
        elif name == "finish_reason":
            event.finish_reason = as_text(value) if value else None
        else:
            kind = str if name in self._so_far else int
            if type(value) is not kind:
                where = ".".join(self._keys[name])
                said = f"{name} at {where} is {as_text(value)[:100]}"
                raise ProtocolFault("protocol", f"{said}: want {kind.__name__}")
            if self._cumulative and isinstance(value, str):
                before, self._so_far[name] = self._so_far[name], value
                value = added(before, value)
            setattr(event, name, value)


class _Decoder(EventDecoder):
    """Events of one stream, whose end may be that of the body."""

    def __init__(self, wire: Template) -> None:
        lines = None if wire.frames == "sse" else LineStream(whole=wire.frames == "whole")
        super().__init__(_Meaning(wire), lines)
        self._end = wire.end
        self._begun = False

    def close(self) -> list[Event]:
        """Events completed by the end of the body. Raises ProtocolFault."""
        events = super().close()
        return [*events, Event(end=True)] if self._begun and self._end is None else events

    def _event(self, frame: bytes) -> Event:
        self._begun = True
        if self._end is not None and frame.strip() == self._end.encode():
            return Event(end=True)
        return _events.decode_json(self._decode, frame)


# --- server half ----------------------------------------------------------------------------------


def _ended(wire: Template, tree: Tree, reply: Reply, output_tokens: int, finish: str) -> Tree:
    """The tree with what is known at the end, as far as there are paths for it."""
    known = {
        wire.end_path: True,
        wire.input_tokens: reply.input_tokens,
        wire.output_tokens: output_tokens,
        wire.finish_reason: finish,
    }
    for path, value in known.items():
        tree = tree if path is None else put(tree, path, value)
    return tree


class _Renderer(Renderer):
    """Events of one stream; what all texts have in common is rendered once."""

    def __init__(self, wire: Template, reply: Reply) -> None:
        self._wire, self._reply = wire, reply
        self._before, self._after = (b"data: ", b"\n\n") if wire.frames == "sse" else (b"", b"\n")
        self._start, self._rest = msgspec.json.encode(put(None, wire.text, "\0")).split(
            rb'"\u0000"'
        )
        self._so_far = ""
        self._finish = "stop"

    def chunk(self, text: str, _output_tokens: int, finish_reason: str | None) -> bytes:
        """New text, or all so far."""
        self._finish = finish_reason or self._finish
        if self._wire.cumulative:
            self._so_far = text = self._so_far + text
        return self._frame(self._start + msgspec.json.encode(text) + self._rest)

    def closing(self, output_tokens: int) -> bytes:
        """Why it ended, counts and the end marker."""
        last = _ended(self._wire, None, self._reply, output_tokens, self._finish)
        frame = b"" if last is None else self._frame(msgspec.json.encode(last))
        end = self._wire.end if self._wire.end_path is None else None
        return frame + (b"" if end is None else self._frame(end.encode()))

    def error(self, status: int, message: str) -> bytes:
        """An error in place of an event; nothing follows it."""
        return self._frame(self._wire.render_error(status, message))

    def _frame(self, data: bytes) -> bytes:
        return self._before + data + self._after
