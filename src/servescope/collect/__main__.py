"""The process that reads all sources of a run: `python -m servescope.collect`.

What it is to read comes as the first line of standard input, the start of the run as the second;
at each line after them everything is read out of its rhythm, and the end of the input is the end of
the run. What sources say goes out as lines of JSON.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any

import msgspec

from servescope import plugins
from servescope.client.secret import Secret
from servescope.collect import Collector
from servescope.collect._source import FIND_S, STOP_S, Course, Order, Source, Told
from servescope.collect._target import TargetPage
from servescope.collect.gpu import Gpu
from servescope.collect.host import Host

DEFAULT = {str(one.__struct_config__.tag): one for one in (TargetPage, Host, Gpu)}
"""Found without looking for plug-ins, so that they are ready sooner."""


def main() -> None:
    """Entry of the process."""
    if ctypes.CDLL(None).prctl(1, 9):  # PR_SET_PDEATHSIG, SIGKILL
        sys.exit("this process could outlive its parent")
    out = os.dup(1)
    os.dup2(2, 1)  # a source that prints disturbs nothing
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=list[Order])
    told: SimpleQueue[Told | None] = SimpleQueue()
    course = Course(threading.Event(), threading.Event())
    sources = [
        Source(number, collector(order), course, told.put, asked=order.asked)
        for number, order in enumerate(orders)
    ]
    for source in sources:
        source.thread.start()
    threading.Thread(target=_follow, args=(sources, course, told), daemon=True).start()
    with os.fdopen(out, "wb", buffering=0) as lines:
        while (one := told.get()) is not None:
            lines.write(msgspec.json.encode(one) + b"\n")
    os._exit(0)  # a reading that hangs holds nobody up


def _follow(sources: list[Source], course: Course, told: SimpleQueue[Told | None]) -> None:
    """Let the sources know how the run goes on; a source that hangs is not waited for."""
    if origin := sys.stdin.buffer.readline():
        course.origin_ns = int(origin)
        course.begun.set()
        while sys.stdin.buffer.readline():
            for source in sources:
                source.look.set()
        course.ended.set()
        for source in sources:
            source.look.set()
        now_s = time.monotonic()
        for source in sources:
            patience_s = STOP_S if source.wanted else FIND_S
            source.thread.join(max(0.0, now_s + patience_s - time.monotonic()))
    told.put(None)


def collector(order: Order) -> Collector:
    """What was ordered."""
    kind: Any = DEFAULT.get(order.tag) or plugins.find("servescope.collect")[order.tag]
    found: Collector = msgspec.convert(order.settings, kind, dec_hook=_secret)
    return found


def _secret(kind: type, value: object) -> Secret:
    if kind is not Secret:
        raise NotImplementedError(kind)
    return Secret(str(value))


if __name__ == "__main__":
    main()
