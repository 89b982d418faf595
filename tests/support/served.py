"""A small real HTTP server for tests: what it answers is a script, and it knows the truth.

A script is an async function of the request and a `Peer`; the server logs when each request came
and when each piece was written. It runs in a thread of its own on loopback.
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
from pathlib import Path
from typing import Self

import msgspec

from servescope.protocols import Ask, ProtocolFault, Reply, known

PATHS = {wire.path(stream=stream) for wire in known().values() for stream in (True, False)}
CERTIFICATE = Path(__file__).with_name("tls") / "cert.pem"
"""Self-signed, for localhost and 127.0.0.1, good for a century; its key guards nothing."""
MODELS = b'{"object":"list","data":[{"id":"paced","object":"model","owned_by":"test"}]}'


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at_ns: int
    number: int
    """Count of measured generations before this one; -1 for everything else."""

    @property
    def json(self) -> dict:
        return msgspec.json.decode(self.body)

    @property
    def probe(self) -> bool:
        return "probe" in self.headers.get("user-agent", "")


@dataclass
class Peer:
    """The other side of one connection, for a script to write to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    written_ns: list[int] = field(default_factory=list)
    closed: bool = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        self.written_ns.append(time.monotonic_ns())
        await self.writer.drain()

    async def head(self, content_type: str = "text/event-stream", *more: str) -> None:
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}"]
        lines += more or ["Transfer-Encoding: chunked"]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(
        self, status: int, body: bytes, kind: str = "application/json", *more: str
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        await self.send("\r\n".join([*lines, *more, "", ""]).encode() + body)

    def close(self) -> None:
        self.closed = True
        self.writer.close()

    def reset(self) -> None:
        self.closed = True
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Request, Peer], Awaitable[None]]


class Served:
    """The server; use it in a with statement."""

    def __init__(
        self,
        script: Script,
        *,
        probe: Script | None = None,
        models: bytes = MODELS,
        tokenize: bool = False,
        tls: bool = False,
    ) -> None:
        self.script = script
        self.probe = probe or healthy(0, 0)
        self.models = models
        self.tls = tls
        self.tokenize = tokenize
        self.requests: list[Request] = []
        """Measured generations, probes not among them."""
        self.peers: list[Peer] = []
        self.probes = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        context = None
        if self.tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", 0, backlog=1024, ssl=context
        )
        self.listener = server
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            while not peer.closed:
                request = await self._read(reader)
                if request is None:
                    break
                await self._answer(request, peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        at = time.monotonic_ns()
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(method, path, headers, body, at, -1)

    async def _answer(self, request: Request, peer: Peer) -> None:
        if request.path == "/v1/models":
            await peer.whole(200, self.models)
        elif request.path == "/tokenize" and self.tokenize:
            words = request.json["prompt"].split()
            await peer.whole(
                200, msgspec.json.encode({"tokens": [sum(map(ord, w)) for w in words]})
            )
        elif request.method == "GET" or request.path not in PATHS:
            await peer.whole(404, b'{"detail":"Not Found"}')
        elif request.probe:
            self.probes += 1
            await self.probe(request, peer)
        else:
            request.number = len(self.requests)
            self.requests.append(request)
            self.peers.append(peer)
            await self.script(request, peer)


def wire_of(request: Request):
    """The protocol that owns the request's path and can read it, and what it asks."""
    for wire in known().values():
        if request.path in (wire.path(stream=True), wire.path(stream=False)):
            try:
                return wire, wire.parse(request.body, request.path)
            except ProtocolFault as fault:
                last = fault
    raise last


def count_prompt(ask: Ask) -> int:
    """This server's tokens: words, or ids, and none of its own."""
    if isinstance(ask.prompt, str):
        return len(ask.prompt.split())
    if ask.prompt and isinstance(ask.prompt[0], int):
        return len(ask.prompt)
    return sum(len(message.content.split()) for message in ask.prompt)


def healthy(first_s: float, gap_s: float, *, per_chunk: int = 1, keep_alive: bool = True) -> Script:
    """Tokens at absolute times: the first at `first_s`, then one each `gap_s`.

    Chunks of `per_chunk` tokens leave when their last token is made, as engines send them.
    """

    async def script(request: Request, peer: Peer) -> None:
        (wire, ask), start = wire_of(request), time.monotonic()
        reply = Reply(id="r", model=ask.model, created=1, input_tokens=count_prompt(ask))
        n = ask.output_tokens
        if not ask.stream:
            await sleep_until(start + first_s + gap_s * (n - 1))
            await peer.whole(200, wire.render_whole(ask, reply, " x" * n, n, "length"))
            return
        await peer.head()
        stream = wire.renderer(ask, reply)
        if opening := stream.opening():
            await peer.chunk(opening)
        for last in range(per_chunk, n + per_chunk, per_chunk):
            made = min(last, n)
            await sleep_until(start + first_s + gap_s * (made - 1))
            text = " x" * (made - last + per_chunk)
            finish = "length" if made == n else None
            await peer.chunk(stream.chunk(text, made, finish))
        if closing := stream.closing(n):
            await peer.chunk(closing)
        await peer.end()
        if not keep_alive:
            peer.close()

    return script


async def sleep_until(at_s: float) -> None:
    """Sleep to a time of the monotonic clock; what asyncio rounds to 1 ms is waited in a loop."""
    left = at_s - time.monotonic() - 0.0015
    if left > 0:
        await asyncio.sleep(left)
    while time.monotonic() < at_s:
        await asyncio.sleep(0)
