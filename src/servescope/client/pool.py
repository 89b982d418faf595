"""The connections of a load process: opened ahead, kept while idle, dropped when dead."""

from __future__ import annotations

import select

from servescope.client.feed import Settings
from servescope.client.http import Connection
from servescope.client.spool import Spool
from servescope.client.tls import tls_context
from servescope.client.watch import Watch

READABLE = select.EPOLLIN | select.EPOLLRDHUP
CLOSES_AT_ONCE_NS = 50_000_000
"""A server that closes an idle connection sooner than this does not really keep it alive."""


class Pool:
    """All connections by their descriptors, and those that are free for a request."""

    def __init__(self, settings: Settings, epoll: select.epoll, spool: Spool, watch: Watch) -> None:
        self.settings, self.epoll, self.spool, self.watch = settings, epoll, spool, watch
        self.context = (
            tls_context(
                settings.ca_file,
                verify=settings.verify,
                client_cert=settings.client_cert,
                client_key=settings.client_key,
            )
            if settings.tls
            else None
        )
        self.open: dict[int, Connection] = {}
        self.idle: dict[int, Connection] = {}
        """By descriptor; the one that was used last is used next."""
        self.single_use = not settings.keep_alive
        """We close after each answer, or the server does, whatever it says."""
        self.announces = False
        """The server says `Keep-Alive` when it will; then it closes when it does not say so, and a
        close says nothing about the request that crossed it."""
        self._reused = False
        self._queued: dict[int, Connection] = {}
        """Not watched yet: a Unix socket's listener has no place for them."""

    def still_connecting(self) -> bool:
        """Whether some connections are not there yet, after another try of those in a queue."""
        self.try_again()
        return any(connection.connecting for connection in self.open.values())

    def connect(self) -> Connection:
        """Begin a new connection. Raises OSError."""
        connection = Connection(self.settings, self.context, self.spool)
        self.open[connection.fd] = connection
        self.watch.look(connection, connection.begun_ns + self.settings.connect_ns)
        if connection.dial.queued():
            self._queued[connection.fd] = connection
        else:
            self.epoll.register(connection.fd, READABLE | select.EPOLLOUT)
        return connection

    def try_again(self) -> None:
        """Connect those that a full queue had no place for, as far as it has by now."""
        for fd, connection in list(self._queued.items()):
            if connection.dial.queued():
                return  # nor has it for the next one
            del self._queued[fd]
            self.epoll.register(fd, READABLE | select.EPOLLOUT)

    def connect_spare(self) -> None:
        """Begin one for a request to come, if it may be taken by it."""
        if not self.settings.keep_alive:
            return
        try:
            self.connect()
        except OSError:
            return  # the request that would have used it says why

    def keeps_alive(self) -> bool:
        """Whether the server has answered, or begun to, on a connection that was used before."""
        if not self._reused:
            self._reused = any(one.used and one.length for one in self.open.values())
        return self._reused

    def take(self) -> Connection | None:
        """A connection that is free, if there is one."""
        return self.idle.popitem()[1] if self.idle else None

    def give_back(self, connection: Connection, at: int) -> None:
        """Keep a connection whose exchange is over for the next one, if it may be used again."""
        self._reused |= connection.used > 1
        announced = connection.head is not None and "keep-alive" in connection.head.headers
        closing = self.announces and not announced
        self.announces |= announced
        if self.single_use or closing or not connection.reusable():
            self.drop(connection)
            return
        connection.assign(None)
        connection.idle_since_ns = at
        self.idle[connection.fd] = connection

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        del self.open[connection.fd]
        self.idle.pop(connection.fd, None)
        if self._queued.pop(connection.fd, None) is None:
            self.epoll.unregister(connection.fd)
        connection.sock.close()
        self.watch.forget(connection)

    def closed_idle(self, connection: Connection, at: int, *, replace: bool) -> None:
        """The server closed a connection that carried nothing."""
        self.note_close(connection, at)
        self.drop(connection)
        if replace and connection.used and len(self.open) < self.settings.warm:
            self.connect_spare()

    def note_close(self, connection: Connection, at: int) -> None:
        """Learn from a close at `at` of a connection that was idle."""
        if connection.used and at - connection.idle_since_ns < CLOSES_AT_ONCE_NS:
            self.single_use = True
