"""Connecting without waiting: TCP or a Unix socket, then a proxy's handshake, then TLS."""

from __future__ import annotations

import os
import socket
import ssl
import time
from contextlib import suppress
from errno import EAGAIN, EALREADY, EINPROGRESS, EISCONN
from typing import TYPE_CHECKING

from servescope.client.clock import SO_TIMESTAMPNS
from servescope.client.proxy import Handshake, handshake
from servescope.client.tls import READ_BYTES, Tls

if TYPE_CHECKING:
    from servescope.client.feed import Settings

SEND_S = 0.25
"""At most so long: the loop stands still meanwhile."""


def send_whole(sock: socket.socket, said: bytes) -> None:
    """Send a short word of TLS's or to a proxy, all of it. Raises OSError.

    It fits the socket's buffer but for very long chains of certificates; those are waited for.
    """
    sock.settimeout(SEND_S)
    try:
        sock.sendall(said)
    finally:
        sock.setblocking(False)


class Dial:
    """A connection in the making."""

    __slots__ = ("_settings", "_talk", "_there", "begun_ns", "sock", "tls")

    def __init__(self, settings: Settings, context: ssl.SSLContext | None) -> None:
        """Begin to connect. Raises OSError where the system refuses at once."""
        self.begun_ns = time.monotonic_ns()
        self._settings = settings
        self._talk: Handshake | None = None
        self.tls = None if context is None else Tls(context, settings.server_name)
        self.sock = socket.socket(settings.family, socket.SOCK_STREAM)
        try:
            self.sock.setblocking(False)
            if settings.family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._there = self._connect()
        except OSError:
            self.sock.close()
            raise

    def queued(self) -> bool:
        """Whether a Unix socket's listener has no place for it yet; this is another try.

        Nothing else gets into its queue: epoll says at once, each time, that it is hung up.
        """
        if self._settings.family != socket.AF_UNIX:
            return False
        with suppress(OSError):  # `go_on` says it
            self._there = self._there or self._connect()
            return not self._there
        return False

    def _connect(self) -> bool:
        """Connect, or see how it goes: a second call tells, but not once it was there: of a Unix
        socket whose queue is full the kernel says EAGAIN even then. Raises OSError."""
        where = tuple(self._settings.address)
        unix = self._settings.family == socket.AF_UNIX
        code = self.sock.connect_ex(str(where[0]) if unix else where)
        if code in (0, EISCONN):
            return True
        if code in (EINPROGRESS, EALREADY, EAGAIN):  # EAGAIN: see `queued`
            return False
        raise OSError(code, os.strerror(code))

    def go_on(self) -> bool:
        """Do what can be done now; True when requests can be sent. Raises OSError."""
        try:
            if self._talk is None:
                self._there = self._there or self._connect()
                if not self._there:
                    return False
                self._talk = self._handshakes()
                said = next(self._talk)
            else:
                said = self._talk.send(self.sock.recv(READ_BYTES))
            while True:
                if said:
                    send_whole(self.sock, said)
                said = self._talk.send(self.sock.recv(READ_BYTES))
        except BlockingIOError:
            return False
        except StopIteration:
            if self.tls is not None and (said := self.tls.unsent()):
                send_whole(self.sock, said)
            return True

    def _handshakes(self) -> Handshake:
        """What is said before the first request, one after the other."""
        if self._settings.tunnel is not None:
            yield from handshake(self._settings.tunnel)
        if self.tls is not None:
            yield from self.tls.handshake()
