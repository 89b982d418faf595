"""The conductor's end of the process that reads all sources of a run."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from servescope.client.secret import Secret
from servescope.collect import Collector
from servescope.collect._source import MOST_SERIES, STOP_S, Order, Told
from servescope.errors import shorten
from servescope.records import Sample
from servescope.telemetry.source import LAG_S

FIRST_S = 2.0
"""How long the beginning of a run waits to know whether what the user asked for can be read."""
LOOK_S = 0.2
"""How long the beginning of a stage waits for readings; its load processes take as long."""
_MARGIN_S = 0.5
_NICE = 10
_TOLD = msgspec.json.Decoder(Told)
_READ = "read"


class Collection:
    """Reads collectors while a run goes on: `begin`, a `look` before each stage, `drain`, `end`.

    Use it in a with statement: the process starts with it and gets ready while the run is prepared.
    Whatever befalls it is told in `notes` and never raised.
    """

    def __init__(self, asked: Sequence[Collector], default: Sequence[Collector] = ()) -> None:
        """Of the `default` ones nothing is noted where they are not there."""
        self._collectors = [*asked, *default]
        self._asked = len(asked)
        self._told: dict[int, Told] = {}
        """What each source said last."""
        self._first: dict[int, str] = {}
        """Of those asked for that were tried beforehand, why they could not be read; or nothing."""
        self._samples: list[Sample] = []
        """Not yet drained."""
        self._rest = bytearray()
        self._origin_ns = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._fault = ""
        self._over = False

    def __enter__(self) -> Self:
        if not self._collectors:
            return self
        try:
            with contextlib.ExitStack() as stack:
                self._words = stack.enter_context(tempfile.TemporaryFile())
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "servescope.collect"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._words,
                    start_new_session=True,  # ctrl-C is for us
                )
                stack.pop_all()  # it is closed at the exit
        except OSError as error:
            self._fault = f"their process could not start: {error.strerror or error}"
            return self
        with contextlib.suppress(OSError):  # it may be gone already
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.nice(0) + _NICE)
        assert self._process.stdout is not None  # noqa: S101 (for the type checker)
        os.set_blocking(self._process.stdout.fileno(), False)
        orders = [
            Order(
                str(one.__struct_config__.tag),
                msgspec.to_builtins(one, enc_hook=_plain),
                asked=number < self._asked,
            )
            for number, one in enumerate(self._collectors)
        ]
        self._write(msgspec.json.encode(orders) + b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, with readings under way."""
        if self._process is None:
            return
        self._close_input()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None  # noqa: S101 (for the type checker)
        self._process.stdout.close()
        self._words.close()

    def missing(self) -> list[str]:
        """What was asked for and cannot be read, each with the reason; waits to know, not long."""
        asked = range(self._asked)
        self._wait(time.monotonic() + FIRST_S, lambda: self._first.keys() >= {*asked})
        late = self._fault or f"nothing came within {FIRST_S:g} s"
        each = (
            (self._collectors[number].source, self._first.get(number, late)) for number in asked
        )
        return [f"{source} cannot be read: {why}" for source, why in each if why]

    def begin(self, origin_ns: int) -> None:
        """The run began then, on the monotonic clock: read from now on."""
        self._origin_ns = origin_ns
        self._write(b"%d\n" % origin_ns)

    def look(self) -> None:
        """Have every source read now, out of its rhythm; waits for that, though not long.

        So what a server counts in a stage is told from what it counts in the stages beside it.
        """
        until_s, since_ns = time.monotonic() + LOOK_S, 0
        if self._told:  # else the first readings, which the beginning asked for, are under way
            time.sleep(LAG_S)  # by now the server has counted the answers of the stage before
            since_ns = time.monotonic_ns() - self._origin_ns
            self._write(b"\n")
        self._wait(until_s, lambda: self._read_since(since_ns))

    def _read_since(self, t_ns: int) -> bool:
        """Whether every source that can be read has been."""
        each = [self._told.get(number) for number in range(len(self._collectors))]
        return all(one and (one.last or not one.readings or one.t_ns >= t_ns) for one in each)

    def _wait(self, until_s: float, enough: Callable[[], bool]) -> None:
        """Take what comes until it is enough, until nothing more can come, or until then."""
        if self._process is None:
            return
        assert self._process.stdout is not None  # noqa: S101 (for the type checker)
        while not self._over and not enough() and (left_s := until_s - time.monotonic()) > 0:
            select.select([self._process.stdout], [], [], left_s)
            self._take()

    def drain(self) -> list[Sample]:
        """The samples that came since the last call; never waits."""
        self._take()
        found, self._samples = self._samples, []
        return found

    def _take(self) -> None:
        while self._process is not None and not self._over:
            assert self._process.stdout is not None  # noqa: S101 (for the type checker)
            try:
                data = os.read(self._process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                break
            self._over = not data
            self._rest += data
            if b"\n" not in data:
                continue
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                told = _TOLD.decode(line)
                if told.first:
                    self._first[told.number] = told.reason
                    continue
                self._told[told.number] = told
                source = self._collectors[told.number].source
                self._samples += [
                    Sample(
                        t_ns=told.t_ns,
                        source=source,
                        name=one.name,
                        value=one.value,
                        labels=one.labels,
                    )
                    for one in told.values
                ]

    def end(self) -> None:
        """The run is over: have every source read a last time; waits for that, though not long."""
        if self._process is None:
            return
        died = self._process.poll() is not None
        self._close_input()
        self._wait(time.monotonic() + STOP_S + _MARGIN_S, lambda: False)
        if not self._over:
            self._fault = "their process did not end in time"
        elif died or self._process.wait():
            self._fault = f"their process died: {self._last_words()}"

    def _last_words(self) -> str:
        self._words.seek(0)
        text = self._words.read().decode(errors="replace").strip()
        status = self._process.returncode if self._process is not None else None
        return shorten(text.rpartition("\n")[2]) or f"exit status {status}"

    @property
    def notes(self) -> list[str]:
        """What a user should know of each source that could not always be read, in one line."""
        found = [f"collectors: {self._fault}; what they read until then is kept"] * bool(
            self._fault
        )
        for number, collector in enumerate(self._collectors):
            told = self._told.get(number, Told(number))
            if told.failed:
                count = f"{told.failed} of {told.readings} readings failed"
                found.append(f"{collector.source}: {count}, the first with: {told.reason}")
            if told.left_out:
                count = f"{told.left_out:,} series were left out"
                found.append(f"{collector.source}: {count}: no more than {MOST_SERIES:,} are kept")
            if self._fault or told.last or not (told.readings or number < self._asked):
                continue
            found.append(f"{collector.source}: a reading did not end with the run; it is lost")
        return found

    @property
    def collected(self) -> dict[str, str]:
        """Of each source 'read', or why it was not."""
        found = {}
        for number, collector in enumerate(self._collectors):
            told = self._told.get(number, Told(number))
            read = told.readings > told.failed
            why = told.reason or self._fault or "no reading came in time"
            found[collector.source] = _READ if read else why
        return found

    def _write(self, data: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(data)
                self._process.stdin.flush()

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def _plain(value: object) -> str:
    if isinstance(value, Secret):
        return value.value
    raise NotImplementedError(type(value))
