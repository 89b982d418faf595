"""Connecting without waiting: TCP or a Unix socket, then a proxy's handshake, then TLS."""

from __future__ import annotations

import os
import socket
import ssl
import time
from errno import EAGAIN, EALREADY, EINPROGRESS, EISCONN
from typing import TYPE_CHECKING

from servescope.client.clock import SO_TIMESTAMPNS
from servescope.client.proxy import Handshake, handshake
from servescope.client.tls import READ_BYTES, Tls

if TYPE_CHECKING:
    from servescope.client.feed import Settings


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

    def _connect(self) -> bool:
        """Connect, or see how it goes: a second call tells. Raises OSError."""
        where = tuple(self._settings.address)
        unix = self._settings.family == socket.AF_UNIX
        code = self.sock.connect_ex(str(where[0]) if unix else where)
        if code in (0, EISCONN):
            return True
        # EAGAIN: the queue of a Unix socket is full, and only another try gets into it.
        if code in (EINPROGRESS, EALREADY, EAGAIN):
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
                    self.sock.sendall(said)  # a handshake fits the socket's buffer
                said = self._talk.send(self.sock.recv(READ_BYTES))
        except BlockingIOError:
            return False
        except StopIteration:
            if self.tls is not None and (said := self.tls.unsent()):
                self.sock.sendall(said)
            return True

    def _handshakes(self) -> Handshake:
        """What is said before the first request, one after the other."""
        if self._settings.tunnel is not None:
            yield from handshake(self._settings.tunnel)
        if self.tls is not None:
            yield from self.tls.handshake()
