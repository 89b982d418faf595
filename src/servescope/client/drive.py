"""The load loop: offers requests to an endpoint at their due times and keeps raw bytes and times.

A process of its own (`python -m servescope.client.drive PAGE_FD SPOOL_FD`, requests on standard
input), with the standard library alone and no asyncio, so that nothing else runs in it: decoding,
progress and collectors live elsewhere. Per event it takes the kernel's stamp, keeps the bytes, counts
events in C and applies a cheap test for the end. See `wire.py` for what passes in and out.
"""

from __future__ import annotations

import gc
import heapq
import json
import mmap
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from array import array

from servescope.client import wire
from servescope.client.clock import Offset, Timer, steady_process
from servescope.client.feed import Feed, Pending, Settings
from servescope.client.http import Connection, tls_context
from servescope.protocols import ProtocolFault

SWEEP_NS = 20_000_000
"""How often deadlines, commands and counters are looked at."""
SPIN_NS = 25_000
"""Waking takes about this long; the rest of the way to a due time is spent spinning."""
CLOSES_AT_ONCE_NS = 50_000_000
"""A server that closes an idle connection sooner than this does not really keep it alive."""
BACK_OFF_NS = (10_000_000, 1_000_000_000)
"""A user whose connection is refused waits this long, doubling, instead of hammering."""
_MAX_RETRIES = 1
_IN = select.EPOLLIN | select.EPOLLRDHUP
_STAMP = struct.Struct("qq")
_NO_READS = array("q")


class Drive:
    """The loop and its state."""

    def __init__(self, settings: Settings, page: memoryview, spool: int) -> None:
        self.settings, self.page, self.spool = settings, page, spool
        self.head = settings.head.encode("latin-1")
        self.context = (
            tls_context(settings.ca_file, verify=settings.verify) if settings.tls else None
        )
        self.feed = Feed(settings.ahead)
        self.epoll = select.epoll()
        self.timer = Timer()
        self.offset = Offset()
        self.connections: dict[int, Connection] = {}
        self.idle: list[Connection] = []
        self.busy = 0
        self.free: list[tuple[int, int]] = []
        """Heap of (due, user): users who wait for their next request."""
        self.slot_freed_ns = 0
        self.single_use = False
        self.refused = 0
        self.start_ns = 0
        self.stopped = False
        self.sent = self.finished = self.events = self.bytes = 0
        self.kernel_stamps = 0
        self.lag = [0] * wire.LAG_BINS
        self.lag_max_ns = 0
        self._first_in_turn = False
        self._buffer = bytearray(256 << 10)
        self._buffers = [self._buffer]
        self._view = memoryview(self._buffer)

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Warm up, wait for the start, offer the load, end."""
        os.set_blocking(0, False)
        self.epoll.register(0, select.EPOLLIN)
        self.epoll.register(self.timer.fd, select.EPOLLIN)
        self._get_ready()
        gc.collect()
        gc.freeze()
        gc.disable()
        cpu, wall = time.process_time_ns(), time.monotonic_ns()
        next_sweep = 0
        while not self._done():
            now = time.monotonic_ns()
            if now >= next_sweep:
                next_sweep = now + SWEEP_NS
                self._sweep(now)
            wake = self._offer(now)
            if wake:
                self.timer.set(wake - SPIN_NS)
            self._turn(SWEEP_NS / 1e9)
        self.page[wire.CPU_NS] = time.process_time_ns() - cpu
        self.page[wire.WALL_NS] = time.monotonic_ns() - wall
        self.page[wire.UNSENT] = len(self.feed.queue)
        self._publish()

    def _turn(self, timeout_s: float) -> None:
        self._first_in_turn = True
        for fd, mask in self.epoll.poll(timeout_s):
            connection = self.connections.get(fd)
            if connection is not None:
                self._serve(connection, mask)
            elif fd == self.timer.fd:
                self.timer.clear()
            elif fd == 0:
                self._fed()

    def _get_ready(self) -> None:
        """Warm connections and requests at hand, then wait for the common start."""
        for _ in range(self.settings.warm):
            self._open_spare()
        deadline = time.monotonic_ns() + self.settings.connect_ns
        while not self.page[wire.START_NS]:
            warming = any(c.connecting for c in self.connections.values())
            if time.monotonic_ns() > deadline:
                warming = False
            if not warming and (self.feed.ended or self.feed.full):
                self.page[wire.READY] = 1
            self._turn(0.001)
            if self.page[wire.STOP]:
                self.stopped = True
                return
        self.start_ns = self.page[wire.START_NS]
        self.free = [(self.start_ns, user) for user in range(self.settings.users)]

    def _done(self) -> bool:
        if self.page[wire.STOP] >= 2:
            self._cancel_all("the run was interrupted")
        if self.busy:
            return False
        return self.stopped or (self.feed.ended and not self.feed.queue)

    def _fed(self) -> None:
        self.feed.read()
        if self.feed.ended or self.feed.full:
            self.epoll.unregister(0)
            self.feed.paused = True

    def _unpause(self) -> None:
        if self.feed.paused and not self.feed.ended and not self.feed.full:
            self.epoll.register(0, select.EPOLLIN)
            self.feed.paused = False

    # --- offering -------------------------------------------------------------------------------

    def _offer(self, now: int) -> int:
        """Start what is due; returns when the next request is due, 0 where that is not known."""
        if self.stopped:
            return 0
        return self._offer_closed(now) if self.settings.users else self._offer_open(now)

    def _offer_open(self, now: int) -> int:
        queue, cap = self.feed.queue, self.settings.cap
        while queue:
            due = self.start_ns + queue[0].due_ns
            if due > now + SPIN_NS:
                return due
            if cap and self.busy >= cap:
                return 0
            pending = self.feed.take()
            pending.due_ns = due
            if cap and self.slot_freed_ns > due:
                pending.held_ns = self.slot_freed_ns - due
            now = self._start_at(due, pending)
        return 0

    def _offer_closed(self, now: int) -> int:
        free = self.free
        while free and self.feed.queue:
            due, user = free[0]
            if due > now + SPIN_NS:
                return due
            heapq.heappop(free)
            pending = self.feed.take()
            pending.due_ns, pending.user = due, user
            now = self._start_at(due, pending)
        return 0

    def _start_at(self, due: int, pending: Pending) -> int:
        while time.monotonic_ns() < due:
            pass
        self._start(pending)
        return time.monotonic_ns()

    def _start(self, asked: Pending) -> None:
        self.busy += 1
        while self.idle:
            connection = self.idle.pop()
            if self.connections.get(connection.fd) is connection:
                connection.assign(asked)
                self._send(connection)
                return
        try:
            self._connect().assign(asked)
        except OSError as error:
            self._spool(asked, "connect", str(error), time.monotonic_ns())
            self._freed(asked.user, time.monotonic_ns(), refused=True)

    def _send(self, connection: Connection) -> None:
        assert connection.asked is not None  # noqa: S101 (for the type checker)
        try:
            whole = connection.begin(self.head)
        except OSError as error:
            self._broken(connection, "reset", str(error), time.monotonic_ns())
            return
        first = self.settings.first_token_ns if self.settings.stream else self.settings.total_ns
        connection.deadline_ns = connection.sent_ns + first
        self.sent += connection.asked.attempts == 1
        if not whole:
            self.epoll.modify(connection.fd, _IN | select.EPOLLOUT)

    # --- connections ----------------------------------------------------------------------------

    def _connect(self) -> Connection:
        connection = Connection(self.settings, self.context)
        self.connections[connection.fd] = connection
        self.epoll.register(connection.fd, _IN | select.EPOLLOUT)
        return connection

    def _open_spare(self) -> None:
        try:
            self._connect()
        except OSError:
            return  # the request that would have used it says why

    def _drop(self, connection: Connection) -> None:
        del self.connections[connection.fd]
        self.epoll.unregister(connection.fd)
        connection.sock.close()

    def _serve(self, connection: Connection, mask: int) -> None:
        if connection.connecting:
            self._go_on_connecting(connection)
            return
        if mask & select.EPOLLOUT:
            try:
                if connection.flush():
                    self.epoll.modify(connection.fd, _IN)
            except OSError as error:
                self._broken(connection, "reset", str(error), time.monotonic_ns())
                return
        if mask & ~select.EPOLLOUT:
            self._receive(connection)

    def _go_on_connecting(self, connection: Connection) -> None:
        try:
            done = connection.connected()
        except OSError as error:
            tls = isinstance(error, ssl.SSLError)
            if connection.asked is None:
                self._drop(connection)
            else:
                self._finish(connection, "tls" if tls else "connect", str(error), _now())
            return
        self.refused = 0
        # Level-triggered: were write readiness left on during a TLS handshake, the loop would spin.
        self.epoll.modify(connection.fd, _IN)
        if not done:
            return
        if connection.asked is None:
            self.idle.append(connection)
        else:
            connection.asked.connect_ns += _now() - connection.begun_ns
            self._send(connection)

    # --- receiving ------------------------------------------------------------------------------

    def _receive(self, connection: Connection) -> None:
        try:
            size, ancillary, _, _ = connection.sock.recvmsg_into(self._buffers, 64)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(connection, "reset", error.strerror or str(error), _now())
            return
        if ancillary:
            seconds, ns = _STAMP.unpack(ancillary[0][2])
            at = seconds * 1_000_000_000 + ns + self.offset.ns
            if self._first_in_turn:
                self._first_in_turn = False
                self._note_lag(time.monotonic_ns() - at)
        else:
            at = time.monotonic_ns()
        if size == 0:
            self._closed(connection, at)
            return
        data = connection.decrypt(self._view[:size])
        if connection.sent_ns < 0:
            if self.context is None:
                self._drop(connection)  # bytes that nobody asked for; under TLS, session tickets
            return
        connection.raw += data
        connection.reads.append(at)
        connection.reads.append(len(connection.raw))
        if self.context is None:
            connection.events += self._buffer.count(b"data:", 0, size)
        else:
            connection.events += bytes(data).count(b"data:")
        self._judge(connection, at)

    def _judge(self, connection: Connection, at: int) -> None:
        """End the exchange when its response is whole, or beyond a limit."""
        assert connection.asked is not None  # noqa: S101 (for the type checker)
        try:
            whole = connection.whole()
        except ProtocolFault as fault:
            self._finish(connection, fault.kind, str(fault), at)
            return
        if whole:
            self._finish(connection, "ended", "", at)
        elif connection.events > connection.asked.limit:
            self._finish(connection, "overrun", f"more than {connection.asked.limit} events", at)
        elif len(connection.raw) > self.settings.max_bytes:
            detail = f"more than {self.settings.max_bytes:,} bytes"
            self._finish(connection, "too_large", detail, at)

    def _note_lag(self, lag: int) -> None:
        self.kernel_stamps += 1
        lag = max(lag, 0)
        self.lag[wire.lag_bin(lag)] += 1
        self.lag_max_ns = max(self.lag_max_ns, lag)

    def _closed(self, connection: Connection, at: int) -> None:
        if connection.sent_ns >= 0:
            self._broken(connection, "closed", "", at)
            return
        if connection.used and at - connection.idle_since_ns < CLOSES_AT_ONCE_NS:
            self.single_use = True
        self._drop(connection)
        if connection.used and not self.stopped and len(self.connections) < self.settings.warm:
            self._open_spare()

    def _broken(self, connection: Connection, fate: str, detail: str, at: int) -> None:
        """The connection died under a request.

        A kept-alive connection may be closed by the server just as it is used again: such a request
        is tried once more on a fresh connection, if no byte of an answer had come.
        """
        asked = connection.asked
        if asked is None:
            self._drop(connection)
            return
        fresh = not connection.used or asked.attempts > _MAX_RETRIES
        if fresh or connection.raw:
            self._finish(connection, fate, detail, at)
            return
        if connection.sent_ns - connection.idle_since_ns < CLOSES_AT_ONCE_NS:
            self.single_use = True
        asked.attempts += 1
        asked.connect_ns += at - connection.sent_ns
        self._drop(connection)
        self.busy -= 1
        idle, self.idle = self.idle, []  # the others may be as dead
        self._start(asked)
        self.idle += idle

    # --- ending ---------------------------------------------------------------------------------

    def _finish(self, connection: Connection, fate: str, detail: str, at: int) -> None:
        asked = connection.asked
        assert asked is not None  # noqa: S101 (for the type checker)
        self.events += connection.events
        self.bytes += len(connection.raw)
        self._spool(asked, fate, detail, at, connection.sent_ns, connection.reads, connection.raw)
        connection.used += 1
        if fate == "ended" and connection.reusable() and not self.single_use:
            connection.assign(None)
            connection.idle_since_ns = at
            self.idle.append(connection)
        else:
            self._drop(connection)
        self._freed(asked.user, at, refused=fate in ("connect", "timeout_connect"))

    def _spool(
        self,
        asked: Pending,
        fate: str,
        detail: str,
        at: int,
        sent_ns: int = -1,
        reads: array[int] = _NO_READS,
        raw: bytes | bytearray = b"",
    ) -> None:
        numbers = (
            *(asked.request, wire.FATES.index(fate), asked.attempts, asked.due_ns),
            *(sent_ns, asked.connect_ns, asked.held_ns, at),
        )
        frame = memoryview(wire.pack_exchange(numbers, detail, reads, raw))
        while frame:
            frame = frame[os.write(self.spool, frame) :]
        self.finished += 1

    def _freed(self, user: int, at: int, *, refused: bool) -> None:
        self.busy -= 1
        self.slot_freed_ns = at
        self.refused = self.refused + 1 if refused else 0
        if user >= 0:
            wait = self.settings.think_ns
            if self.refused:
                first, most = BACK_OFF_NS
                wait += min(first << min(self.refused - 1, 20), most)
            heapq.heappush(self.free, (at + wait, user))

    def _cancel_all(self, why: str) -> None:
        self.stopped = True
        for connection in list(self.connections.values()):
            if connection.asked is not None:
                self._finish(connection, "cancelled", why, time.monotonic_ns())

    # --- every 20 ms ----------------------------------------------------------------------------

    def _sweep(self, now: int) -> None:
        self.offset.refresh()
        self._unpause()
        self._publish()
        if self.page[wire.STOP]:
            self.stopped = True
            self._give_up_held(now, "not sent: the run was interrupted")
        duration = self.settings.duration_ns
        if duration and now >= self.start_ns + duration and not self.stopped:
            self.stopped = True
            self._give_up_held(now, "not sent: the cap on concurrency was reached to the end")
        for connection in list(self.connections.values()):
            if connection.asked is not None or connection.connecting:
                self._check_deadlines(connection, now)

    def _give_up_held(self, now: int, why: str) -> None:
        queue = self.feed.queue
        while queue and not self.settings.users and self.start_ns + queue[0].due_ns <= now:
            pending = self.feed.take()
            pending.due_ns += self.start_ns
            self._spool(pending, "cancelled", why, now)

    def _check_deadlines(self, connection: Connection, now: int) -> None:
        limits = self.settings
        if connection.connecting:
            if now - connection.begun_ns < limits.connect_ns:
                return
            if connection.asked is None:
                self._drop(connection)
            else:
                self._finish(connection, "timeout_connect", _after(limits.connect_ns), now)
        elif now - connection.sent_ns > limits.total_ns:
            self._finish(connection, "timeout_total", _after(limits.total_ns), now)
        elif now > connection.deadline_ns:
            self._check_progress(connection, now)

    def _check_progress(self, connection: Connection, now: int) -> None:
        """Bytes are no progress: keep-alive comments or role chunks may come for ever."""
        from servescope.client.answer import last_content_ns  # noqa: PLC0415 (rare and heavy)

        limits = self.settings
        last = last_content_ns(limits.protocol, bytes(connection.raw), connection.reads)
        if last is None:
            detail = _after(limits.first_token_ns)
            self._finish(connection, "timeout_first_token", detail, now)
        elif now - last > limits.between_tokens_ns:
            self._finish(connection, "stalled", _after(limits.between_tokens_ns), now)
        else:
            connection.deadline_ns = last + limits.between_tokens_ns

    def _publish(self) -> None:
        page = self.page
        page[wire.SENT], page[wire.FINISHED] = self.sent, self.finished
        page[wire.IN_FLIGHT] = self.busy
        page[wire.EVENTS], page[wire.BYTES] = self.events, self.bytes
        page[wire.KERNEL_CLOCK] = int(self.kernel_stamps > 0)
        page[wire.CLOCK_STEPS] = self.offset.steps
        page[wire.LAG_MAX_NS] = self.lag_max_ns
        for index, count in enumerate(self.lag):
            if count:
                page[wire.LAG + index] = count


_now = time.monotonic_ns


def _after(ns: int) -> str:
    return f"after {ns / 1e9:g} s"


def _read_line() -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise SystemExit("no settings")
        line += piece
    return bytes(line)


def main() -> None:
    """Entry of the load process."""
    steady_process()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the conductor tells us when to stop
    page_fd, spool = int(sys.argv[1]), int(sys.argv[2])
    page = memoryview(mmap.mmap(page_fd, wire.PAGE_BYTES)).cast("q")
    settings = json.loads(_read_line())
    settings["family"] = socket.AddressFamily(settings["family"])
    Drive(Settings(**settings), page, spool).run()


if __name__ == "__main__":
    main()
