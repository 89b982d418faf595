"""What runs on a node of a cluster: a worker, which has one load process beside it.

It renders the requests of its process and reads their answers, so that the head has lines to write
and nothing else to do. Files that the run needs come with it. Nothing here knows Ray, which calls
these methods from threads.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import servescope
from servescope.client import machine
from servescope.client.feed import Settings
from servescope.client.secret import Secret
from servescope.client.workers import Health, Live, Worker, share
from servescope.datasets import Setting
from servescope.deal import Deal
from servescope.errors import BadInput, ServescopeError
from servescope.prepare import Kit
from servescope.rulers import TOKENIZER, load_tokenizer
from servescope.share import Batch, Part, Share

GATHER_S, POLL_S = 0.05, 0.005
MOST_AT_ONCE, BATCH_BYTES = 256, 4 << 20
"""Answers between two looks at the size of what is to be sent, and when it is large enough."""
TLS_FILES = ("ca_file", "client_cert", "client_key")
"""Fields of a trial and of `Settings`."""

Fault = tuple[str, ...]
"""Of a `BadInput` field, value and what would be right; of another error its words."""


class Parcel(NamedTuple):
    """What a worker makes its `Kit` of, secrets apart."""

    facts: dict[str, Any]
    """Fields of `Kit` that are plain values."""
    files: dict[str, bytes | int]
    """Content by path; of a file that is too large to be sent its size: it must be there."""


class Told(NamedTuple):
    """What a worker says when it is asked."""

    number: int
    batch: Batch
    live: Live
    ready: bool
    fault: Fault | None
    """A request could not be made: the run ends."""
    health: Health | None
    """The load process has ended."""
    words: str
    """The end of its standard error."""


class Node:
    """One worker. Everything it is told is an argument of a call, nothing is in its environment."""

    def __init__(self) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="servescope-")
        self._local: dict[str, str] = {}
        self._asked = threading.Lock()
        self._worker: Worker | None = None

    def facts(self) -> dict[str, Any]:
        """Where this is."""
        return {
            "servescope": servescope.__version__,
            "host": platform.node(),
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "clock": machine.clock_source(),
        }

    def clock_ns(self) -> int:
        """CLOCK_MONOTONIC of this machine."""
        return time.monotonic_ns()

    def equip(
        self, parcel: Parcel, secrets: list[Secret], private: dict[str, bytes]
    ) -> Fault | None:
        """Take what every stage needs; returns what is wrong with it here.

        `private` are files that are not for everybody.
        """
        machine.raise_open_files()
        try:
            files = parcel.files | private
            self._local = {path: self._keep(path, said) for path, said in files.items()}
            self._kit = self._make(parcel.facts, secrets)
        except ServescopeError as error:
            return fault_of(error)
        return None

    def _make(self, facts: dict[str, Any], secrets: list[Secret]) -> Kit:
        plan, ruler = facts["plan"], facts["ruler"]
        count: Callable[[str], int] | None = None
        if plan.trial.tokenizer is not None:
            tokenize = load_tokenizer(self._local[plan.trial.tokenizer])

            def count(text: str) -> int:
                return len(tokenize(text))

        if ruler.source == TOKENIZER:
            ruler = dataclasses.replace(ruler, count=count)
        dataset = plan.dataset
        if path := getattr(dataset, "path", None):
            dataset = msgspec.structs.replace(dataset, path=self._local[path])
        setting = Setting(
            seed=plan.seed,
            ruler=ruler,
            input_tokens=plan.input_tokens,
            output_tokens=plan.output_tokens,
        )
        made = {"ruler": ruler, "items": dataset.items(setting), "count": count}
        return Kit(**(facts | made), secrets=secrets)

    def _keep(self, path: str, said: bytes | int) -> str:
        """Where a file of the head's is here."""
        if isinstance(said, bytes):
            folder = tempfile.mkdtemp(dir=self._files.name)
            here = Path(folder, Path(path).name)  # a data set goes by its suffix
            here.write_bytes(said)
            return str(here)
        here = Path(path).expanduser()
        if not here.is_file() or here.stat().st_size != said:
            want = f"too large to be sent: want the same file on {platform.node()}, too"
            raise BadInput("--cluster", path, want)
        return path

    # --- a stage --------------------------------------------------------------------------------

    def begin(self, part: Part, deal: Mapping[str, Any], process: int, origin_ns: int) -> None:
        """Start the load process of a stage, and feed it."""
        self.end()
        self._last = Told(0, Batch(), Live(0, 0, 0), ready=False, fault=None, health=None, words="")
        self._share = Share(self._kit, Deal(items=self._kit.items, **deal), part, origin_ns)
        settings = self._here(part.targets[process % len(part.targets)])
        self._worker = Worker(
            process, share(settings, process, part.processes), Path(self._files.name)
        )
        self._feeder = threading.Thread(
            target=self._worker.feed, args=(self._share.requests(process),), daemon=True
        )
        self._feeder.start()

    def _here(self, settings: Settings) -> Settings:
        """Settings that name this machine's files."""
        named = {name: getattr(settings, name) for name in TLS_FILES}
        here: dict[str, Any] = {name: self._local[path] for name, path in named.items() if path}
        return dataclasses.replace(settings, **here)

    def start(self, at_ns: int) -> None:
        """Begin at this instant of the clock of this machine."""
        if self._worker is not None:
            self._worker.start(at_ns)

    def stop(self, level: int) -> None:
        """1: offer no more; 2: end at once."""
        if self._worker is not None:
            self._worker.stop(level)

    def told(self, seen: int, origin_ns: int) -> Told:
        """What came back since answer number `seen`, soon.

        Who has not seen the last answer gets it once more: it was lost on its way. Times count from
        `origin_ns` of this machine's clock.
        """
        with self._asked:
            if self._last.number <= seen:
                self._share.origin_ns = origin_ns
                self._last = self._gather(self._last.ready, seen + 1)
            return self._last

    def _gather(self, ready: bool, number: int) -> Told:
        worker, until = self._worker, time.monotonic() + GATHER_S
        assert worker is not None, "a stage has begun"  # noqa: S101
        ended = False
        while not ended and time.monotonic() < until:
            ended = worker.process.poll() is not None
            for exchange in islice(worker.exchanges(), MOST_AT_ONCE):
                ended = False
                self._share.add(exchange, worker.number)
            if worker.ready != ready or worker.feed_error is not None:
                break
            if self._share.batch.size > BATCH_BYTES:
                break
            if not ended:
                time.sleep(POLL_S)
        return Told(
            number=number,
            batch=self._share.take(),
            live=worker.live(),
            ready=worker.ready,
            fault=None if worker.feed_error is None else fault_of(worker.feed_error),
            health=worker.health() if ended else None,
            words=worker.last_words() if ended else "",
        )

    def end(self) -> None:
        """End the stage, whatever still runs."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            self._feeder.join()
            worker.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self.end()
        self._files.cleanup()


def fault_of(error: Exception) -> Fault:
    """An error as plain words, which get out of any process as they are."""
    if isinstance(error, BadInput):
        return error.field, str(error.value), error.want
    return (f"{type(error).__name__}: {error}",)


def raised(fault: Fault) -> ServescopeError:
    """The error that the words of `fault_of` mean."""
    return BadInput(*fault) if len(fault) == 3 else ServescopeError(*fault)
