"""A load driven by several processes that together offer exactly what one would.

Request k goes to process k mod n, all processes share one start instant, and what they spool is
read here while they run. A process that dies costs its own requests only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from servescope.client import wire
from servescope.client.clock import punch_hole
from servescope.client.feed import Settings
from servescope.errors import ServescopeError
from servescope.stats import lower_rank

START_AHEAD_NS = 5_000_000
POLL_S = 0.1
MOST_AT_ONCE = 64
"""Exchanges read before the next process, an interrupt and the progress have their turn."""
DRAIN_S = 5.0
FREE_BYTES = 16 << 20

Source = Callable[[int], Iterator[wire.Request]]
"""What a process is to send, by its number; rendered as it is taken."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a load process says of itself after a stage."""

    worker: int
    cpu_ratio: float
    """Share of one core."""
    waiting_ratio: float
    """Share of the time that it was ready to run while others had the core; 0 where unknown."""
    turns: int
    """Turns of the loop that read something, but a sample where they are very many; the P99 of the
    lag is of these."""
    lag_p99_s: float
    """How late the loop read what the kernel had; 99 % of turns were quicker."""
    lag_p99_low_s: float
    """Lower end of that figure's 95 % interval: a few turns are no evidence."""
    lag_max_s: float
    behind_ratio: float
    """Share of the time in which the loop was more than 1 ms late, as far as it could tell."""
    kernel_clock: bool
    """The kernel stamped the times, so that the loop's own lateness is not in them."""
    clock_steps: int
    exit_status: int


@dataclasses.dataclass(frozen=True, slots=True)
class Live:
    """Counters while the load runs."""

    sent: int
    finished: int
    in_flight: int


class Worker:
    """One load process."""

    def __init__(self, number: int, settings: Settings, directory: Path) -> None:
        self.number = number
        self.feed_error: Exception | None = None
        self._page_file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (ours until closed)
        self._page_file.truncate(wire.PAGE_BYTES)
        self._page = memoryview(mmap.mmap(self._page_file.fileno(), wire.PAGE_BYTES)).cast("q")
        self._spool: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self._read = self._freed = 0
        self._parts: dict[int, list[tuple[int, int]]] = {}
        """Where in the spool the parts of exchanges lie that have not ended."""
        descriptors = (self._page_file.fileno(), self._spool.fileno())
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # what lies in the current directory is not ours to run
                "-m",
                "servescope.client.drive",
                *map(str, (*descriptors, os.getpid())),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,  # ctrl-C is for us; we tell the process what to do
        )
        try:
            self.ended_fd = os.pidfd_open(self.process.pid)
            """Readable once the process has ended."""
        except OSError:
            self.kill()
            raise
        self._write(json.dumps(dataclasses.asdict(settings)).encode() + b"\n")

    def _write(self, data: bytes) -> bool:
        assert self.process.stdin is not None  # noqa: S101 (for the type checker)
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def feed(self, requests: Iterator[wire.Request]) -> None:
        """Render and send requests until there are no more; blocks while the pipe is full."""
        try:
            for request in requests:
                if not self._write(wire.pack_request(request)):
                    return
        except Exception as error:  # noqa: BLE001 (a thread's own would be printed and forgotten)
            self.feed_error = error
        finally:
            self.end_feed()  # else the process would wait for more for ever

    def end_feed(self) -> None:
        """No more requests."""
        assert self.process.stdin is not None  # noqa: S101 (for the type checker)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    @property
    def ready(self) -> bool:
        """Connections are warm and requests at hand."""
        return bool(self._page[wire.READY])

    def start(self, at_ns: int) -> None:
        """Begin at this instant of CLOCK_MONOTONIC."""
        self._page[wire.START_NS] = at_ns

    def stop(self, level: int) -> None:
        """1: offer no more; 2: end at once."""
        self._page[wire.STOP] = max(level, self._page[wire.STOP])

    def live(self) -> Live:
        """Counters, at most 20 ms old."""
        page = self._page
        return Live(page[wire.SENT], page[wire.FINISHED], page[wire.IN_FLIGHT])

    def exchanges(self) -> Iterator[wire.Exchange]:
        """The whole frames that were spooled since the last call."""
        fd = self._spool.fileno()
        while True:
            size = os.pread(fd, 8, self._read)
            if len(size) < 8:
                return
            length = 8 + int.from_bytes(size, "little")
            frame = os.pread(fd, length, self._read)
            if len(frame) < length:
                return
            place, self._read = (self._read, length), self._read + length
            exchange = wire.unpack_exchange(frame)
            if exchange.fate == "part":
                self._parts.setdefault(exchange.request, []).append(place)
                continue
            places = self._parts.pop(exchange.request, [])
            parts = [wire.unpack_exchange(os.pread(fd, size, at)) for at, size in places]
            yield wire.join(parts, exchange)
            self._give_back_space()

    def _give_back_space(self) -> None:
        """Free the part of the spool that has been read; a system that cannot keeps it longer."""
        oldest = next(iter(self._parts.values()), None)
        done = self._read if oldest is None else oldest[0][0]
        if done - self._freed >= FREE_BYTES:
            punch_hole(self._spool.fileno(), self._freed, done - self._freed)
            self._freed = done

    def health(self) -> Health:
        """What the process says of itself, after it has ended."""
        page = self._page
        wall = page[wire.WALL_NS]
        status = self.process.wait()
        lag = Lag(page[wire.LAG : wire.LAG + wire.LAG_BINS].tolist())
        return Health(
            worker=self.number,
            cpu_ratio=page[wire.CPU_NS] / wall if wall else 0.0,
            waiting_ratio=min(1.0, page[wire.WAITING_NS] / wall) if wall else 0.0,
            turns=lag.turns,
            lag_p99_s=lag.quantile_ns(0.99) / 1e9,
            lag_p99_low_s=lag.surely_ns(0.99) / 1e9,
            lag_max_s=page[wire.LAG_MAX_NS] / 1e9,
            behind_ratio=min(1.0, page[wire.BEHIND_NS] / wall) if wall else 0.0,
            kernel_clock=bool(page[wire.KERNEL_CLOCK]),
            clock_steps=page[wire.CLOCK_STEPS],
            exit_status=status,
        )

    def last_words(self) -> str:
        """The end of its standard error."""
        assert self.process.stderr is not None  # noqa: S101 (for the type checker)
        text = self.process.stderr.read().decode(errors="replace").strip()
        status = self.process.returncode or 0
        by = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return text.rpartition("\n")[2] or by

    def kill(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """Give everything back."""
        self.end_feed()
        os.close(self.ended_fd)
        for stream in (self._spool, self._page_file, self.process.stderr):
            if stream is not None:
                stream.close()


class Lag:
    """The histogram of the loop's lag on a page."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self.turns = sum(counts)

    def quantile_ns(self, q: float) -> int:
        """Upper edge of the bin that quantile `q` is in; 0 where there is none."""
        return self._at(q * self.turns)

    def surely_ns(self, q: float) -> int:
        """The least that quantile `q` may be, by its 95 % interval."""
        return self._at(lower_rank(self.turns, q) or 0)

    def _at(self, rank: float) -> int:
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank > 0:
                return wire.lag_of_bin(index)
        return 0


class Workers:
    """All load processes of one stage."""

    def __init__(self, targets: Sequence[Settings], count: int, directory: Path) -> None:
        """Process k of `count` goes to target k mod n of the n."""
        self.workers: list[Worker] = []
        self._feeders: list[threading.Thread] = []
        self._ends = select.poll()
        try:
            for k in range(count):
                settings = share(targets[k % len(targets)], k, count)
                self.workers.append(Worker(k, settings, directory))
        except BaseException:
            self.close()
            raise

    def begin(self, source: Source, interrupted: Callable[[], int]) -> int:
        """Feed the processes, wait until all are ready, start them; returns the start instant."""
        self._feeders = [
            threading.Thread(target=worker.feed, args=(source(worker.number),), daemon=True)
            for worker in self.workers
        ]
        for feeder in self._feeders:
            feeder.start()
        while not interrupted() and not all(worker.ready for worker in self.workers):
            for worker in self.workers:
                if worker.feed_error is not None:
                    raise worker.feed_error
                if worker.process.poll() is not None:
                    raise ServescopeError(f"a load process died: {worker.last_words()}")
            time.sleep(0.001)
        at_ns = time.monotonic_ns() + START_AHEAD_NS
        for worker in self.workers:
            worker.start(at_ns)
            self._ends.register(worker.ended_fd, select.POLLIN)
        return at_ns

    def exchanges(self) -> Iterator[tuple[int, wire.Exchange | None]]:
        """Finished exchanges as they come, each with the number of its process.

        Now and then None instead of an exchange: other things want doing too.
        """
        while True:
            running = any(worker.process.poll() is None for worker in self.workers)
            came = False
            for worker in self.workers:
                if worker.feed_error is not None:
                    raise worker.feed_error
                for exchange in islice(worker.exchanges(), MOST_AT_ONCE):
                    came = True
                    yield worker.number, exchange
            if not running and not came:
                return
            yield -1, None
            if not came:
                self._wait()

    def _wait(self) -> None:
        """A moment, cut short where a process ends."""
        for fd, _ in self._ends.poll(POLL_S * 1e3):
            self._ends.unregister(fd)

    def live(self) -> Live:
        """Counters of all processes together."""
        each = [worker.live() for worker in self.workers]
        return Live(
            sum(one.sent for one in each),
            sum(one.finished for one in each),
            sum(one.in_flight for one in each),
        )

    def stop(self, level: int) -> None:
        """1: offer no more; 2: end at once."""
        for worker in self.workers:
            worker.stop(level)

    def health(self) -> list[Health]:
        """What each process says of itself, after all have ended."""
        return [worker.health() for worker in self.workers]

    def close(self) -> None:
        """End what still runs."""
        for worker in self.workers:
            worker.kill()
        for feeder in self._feeders:
            feeder.join()
        for worker in self.workers:
            worker.close()


def share(settings: Settings, k: int, n: int) -> Settings:
    """What process k of n is told: its part of the users, of the cap and of the connections."""

    def part(total: int) -> int:
        return total // n + (k < total % n)

    return dataclasses.replace(
        settings, users=part(settings.users), cap=part(settings.cap), warm=part(settings.warm)
    )
