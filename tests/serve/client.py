"""A plain client for tests: raw bytes over a socket, decoded by the client half of a protocol."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field

import msgspec

from servescope.protocols import Ask, Event, WireProtocol
from servescope.protocols.http1 import BodyReader, Head, parse_head

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
PATIENCE_S = 20


class Wire:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> Head:
        """The head of the next response."""
        while (head := parse_head(self._rest)) is None:
            self._more()
        self._rest = self._rest[head.size :]
        return head

    def pieces(self, head: Head):
        """The body as it comes; the bytes after its end stay for the next response."""
        body = BodyReader(head)
        while not body.ended:
            while not self._rest:
                if not (data := self.socket.recv(1 << 16)):
                    body.close()
                    assert body.whole
                    return
                self._rest += data
            size = len(self._rest)
            if head.length is not None:
                size = min(size, head.length)
            elif head.chunked and (end := self._rest.find(b"\r\n0\r\n\r\n")) >= 0:
                size = end + 7
            data, self._rest = self._rest[:size], self._rest[size:]
            yield body.feed(data)

    def response(self) -> tuple[Head, bytes]:
        head = self.head()
        return head, b"".join(self.pieces(head))

    def ended(self) -> bool:
        """Whether the server has closed; waits for it."""
        return not self._rest and self.socket.recv(1) == b""

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, f"closed after {self._rest!r}"
        self._rest += data


@dataclass
class Answer:
    """What came of a request."""

    status: int
    headers: dict[str, str]
    body: bytes
    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def error(self) -> str | None:
        return next((event.error for event in self.events if event.error), None)

    def last(self, name: str):
        """The last value of an event's field that is not None."""
        found = [getattr(event, name) for event in self.events]
        return next((value for value in reversed(found) if value is not None), None)

    @property
    def json(self):
        return msgspec.json.decode(self.body)


class Client:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])

    def connect(self) -> Wire:
        return Wire(self.port)

    def start(self, wire: WireProtocol, ask: Ask) -> Wire:
        """Send a request and leave it at that."""
        connection = self.connect()
        connection.send(request("POST", wire.path(stream=ask.stream), wire.encode(ask)))
        return connection

    def ask(self, wire: WireProtocol, ask: Ask) -> Answer:
        """Send a request and decode its answer."""
        return finish(self.start(wire, ask), wire, ask)

    def get(self, path: str, body: object = None, method: str = "GET") -> Answer:
        """Any other page."""
        connection = self.connect()
        encoded = b"" if body is None else msgspec.json.encode(body)
        connection.send(request(method, path, encoded))
        head, data = connection.response()
        connection.close()
        return Answer(head.status, head.headers, data)

    def post(self, path: str, body: object = None) -> Answer:
        return self.get(path, body, "POST")

    def metrics(self) -> dict[str, float]:
        """Samples by name, those with other labels than the common ones by name{label=value}."""
        found: dict[str, float] = {}
        for name, labels, value in samples(self.get("/metrics").body.decode()):
            own = {k: v for k, v in labels.items() if k not in COMMON}
            said = ",".join(f"{k}={v}" for k, v in own.items())
            found[f"{name}{{{said}}}" if said else name] = value
        return found


COMMON = {"engine", "model_name", "engine_type", "moe_ep_rank", "pp_rank", "tp_rank"}


def samples(page: str):
    """Name, labels and value of each sample of a page; every line must be one or a comment."""
    for line in page.splitlines():
        if not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            yield match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])


def request(method: str, path: str, body: bytes = b"", *lines: str) -> bytes:
    """A request's bytes."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def finish(connection: Wire, wire: WireProtocol, ask: Ask) -> Answer:
    """Decode the answer to a request that was sent."""
    head, body = connection.response()
    connection.close()
    answer = Answer(head.status, head.headers, body)
    if head.status == 200 and ask.stream:
        decoder = wire.decoder()
        answer.events = [*decoder.feed(body), *decoder.close()]
    else:
        answer.events = [wire.decode_whole(body)]
    return answer
