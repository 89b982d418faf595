"""A small real HTTP server whose answers are a script, and which knows the truth.

A script is an async function of the request and a `Peer`. The server notes when each request came
and when each piece was written. It runs in a thread of its own, on loopback alone.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import msgspec

from servescope.errors import BadInput
from servescope.protocols import Ask, ProtocolFault, Reply, WireProtocol, known

MODELS = b'{"object":"list","data":[{"id":"paced","object":"model","owned_by":"test"}]}'
LOOPBACK = ("127.0.0.1", "localhost")
LAST_CHUNK = b"0\r\n\r\n"
_PATIENCE_S = 10.0


def head(
    *lines: str, status: str = "HTTP/1.1 200 OK", kind: str | None = "text/event-stream"
) -> bytes:
    """A response's head; a chunked body follows where `lines` say nothing else."""
    types = [] if kind is None else [f"Content-Type: {kind}"]
    found = [status, *types, *(lines or ["Transfer-Encoding: chunked"]), "", ""]
    return "\r\n".join(found).encode()


def chunk(data: bytes) -> bytes:
    """One chunk of the transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    at_ns: int
    """CLOCK_MONOTONIC, as `first_content_ns`."""
    number: int = -1
    """Count of generations before this one; -1 for everything else, probes among it."""
    first_content_ns: int = 0
    """When the first content of the answer had been written; 0 before."""

    @property
    def json(self) -> Any:  # noqa: ANN401 (whatever JSON came)
        """The body, decoded."""
        return msgspec.json.decode(self.body)

    @property
    def probe(self) -> bool:
        """Whether it is servescope's own question before a run."""
        return "(probe)" in self.headers.get("user-agent", "")


@dataclass
class Peer:
    """The other side of one connection, for a script to write to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    written_ns: list[int] = field(default_factory=list)
    """When each piece had been handed to the system."""
    closed: bool = False

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        self.written_ns.append(time.monotonic_ns())
        await self.writer.drain()

    async def whole(
        self, status: int, body: bytes, kind: str = "application/json", *lines: str
    ) -> None:
        """An answer in one piece."""
        length = f"Content-Length: {len(body)}"
        await self.send(head(length, *lines, status=f"HTTP/1.1 {status} X", kind=kind) + body)

    def close(self) -> None:
        """End the connection in order (FIN)."""
        self.closed = True
        self.writer.close()

    def reset(self) -> None:
        """Break the connection (RST); what is still on its way is lost."""
        self.closed = True
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Request, Peer], Awaitable[None]]


class ScriptedServer:
    """The server; use it in a with statement."""

    def __init__(
        self,
        script: Script,
        *,
        probe: Script | None = None,
        models: bytes = MODELS,
        tokenize: bool = False,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        """`probe` answers what servescope asks before a run; port 0: any that is free."""
        self.script = script
        self.probe = probe or healthy(0, 0)
        self.models, self.tokenize, self.tls, self.port = models, tokenize, tls, port
        self.requests: list[Request] = []
        """Generations, probes not among them."""
        self.peers: list[Peer] = []
        """Their connections."""
        self.probes = 0
        self._paths = {w.path(stream=s) for w in known().values() for s in (True, False)}
        self._ready = threading.Event()
        self._failed: OSError | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(_PATIENCE_S)
        if self._failed is not None:
            self._thread.join()
            want = f"want a port that is free ({self._failed.strerror})"
            raise BadInput("--port", self.port, want)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_PATIENCE_S)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self.listen()
        self._ready.set()
        await self._stop.wait()
        self.listener.close()

    async def listen(self) -> None:
        """Begin to take connections, again on the same port where it was closed."""
        self.listener = await asyncio.start_server(
            self._connection, "127.0.0.1", self.port, backlog=1024, ssl=self.tls
        )
        self.port = self.listener.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            while not peer.closed:
                request = await _read(reader)
                if request is None:
                    break
                await self._answer(request, peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the server ends, too, whatever its scripts wait for
        finally:
            writer.close()

    async def _answer(self, request: Request, peer: Peer) -> None:
        if request.headers.get("host", "").partition(":")[0] not in LOOPBACK:
            await peer.whole(403, b'{"detail":"want a request to 127.0.0.1 or localhost"}')
        elif request.path == "/v1/models":
            await peer.whole(200, self.models)
        elif request.path == "/tokenize" and self.tokenize:
            ids = [sum(map(ord, word)) for word in request.json["prompt"].split()]
            await peer.whole(200, msgspec.json.encode({"tokens": ids}))
        elif request.method == "GET" or request.path not in self._paths:
            await peer.whole(404, b'{"detail":"Not Found"}')
        elif request.probe:
            self.probes += 1
            await self.probe(request, peer)
        else:
            request.number = len(self.requests)
            self.requests.append(request)
            self.peers.append(peer)
            await self.script(request, peer)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    at_ns = time.monotonic_ns()
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body, at_ns)


@cache
def _wires() -> list[WireProtocol]:
    """Looked up once: it takes milliseconds, in which no other request would be read."""
    return list(known().values())


def wire_of(request: Request) -> tuple[WireProtocol, Ask]:
    """The protocol that owns the request's path and can read it, and what it asks.

    Raises ProtocolFault where none can.
    """
    fault = ProtocolFault("http_4xx", f"no protocol has {request.path}")
    for wire in _wires():
        if request.path in (wire.path(stream=True), wire.path(stream=False)):
            try:
                return wire, wire.parse(request.body, request.path)
            except ProtocolFault as refused:
                fault = refused
    raise fault


def count_prompt(ask: Ask) -> int:
    """This server's tokens: words, or ids, and none of its own."""
    if isinstance(ask.prompt, str):
        return len(ask.prompt.split())
    return sum(1 if isinstance(p, int) else len(p.content.split()) for p in ask.prompt)


def healthy(first_s: float, gap_s: float, *, per_chunk: int = 1, keep_alive: bool = True) -> Script:
    """Tokens at absolute times in any protocol: the first at `first_s`, then one each `gap_s`.

    Chunks of `per_chunk` tokens leave when their last token is made, as engines send them.
    """

    async def script(request: Request, peer: Peer) -> None:
        (wire, ask), start_s = wire_of(request), time.monotonic()
        reply = Reply(id="r", model=ask.model, created=1, input_tokens=count_prompt(ask))
        n = ask.output_tokens
        if not ask.stream:
            await sleep_until(start_s + first_s + gap_s * (n - 1))
            await peer.whole(200, wire.render_whole(ask, reply, " x" * n, n, "length"))
            return
        await peer.send(head())
        stream = wire.renderer(ask, reply)
        if opening := stream.opening():
            await peer.send(chunk(opening))
        for last in range(per_chunk, n + per_chunk, per_chunk):
            made = min(last, n)
            await sleep_until(start_s + first_s + gap_s * (made - 1))
            text = " x" * (made - last + per_chunk)
            await peer.send(chunk(stream.chunk(text, made, "length" if made == n else None)))
        if closing := stream.closing(n):
            await peer.send(chunk(closing))
        await peer.send(LAST_CHUNK)
        if not keep_alive:
            peer.close()

    return script


async def sleep_until(at_s: float) -> None:
    """Sleep to a time of the monotonic clock; what asyncio rounds to 1 ms is waited in a loop."""
    left_s = at_s - time.monotonic() - 0.0015
    if left_s > 0:
        await asyncio.sleep(left_s)
    while time.monotonic() < at_s:
        await asyncio.sleep(0)
