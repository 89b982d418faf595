"""A run's directory: append as it happens, read as columns, survive whatever happened.

`requests.jsonl` is the truth, one line a finished request; everything else in the directory can be
made again from it and the manifest. Files are readable by their owner alone.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar
from zipfile import BadZipFile

import msgspec
import numpy as np

from servescope.errors import BadInput, NotKept, shorten
from servescope.records import Columns, Record, Sample, columns

SCHEMA = 1
FLUSH_S = 0.2
MIN_FREE_BYTES = 64 << 20
T = TypeVar("T")


class Stage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a stage offered, as the manifest keeps it."""

    load: str
    """As the user would write it: `poisson:4`."""
    open: bool
    rate: float | None = None
    users: int | None = None
    planned: int | None = None
    """Requests that the load would offer; None where time alone ends it."""
    start_ns: int | None = None
    """Since the run began; None while it has not started."""
    warmup: bool = False
    first_request: int = 0
    """Index of its first request over the run."""
    first_item: int = 0
    """The item that was asked as its first request; the others follow one by one."""
    probe: bool = False
    """It measures what a sweep's rates are made of, and is none of them."""
    cache: str | None = None
    """`cold` or `warm`, where the same items are asked with an empty and a filled prefix cache."""
    flushed: str | None = None
    """How the engine's cache was emptied before a cold stage; None: it could not be."""
    workers: int | None = None
    """Load processes that drove it; None where it was simulated, or has not started."""


class Manifest(msgspec.Struct, kw_only=True):
    """What was run, with what, where and when. Written first, and without secrets."""

    schema: int = SCHEMA
    kind: str = "measured"
    name: str
    servescope: str
    """Version."""
    command: list[str] = []
    trial: dict[str, Any] = {}
    """The trial as declared, its seed included."""
    endpoint: dict[str, Any] = {}
    """What was found out of the target; of several, the first."""
    targets: list[str] = []
    """URLs, in the order of `Record.target`."""
    notes: list[str] = []
    """What else should be known of the run, in sentences."""
    collected: dict[str, str] = {}
    """What else was read while it went on: of each source 'read', or why it was not."""
    lengths: dict[str, Any] = {}
    """How prompts were made to length."""
    machine: dict[str, Any] = {}
    instrument: dict[str, Any] = {}
    """What `servescope selftest` last read of this version on this machine; empty: nothing yet."""
    origin_ns: int | None = None
    """CLOCK_MONOTONIC of the machine where the records' times begin; None in virtual time."""
    cluster: dict[str, Any] = {}
    """The nodes that drove the load, where it was not this machine."""
    clock: str | None = None
    """Who stamped the times of what was received: `kernel`, or `user` where a load process had to;
    None while nothing was received, and in virtual time."""
    stages: list[Stage] = []
    started_utc: str
    finished_utc: str | None = None
    """None: the run was killed; it is incomplete."""
    interrupted: str | None = None
    """The signal, or the reason, that ended it early."""


class RunWriter:
    """Writes a new run's directory. What it does in a with statement may raise NotKept."""

    def __init__(self, out: Path, manifest: Manifest, room_bytes: int = 0) -> None:
        """`room_bytes` is about what the results will take; raises BadInput without it."""
        self.manifest = manifest
        self.path = out / manifest.name
        self._requests: BinaryIO | None = None
        self._samples: BinaryIO | None = None
        self._flushed_s = 0.0
        self._encode = msgspec.json.Encoder().encode
        self.more: Callable[[], Iterable[Sample]] = tuple
        """Where samples come from that are read beside the run; asked whenever it is flushed."""
        make_directory(self.path, MIN_FREE_BYTES + room_bytes)

    def discard(self) -> None:
        """Take the directory away again: the run did not begin."""
        (self.path / "manifest.json").unlink(missing_ok=True)
        self.path.rmdir()

    def __enter__(self) -> Self:
        self.write_manifest()
        self._requests = _append(self.path / "requests.jsonl")
        with suppress(OSError):  # some file systems have no locks
            flock(self._requests, LOCK_EX | LOCK_NB)
        self._samples = _append(self.path / "samples.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._requests, self._samples):
            if stream is not None:
                with self._kept():
                    stream.close()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"{self.path} cannot be written: {error.strerror}"
            raise NotKept(f"{why}; the run was stopped, and what was written is kept") from None

    def write_manifest(self) -> None:
        """Write the manifest anew, at once or not at all."""
        content = msgspec.json.format(self._encode(self.manifest), indent=2)
        with self._kept():
            replace(self.path / "manifest.json", content + b"\n")

    def append(self, record: Record) -> None:
        """Keep one finished request."""
        self._append(self._requests, record)

    def extend(self, lines: Iterable[bytes]) -> None:
        """Keep finished requests whose lines are made already."""
        assert self._requests is not None, "use the writer in a with statement"  # noqa: S101
        with self._kept():
            self._requests.writelines(line + b"\n" for line in lines)

    def sample(self, sample: Sample) -> None:
        """Keep one reading."""
        self._append(self._samples, sample)

    def samples(self, samples: Iterable[Sample]) -> None:
        """Keep one reading of several values; what is appended next sees to its flushing."""
        assert self._samples is not None, "use the writer in a with statement"  # noqa: S101
        with self._kept():
            self._samples.writelines(self._encode(sample) + b"\n" for sample in samples)

    def _append(self, stream: BinaryIO | None, line: Record | Sample) -> None:
        self._write(stream, line)
        self.flush()

    def _write(self, stream: BinaryIO | None, line: Record | Sample) -> None:
        assert stream is not None, "use the writer in a with statement"  # noqa: S101
        with self._kept():
            stream.write(self._encode(line) + b"\n")

    def flush(self, *, now: bool = False) -> None:
        """Hand to the system what has waited for 200 ms; a kill loses no more than that."""
        clock = time.monotonic()
        if now or clock - self._flushed_s > FLUSH_S:
            self._flushed_s = clock
            for sample in self.more():
                self._write(self._samples, sample)
            for stream in (self._requests, self._samples):
                if stream is not None:
                    with self._kept():
                        stream.flush()


def _append(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "ab", buffering=1 << 18)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, nothing between."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(content)
    temporary.replace(path)


def make_directory(path: Path, room_bytes: int) -> None:
    """Make the directory of a new run and try that it can be written; raises BadInput.

    So it does where less than `room_bytes` are free.
    """
    try:
        path.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise BadInput(
            "--name", path, "a run of that name exists; want another name or --out"
        ) from None
    except OSError as error:
        raise BadInput("--out", path, f"cannot be made ({error.strerror})") from None
    try:
        replace(path / "manifest.json", b"{}\n")
    except OSError as error:
        raise BadInput("--out", path, f"cannot be written ({error.strerror})") from None
    space = os.statvfs(path)
    free = space.f_bavail * space.f_frsize
    if free < room_bytes:
        path.joinpath("manifest.json").unlink()
        path.rmdir()
        raise BadInput("--out", path, f"want {room_bytes >> 20:,} MiB free, have {free >> 20:,}")


def slug(name: str) -> str:
    """A name that is safe as one component of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100]


class Run:
    """A run's directory, read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = _read(path / "manifest.json")
        try:
            self.manifest = msgspec.json.decode(text, type=Manifest)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput("DIR", path, f"want a run's directory: manifest.json: {error}") from None
        if self.manifest.schema != SCHEMA:
            found = self.manifest.schema
            raise BadInput("DIR", path, f"want schema {SCHEMA}, found {found}")

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds. Raises BadInput where there is none: `servescope report DIR`."""
        found: dict[str, Any] = msgspec.json.decode(_read(self.path / "summary.json"))
        return found

    def records(self) -> Iterator[Record]:
        """The finished requests in the order of their ends; a line cut by a kill is left out."""
        yield from _lines(self.path / "requests.jsonl", Record)

    def samples(self) -> list[Sample]:
        """The readings of all sources."""
        return list(_lines(self.path / "samples.jsonl", Sample))

    def columns(self) -> Columns:
        """The records as columns, sorted by request; cached in columns.npz."""
        source, cache = self.path / "requests.jsonl", self.path / "columns.npz"
        try:
            stamp = np.array([source.stat().st_size, SCHEMA])
        except OSError as error:
            want = f"want a run's directory: {source.name}: {error.strerror}"
            raise BadInput("DIR", self.path, want) from None
        cached = _load_cache(cache, stamp)
        if cached is not None:
            return cached
        found = columns(sorted(self.records(), key=lambda record: record.request))
        _save_cache(cache, stamp, found)
        return found


def going_on(path: Path) -> bool:
    """Whether a run's directory is being written: its writer holds a lock for as long as it lives.

    False where the file system knows no locks.
    """
    try:
        with (path / "requests.jsonl").open("rb") as stream:
            flock(stream, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        want = f"want a run's directory: {path.name}: {error.strerror}"
        raise BadInput("DIR", path.parent, want) from None


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(kind)
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return  # the writer was killed in this line
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                where = f"{path}:{number}"
                raise BadInput("DIR", where, f"{error}: {shorten(repr(line))}") from None


def _load_cache(path: Path, stamp: np.ndarray[Any, Any]) -> Columns | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            if not np.array_equal(found["stamp"], stamp):
                return None
            return Columns(**{name: found[name] for name in Columns.__slots__})
    except (OSError, EOFError, KeyError, ValueError, BadZipFile):
        return None


def _save_cache(path: Path, stamp: np.ndarray[Any, Any], found: Columns) -> None:
    temporary = path.with_name(".columns.new.npz")
    try:
        with temporary.open("wb") as stream:
            arrays = {name: getattr(found, name) for name in Columns.__slots__}
            np.savez(stream, stamp=stamp, allow_pickle=False, **arrays)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError:
        temporary.unlink(
            missing_ok=True
        )  # a cache is a convenience: the directory may be read-only
