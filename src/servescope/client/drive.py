"""The load loop: offers requests to an endpoint at their due times and keeps raw bytes and times.

A process of its own (`python -m servescope.client.drive PAGE_FD SPOOL_FD PARENT_PID`, requests on
standard input), without asyncio, so that nothing else runs in it: decoding, progress and collectors
live elsewhere. Per event it takes the kernel's stamp, keeps the bytes, counts events in C and
applies a cheap test for the end. See `wire.py` for what passes in and out.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import ssl
import struct
import sys
import time

from servescope.client import wire
from servescope.client.clock import Offset, Timer, keep_memory, steady_process
from servescope.client.counters import Counters
from servescope.client.feed import Feed, Pending, Settings, read_settings
from servescope.client.http import Connection
from servescope.client.limits import Limits
from servescope.client.machine import own_words
from servescope.client.pool import READABLE, Pool
from servescope.client.schedule import NEVER, Schedule
from servescope.client.spool import Heard, Spool
from servescope.client.turns import Turns
from servescope.client.watch import Watch

SWEEP_NS = 20_000_000
"""How often deadlines, commands and counters are looked at."""
READ_NS = 1_000_000
"""However much is due, what came is read as often as this."""
BACK_OFF_NS = (10_000_000, 1_000_000_000)
"""A user whose connection is refused waits this long, doubling, instead of hammering."""
_MAX_RETRIES = 1
_EVENTS = 256
"""Events taken from epoll at once: its default allocates room for a thousand each time."""
_BUFFER_BYTES = 256 << 10
_CR = 13
_STAMP = struct.Struct("qq")


class Drive:
    """The loop and its state."""

    def __init__(self, settings: Settings, page: memoryview, spool: int) -> None:
        self.settings, self.page = settings, page
        self.epoll = select.epoll()
        self.feed = Feed(settings.ahead, self.epoll)
        self.turns = Turns(settings, self.feed)
        self.schedule = Schedule(settings, self.feed, self.turns)
        self.timer = Timer()
        self.offset = Offset()
        self.counters = Counters(page)
        self.spool = Spool(spool, self.counters)
        self.watch = Watch()
        self.pool = Pool(settings, self.epoll, self.spool, self.watch)
        self.limits = Limits(settings)
        self.busy = 0
        self.slot_freed_ns = self.refused = self.start_ns = 0
        self.stopped = False
        self._stirred = True
        """Something came or ended since requests were last offered."""
        self._behind = False
        """There was more to be read than one turn takes."""
        self._woken_ns = 0
        """When the turn of the loop began; 0 once its lag is noted."""
        buffer = bytearray(_BUFFER_BYTES)
        self._buffers = [buffer]
        self._view = memoryview(buffer)

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Warm up, wait for the start, offer the load, end."""
        self.feed.resume()
        self.epoll.register(self.timer.fd, select.EPOLLIN)
        self._get_ready()
        cpu, wall = time.process_time_ns(), time.monotonic_ns()
        next_sweep = due = 0
        while True:
            now = time.monotonic_ns()
            if now >= next_sweep:
                next_sweep = now + SWEEP_NS
                self._sweep(now)
                self._stirred = True
            if (self._stirred or not self.busy) and self._done():
                break
            # A user can wait; of what is not read in time, the kernel keeps the last stamp alone.
            may_offer = not (self._behind and self.settings.users)
            if may_offer and (self._stirred or now > due - self.timer.lead_ns):
                self._stirred = False
                due = NEVER if self.stopped else self._offer(now)
                if due != NEVER:
                    self.timer.set_ahead(due)
            self.spool.write()
            self._turn(SWEEP_NS / 1e9)
        self.spool.write(everything=True)
        self.page[wire.CPU_NS] = time.process_time_ns() - cpu
        self.page[wire.WALL_NS] = time.monotonic_ns() - wall
        self.counters.publish(self.busy)

    def _turn(self, timeout_s: float) -> None:
        connections, receive = self.pool.open, self._receive
        found = self.epoll.poll(timeout_s, _EVENTS)
        self._woken_ns = time.monotonic_ns()
        self._behind = len(found) == _EVENTS
        for fd, mask in found:
            connection = connections.get(fd)
            if connection is None:
                self._stirred = True
                if fd == self.timer.fd:
                    self.timer.clear()
                elif fd == 0:
                    self.feed.read()
                    self.turns.take_in()
            elif mask == select.EPOLLIN and not connection.connecting:
                receive(connection)
            else:
                self._serve(connection, mask)

    def _get_ready(self) -> None:
        """Warm connections and requests at hand, then wait for the common start."""
        for _ in range(self.settings.warm):
            self.pool.connect_spare()
        deadline = time.monotonic_ns() + self.settings.connect_ns
        while not self.page[wire.START_NS]:
            warming = self.pool.still_connecting() and time.monotonic_ns() < deadline
            if not warming and (self.feed.ended or self.feed.full) and not self.page[wire.READY]:
                gc.collect()
                gc.freeze()
                gc.disable()  # a collection would stop the loop
                self.page[wire.READY] = 1
            self._turn(0.001)
            if self.page[wire.STOP]:
                self.stopped = True
                return
        self.start_ns = self.page[wire.START_NS]
        self.schedule.start(self.start_ns)

    def _done(self) -> bool:
        if self.page[wire.STOP] >= 2:
            self._cancel_all("the run was interrupted")
        self._give_up_turns()
        if self.busy:
            return False
        return self.stopped or (self.feed.ended and not self.feed.queue and not self.turns)

    def _give_up_turns(self) -> None:
        """Later turns that can never be due come back as cancelled."""
        alone = self.feed.ended and not self.busy and not self.feed.queue
        for turn in self.turns.give_up(everything=alone):
            if not self.stopped:  # else it was not to be sent anyway
                turn.due_ns = time.monotonic_ns()
                why = "the turn before it did not end well"
                self.spool.add(turn, "cancelled", why, turn.due_ns)

    # --- offering -------------------------------------------------------------------------------

    def _offer(self, now: int) -> int:
        """Start what is due; returns when the next request is, NEVER where that is not known."""
        cap, due, lead_ns = self.settings.cap, NEVER, self.timer.lead_ns
        before_reading = now + READ_NS
        while now < before_reading and (due := self.schedule.first()) <= now + lead_ns:
            if cap and self.busy >= cap:
                return NEVER
            pending = self.schedule.take()
            if cap and self.slot_freed_ns > due:
                pending.held_ns = self.slot_freed_ns - due
            self._start(pending, due)
            now = time.monotonic_ns()
        return due

    def _start(self, asked: Pending, due: int = 0) -> None:
        """Send a request on a connection of its own, not before it is due."""
        self.busy += 1
        connection = self.pool.take()
        if connection is not None:
            connection.assign(asked)
        if due and due == self.timer.due_ns:
            self.timer.learn(time.monotonic_ns() - due)
        while time.monotonic_ns() < due:  # all that can be done before has been done
            pass
        if connection is not None:
            self._send(connection)
            return
        try:
            self.pool.connect().assign(asked)
        except OSError as error:
            self.spool.add(asked, "connect", own_words(error), time.monotonic_ns())
            self._freed(asked, "connect", time.monotonic_ns())

    def _send(self, connection: Connection) -> None:
        assert connection.asked is not None  # noqa: S101 (for the type checker)
        try:
            whole = connection.begin()
        except OSError as error:
            self._broken(connection, "reset", str(error), time.monotonic_ns())
            return
        self.watch.look(connection, connection.sent_ns + self.limits.first_look_ns)
        self.counters.sent += connection.asked.attempts == 1
        if not whole:
            self.epoll.modify(connection.fd, READABLE | select.EPOLLOUT)

    # --- connections ----------------------------------------------------------------------------

    def _serve(self, connection: Connection, mask: int) -> None:
        if connection.connecting:
            self._go_on_connecting(connection)
            return
        if mask & select.EPOLLOUT:
            try:
                if connection.flush():
                    self.epoll.modify(connection.fd, READABLE)
            except OSError as error:
                self._broken(connection, "reset", str(error), time.monotonic_ns())
                return
        if mask & ~select.EPOLLOUT:
            self._receive(connection)

    def _go_on_connecting(self, connection: Connection) -> None:
        try:
            done = connection.connected()
        except OSError as error:
            fate = "tls" if isinstance(error, ssl.SSLError) else "connect"
            self._finish(connection, fate, str(error), time.monotonic_ns())
            return
        self.refused = 0
        # Level-triggered: were write readiness left on during a TLS handshake, the loop would spin.
        self.epoll.modify(connection.fd, READABLE)
        if not done:
            return
        if connection.asked is None:
            self.pool.idle[connection.fd] = connection
        else:
            connection.asked.connect_ns += time.monotonic_ns() - connection.begun_ns
            self._send(connection)

    # --- receiving ------------------------------------------------------------------------------

    def _receive(self, connection: Connection) -> None:
        """Keep what came and when; all else only where the bytes could be an end, or are many."""
        try:
            receive = connection.recvmsg_into  # a method's call of this name would be slower
            size, ancillary, _, _ = receive(self._buffers, 64)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(connection, "reset", error.strerror or str(error), time.monotonic_ns())
            return
        if ancillary:
            seconds, ns = _STAMP.unpack(ancillary[0][2])
            at = seconds * 1_000_000_000 + ns + self.offset.ns
            if self._woken_ns:
                self.counters.lags.append(self._woken_ns - at)
                self._woken_ns = 0
        else:
            at = time.monotonic_ns()
            self.counters.unstamped.append(at - self._woken_ns)
        if size == 0:
            self._closed(connection, at)
            return
        data = self._view[:size].tobytes()
        if connection.tls is not None:
            data = self._decrypted(connection, data, at)
            size = len(data)
            if not size:
                return
        connection.pieces.append(data)
        connection.length = length = connection.length + size
        connection.reads.append(at)
        connection.reads.append(length)
        if length < connection.look_at and size > 6 and data[-4] != _CR:
            return  # no end: that would be CR LF 0 CR LF CR LF
        if connection.sent_ns < 0:  # nobody asked
            self.pool.drop(connection)
            return
        verdict = self.limits.verdict(connection)
        if verdict is not None:
            self._finish(connection, *verdict, at)

    def _decrypted(self, connection: Connection, data: bytes, at: int) -> bytes:
        """What came through TLS; nothing where it was a part of a record, or is broken."""
        try:
            return connection.decrypt(data)
        except ssl.SSLError as error:
            self._broken(connection, "tls", str(error), at)
            return b""

    def _closed(self, connection: Connection, at: int) -> None:
        if connection.sent_ns < 0:
            self.pool.closed_idle(connection, at, replace=not self.stopped)
        elif self.pool.keeps_alive() and not self.pool.announces and connection.taken_in():
            self._finish(connection, "closed", "", at)
        else:
            self._broken(connection, "closed", "", at)

    def _broken(self, connection: Connection, fate: str, detail: str, at: int) -> None:
        """The connection died under a request.

        A kept-alive connection may be closed by the server just as it is used again: such a request
        is tried once more on a fresh connection, if no byte of an answer had come.
        """
        asked = connection.asked
        if asked is None:
            self.pool.drop(connection)
            return
        fresh = not connection.used or asked.attempts > _MAX_RETRIES
        if fresh or connection.length:
            self._finish(connection, fate, detail, at)
            return
        self.pool.note_close(connection, connection.sent_ns)
        asked.attempts += 1
        asked.connect_ns += at - connection.sent_ns
        self.pool.drop(connection)
        self.busy -= 1
        idle, self.pool.idle = self.pool.idle, {}  # the others may be as dead
        self._start(asked)
        self.pool.idle |= idle

    # --- ending ---------------------------------------------------------------------------------

    def _finish(self, connection: Connection, fate: str, detail: str, at: int) -> None:
        asked = connection.asked
        if asked is None:
            self.pool.drop(connection)
            return
        self.spool.add(asked, fate, detail, at, connection)
        connection.used += 1
        ended_well = asked.session >= 0 and fate in ("ended", "closed")
        heard = connection.heard(closed=fate == "closed") if ended_well else None
        if fate == "ended":
            self.pool.give_back(connection, at)
        else:
            self.pool.drop(connection)
        self._freed(asked, fate, at, heard)

    def _freed(self, asked: Pending, fate: str, at: int, heard: Heard | None = None) -> None:
        """A request is over: its user, its place under the cap and its session go on."""
        self._stirred = True
        if self.busy == self.settings.cap:
            self.slot_freed_ns = at
        self.busy -= 1
        refused = fate in ("connect", "timeout_connect")
        self.refused = self.refused + 1 if refused else 0
        goes_on = asked.session >= 0 and self.turns.ended(asked, heard, at)
        if asked.user >= 0 and not goes_on:
            wait = self.settings.think_ns
            if self.refused:
                first, most = BACK_OFF_NS
                wait += min(first << min(self.refused - 1, 20), most)
            self.schedule.user_free(at + wait, asked.user)

    def _cancel_all(self, why: str) -> None:
        self.stopped = True
        for connection in list(self.pool.open.values()):
            if connection.asked is not None:
                self._finish(connection, "cancelled", why, time.monotonic_ns())

    # --- every 20 ms ----------------------------------------------------------------------------

    def _sweep(self, now: int) -> None:
        self.offset.refresh()
        self.counters.clock_steps = self.offset.steps
        self.feed.resume()
        self.pool.try_again()
        self.counters.publish(self.busy)
        if self.page[wire.STOP]:
            self.stopped = True
        duration = self.settings.duration_ns
        if duration and now >= self.start_ns + duration:
            self.stopped = True
        for connection in self.watch.due(now):
            verdict = self.limits.overdue(connection, now)
            if verdict is not None:
                self._finish(connection, *verdict, now)
            elif connection.connecting or connection.asked is not None:
                self.watch.look(connection, connection.deadline_ns)


def main() -> None:
    """Entry of the load process."""
    steady_process()
    keep_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the conductor tells us when to stop
    page_fd, spool, parent = map(int, sys.argv[1:])
    if os.getppid() != parent:
        raise SystemExit("the conductor died before this process could know that it should too")
    page = memoryview(mmap.mmap(page_fd, wire.PAGE_BYTES)).cast("q")
    Drive(read_settings(), page, spool).run()


if __name__ == "__main__":
    main()
