"""What a load process is told: its settings, and requests from the pipe, a bounded way ahead."""

from __future__ import annotations

import json
import os
import select
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from servescope.client import wire
from servescope.client.proxy import Tunnel

FEED_BYTES = 32 << 20
"""At most so much is kept at hand; beyond it the pipe is left full."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a load process is told."""

    family: int
    address: tuple[str | int, ...]
    server_name: str
    tls: bool
    verify: bool
    ca_file: str | None
    head: str = field(repr=False)
    """Request line and headers up to `Content-Length: `, those with a key among them."""
    protocol: str | dict[str, Any]
    stream: bool
    connect_ns: int
    first_token_ns: int
    between_tokens_ns: int
    total_ns: int
    max_bytes: int
    users: int = 0
    """Users of a closed loop dealt to this process; 0 in an open load."""
    think_ns: int = 0
    duration_ns: int = 0
    """Looked at every 20 ms: past it after the start, no request is begun; 0 for no such limit."""
    cap: int = 0
    """Most requests in flight; 0 for no such limit."""
    warm: int = 0
    """Connections to open before the start."""
    ahead: int = 1
    """Requests to keep at hand."""
    client_cert: str | None = None
    client_key: str | None = None
    tunnel: Tunnel | None = None
    """What the proxy at `address` is asked for on each connection."""
    keep_alive: bool = True
    """False: each request has a connection of its own, opened when it is due."""


@dataclass(slots=True)
class Pending:
    """A request that has not been sent."""

    request: int
    due_ns: int
    limit: int
    body: bytes
    session: int = -1
    turn: int = 0
    last: int = 0
    think_ns: int = -1
    user: int = -1
    held_ns: int = 0
    connect_ns: int = 0
    attempts: int = 1


class Feed:
    """Requests from the pipe, a bounded number of bytes ahead."""

    def __init__(self, ahead: int, epoll: select.epoll) -> None:
        self.ahead, self._epoll = ahead, epoll
        self.queue: deque[Pending] = deque()
        self.later: deque[Pending] = deque()
        """Later turns of sessions, to be taken from here at once."""
        self.ended = False
        self._paused = True
        self._rest = bytearray()
        self._bytes = 0

    def resume(self) -> None:
        """Watch the pipe, if more is wanted of it."""
        if self._paused and not self.ended and not self.full:
            self._epoll.register(0, select.EPOLLIN)
            self._paused = False

    def read(self) -> None:
        """Take what the pipe has; watch it no more where that is enough."""
        self._read()
        if self.ended or self.full:
            self._epoll.unregister(0)
            self._paused = True

    def _read(self) -> None:
        try:
            data = os.read(0, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
        self._rest += data
        at, size = 0, wire.REQUEST.size
        while len(self._rest) - at >= size:
            request, due, limit, length, *turn = wire.REQUEST.unpack_from(self._rest, at)
            if len(self._rest) - at - size < length:
                break
            body = bytes(self._rest[at + size : at + size + length])
            pending = Pending(request, due, limit, body, *turn)
            (self.later if pending.turn else self.queue).append(pending)
            self._bytes += length
            at += size + length
        del self._rest[:at]

    def take(self) -> Pending:
        """The next request."""
        pending = self.queue.popleft()
        self.taken(pending)
        return pending

    def taken(self, pending: Pending) -> None:
        """A request is no longer at hand but on its way."""
        self._bytes -= len(pending.body)

    def put_first(self, pending: Pending) -> None:
        """Have this one go next."""
        self.queue.appendleft(pending)
        self._bytes += len(pending.body)

    @property
    def full(self) -> bool:
        """Whether enough is at hand: a user must find the next request, however large it is."""
        heavy = self._bytes >= FEED_BYTES and bool(self.queue)
        return heavy or len(self.queue) >= self.ahead


def read_settings() -> Settings:
    """The first line of the pipe, before it is fed."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)  # no byte too many: requests follow
        if not piece:
            raise SystemExit("no settings")
        line += piece
    settings = json.loads(line)
    settings["family"] = socket.AddressFamily(settings["family"])
    settings["tunnel"] = settings["tunnel"] and Tunnel(**settings["tunnel"])
    os.set_blocking(0, False)
    return Settings(**settings)
