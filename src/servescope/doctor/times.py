"""How exact times are: the kernel's stamps, due times, the clocks."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from servescope.client import machine
from servescope.client.clock import SO_TIMESTAMPNS, Offset, Timer, steady_process
from servescope.client.machine import ROOT
from servescope.doctor.row import Row
from servescope.units import format_seconds

LATE_P99_S = 250e-6
PINGS, WAITS = 100, 100
WAKES, WAKE_EVERY_NS = 200, 1_000_000
SLOW_READING_NS = 200
_STAMP = struct.Struct("qq")
_ADJTIMEX_BYTES, _STA_UNSYNC = 512, 0x40
T = TypeVar("T")


def receive_times() -> Row:
    """Whether the kernel stamps what is received, tried on loopback."""
    gaps = _stamped_gaps_ns()
    if not gaps:
        return Row(
            value="user: the kernel stamps nothing here",
            advice="times are read when the program comes to it, late with many streams: "
            "measure from a machine whose kernel does",
            facts={"clock": "user"},
        )
    median_s, p99_s = _p50_p99_s(gaps)
    return Row(
        value=f"kernel: it had a byte {format_seconds(median_s)} (median), "
        f"{format_seconds(p99_s)} (P99) before the program",
        facts={"clock": "kernel", "ahead_p50_s": median_s, "ahead_p99_s": p99_s},
    )


def _stamped_gaps_ns() -> list[int]:
    """Between the kernel's stamp and the program's own reading; empty without stamps."""
    gaps: list[int] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=1) as ours,
        listener.accept()[0] as theirs,
    ):
        try:
            ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except OSError:
            return []
        for _ in range(WAITS):  # the kernel begins to stamp a moment after it was first asked to
            if _ping(theirs, ours) is not None:
                break
            time.sleep(0.001)
        for _ in range(PINGS):
            gap = _ping(theirs, ours)
            if gap is not None:
                gaps.append(gap)
    return gaps


def _ping(theirs: socket.socket, ours: socket.socket) -> int | None:
    theirs.send(b"x")
    _, ancillary, _, _ = ours.recvmsg(1, 64)
    now = time.monotonic_ns()
    if not ancillary:
        return None
    seconds, ns = _STAMP.unpack(ancillary[0][2])
    return now - (int(seconds) * 1_000_000_000 + int(ns) + Offset().ns)


def timer() -> Row:
    """How late a due time is met, by the load process's own means."""
    median_s, p99_s = _p50_p99_s(in_thread(_late_ns))
    return Row(
        value=f"{format_seconds(median_s)} late (median), {format_seconds(p99_s)} (P99) "
        f"at {WAKES} due times",
        advice="requests would leave so late: quiet the machine, or allow real-time priority"
        if p99_s > LATE_P99_S
        else "",
        facts={"late_p50_s": median_s, "late_p99_s": p99_s},
    )


def _late_ns() -> list[int]:
    steady_process()
    clock, late = Timer(), []
    with select.epoll() as epoll:
        epoll.register(clock.fd, select.EPOLLIN)
        due = time.monotonic_ns()
        for _ in range(WAKES):
            due += WAKE_EVERY_NS
            clock.set_ahead(due)
            epoll.poll(1)
            while time.monotonic_ns() < due:
                pass
            late.append(time.monotonic_ns() - due)
            clock.clear()
    os.close(clock.fd)
    return late


def _p50_p99_s(found_ns: list[int]) -> tuple[float, float]:
    found_ns = sorted(max(0, ns) for ns in found_ns)
    return found_ns[len(found_ns) // 2] / 1e9, found_ns[len(found_ns) * 99 // 100] / 1e9


def in_thread(function: Callable[[], T]) -> T:
    """In a thread of its own: priority and timer slack are a thread's and end with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def clock_source(root: Path = ROOT) -> Row:
    """What the kernel reads the time from, and what a reading costs."""
    source = machine.clock_source(root)
    cost_ns = min(_reading_ns() for _ in range(20))
    return Row(
        value=f"{source}, {cost_ns:.0f} ns a reading",
        advice="slow: every token's time costs a system call; boot with clocksource=tsc"
        if cost_ns > SLOW_READING_NS
        else "",
        facts={"source": source, "reading_ns": round(cost_ns, 1)},
    )


def _reading_ns() -> float:
    began = time.monotonic_ns()
    for _ in range(100):
        time.monotonic_ns()
    return (time.monotonic_ns() - began) / 101


def wall_clock() -> Row:
    """Whether the wall clock is kept right; read from the kernel, which is not told anything."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(_ADJTIMEX_BYTES)
    if libc.adjtimex(timex) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # Of 64-bit Linux's struct timex: maxerror (microseconds) at 24, status at 40.
    (most_us,), (status,) = struct.unpack_from("q", timex, 24), struct.unpack_from("i", timex, 40)
    if status & _STA_UNSYNC:
        return Row(
            value="not synchronised: a run's own times do not need it, its date does",
            facts={"synchronised": False},
        )
    return Row(
        value=f"synchronised, within {format_seconds(most_us / 1e6)}",
        facts={"synchronised": True, "error_at_most_s": most_us / 1e6},
    )
