"""Time from the kernel, and a timer that can hit a due time.

`SO_TIMESTAMPNS` stamps a segment when the kernel receives it, so that a busy loop, a busy machine
or a garbage collection does not enter the measurement. Its stamps are CLOCK_REALTIME; `Offset`
maps them to CLOCK_MONOTONIC and notices when somebody sets the clock. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time

SO_TIMESTAMPNS = 35
STEP_NS = 1_000_000
"""A change of the offset above this between two samples is a step of the wall clock."""
LEAST_LEAD_NS, MOST_LEAD_NS, _LEAD_STEP_NS = 25_000, 300_000, 1_000


class Offset:
    """CLOCK_MONOTONIC minus CLOCK_REALTIME, sampled again and again."""

    def __init__(self) -> None:
        self.ns = self._sample()
        self.steps = 0

    def refresh(self) -> None:
        """Sample anew; a slow drift is followed, a step is counted and followed too."""
        sample = self._sample()
        self.steps += abs(sample - self.ns) > STEP_NS
        self.ns = sample

    @staticmethod
    def _sample() -> int:
        best, offset = 1 << 62, 0
        for _ in range(5):
            before = time.monotonic_ns()
            wall = time.time_ns()
            after = time.monotonic_ns()
            if after - before < best:
                best, offset = after - before, (before + after) // 2 - wall
        return offset


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """A timerfd at absolute CLOCK_MONOTONIC times; `epoll.poll(timeout)` would round to 1 ms.

    Waking takes 10 us on a busy core and 200 in an idle virtual machine. Who must hit a due time
    wakes `lead_ns` before it, and spins; it follows what waking takes, so that 95 % are in time.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._spec = _Itimerspec()
        self._at = self.due_ns = 0
        self.lead_ns = LEAST_LEAD_NS
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set_ahead(self, due_ns: int) -> None:
        """Become readable `lead_ns` before a due time."""
        self.due_ns = due_ns
        self.set(due_ns - self.lead_ns)

    def learn(self, late_ns: int) -> None:
        """How late what it was set ahead of could be done; negative: so much time was left.

        What is much too late was not so for want of lead: the loop had other things to do.
        """
        self.due_ns = 0
        if late_ns < MOST_LEAD_NS:
            lead_ns = self.lead_ns + (19 if late_ns > 0 else -1) * _LEAD_STEP_NS
            self.lead_ns = min(max(lead_ns, LEAST_LEAD_NS), MOST_LEAD_NS)

    def set(self, at_ns: int) -> None:
        """Become readable at `at_ns`; a system call only where the time is a new one."""
        if at_ns == self._at:
            return
        self._at = at_ns
        self._spec.value.s, self._spec.value.ns = divmod(max(at_ns, 1), 1_000_000_000)
        self._libc.timerfd_settime(self.fd, 1, ctypes.byref(self._spec), None)

    def clear(self) -> None:
        """Take the expiry off, so that it does not wake the loop again."""
        self._at = 0
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give a part of a file back to the disk, its length kept; best effort, Linux."""
    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    fallocate(fd, 3, start, length)  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def steady_process() -> None:
    """Die with the parent, wake on time, and be scheduled first where the system lets us.

    A busy engine on the same machine keeps an ordinary process off its core for hundreds of
    milliseconds; with real-time priority (root, or an RLIMIT_RTPRIO) the loop is read within one.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
        libc.prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK, 1 ns instead of 50 us
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def keep_memory() -> None:
    """Have the C library keep what is freed: asking for it anew took 3 % of the load process."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
