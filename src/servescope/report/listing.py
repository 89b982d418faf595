"""The runs under a directory, as far as a list of them needs to know them.

Only summaries and manifests are read, and again only when they have changed. What is not a run, or
no longer one, is listed with what is wrong. Links that lead out of the directory are not followed.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from servescope.errors import BadInput, shorten
from servescope.store import going_on

MOST_BYTES = 64 << 20
"""Of a summary or a manifest; more is none that we have written."""
_READ = ("manifest.json", "requests.jsonl", "samples.jsonl", "summary.json", "columns.npz")

State: TypeAlias = Literal["complete", "incomplete", "running", "unreadable"]
Range: TypeAlias = tuple[float, float]
T = TypeVar("T")


class Listed(msgspec.Struct, kw_only=True):
    """A run in the list."""

    key: str
    """Its path below the directory: what it is asked for by."""
    path: Path
    name: str
    state: State
    why: str = ""
    """Why it is incomplete, or cannot be read; how far it is where it is running."""
    kind: str = ""
    """`measured` or `simulated`."""
    started_utc: str = ""
    model: str = ""
    engine: str = ""
    target: str = ""
    """Where it was, and by which protocol."""
    loads: list[str] = []
    figures: dict[str, Range | None] = {}
    """From the smallest to the largest of its stages."""
    failed: int | None = None
    """Requests that failed, whatever the way."""
    doubts: int | None = None

    def mentions(self, words: Sequence[str]) -> bool:
        """Whether each of these words, in small letters, is somewhere in it."""
        shown = (self.key, self.name, self.state, self.kind, self.model, self.engine, self.target)
        text = " ".join((*shown, *self.loads, self.why, self.started_utc)).casefold()
        return all(word in text for word in words)


class Listing:
    """The runs under a directory; asked from several threads."""

    def __init__(self, root: Path) -> None:
        """Raises BadInput where it is no directory that can be read."""
        try:
            self.root = root.resolve(strict=True)
            os.scandir(self.root).close()
        except OSError as error:
            raise BadInput("DIR", root, f"want a directory with runs: {error.strerror}") from None
        self._known: dict[str, tuple[object, Listed]] = {}
        self._lock = threading.Lock()

    def runs(self) -> list[Listed]:
        """All of them, newest first."""
        with self._lock:
            found = {run.key: (mark, run) for mark, run in self._look()}
            self._known = found
        runs = [run for _, run in found.values()]
        return sorted(runs, key=lambda run: (run.started_utc, run.key), reverse=True)

    def _look(self) -> Iterator[tuple[object, Listed]]:
        waiting = [str(self.root)]
        while waiting:
            directory = waiting.pop()
            try:
                with os.scandir(directory) as entries:
                    inside = {entry.name: entry for entry in entries}
            except OSError:
                continue  # gone meanwhile, or not ours to read
            if "manifest.json" in inside:
                yield self._listed(Path(directory), inside)
                continue
            waiting.extend(
                entry.path
                for entry in inside.values()
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )

    def _listed(self, path: Path, inside: dict[str, os.DirEntry[str]]) -> tuple[object, Listed]:
        key = path.relative_to(self.root).as_posix() if path != self.root else path.name
        try:
            mark = tuple(self._stamp(inside[name]) for name in _READ if name in inside)
            unfinished = "summary.json" not in inside
            going = unfinished and going_on(path)
            known = self._known.get(key)
            if known is not None and known[0] == (mark, going):
                return known
            return (mark, going), _read(key, path, going=going, summed=not unfinished)
        except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            broken = Listed(
                key=key,
                path=path,
                name=path.name,
                state="unreadable",
                why=shorten(str(why or error)),
            )
            return None, broken

    def _stamp(self, entry: os.DirEntry[str]) -> tuple[str, int, int]:
        """A file's name, time and size. Raises ValueError where it is none to open."""
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.root):
            raise ValueError(f"{entry.name} is a link that leads out of {self.root}")
        found = entry.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{entry.name} is no file")
        if entry.name.endswith(".json") and found.st_size > MOST_BYTES:
            raise ValueError(f"{entry.name} is too large")
        if not entry.name.endswith(".json"):
            return entry.name, 0, 0  # what it holds is not in the list
        return entry.name, found.st_mtime_ns, found.st_size


# --- what is read of a run ------------------------------------------------------------------------


class _Stage(msgspec.Struct):
    load: str
    warmup: bool = False
    start_ns: int | None = None


class _Endpoint(msgspec.Struct, frozen=True):
    model: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    protocol: str | None = None
    url: str | None = None


class _Manifest(msgspec.Struct):
    name: str
    started_utc: str
    kind: str = "measured"
    endpoint: _Endpoint = _Endpoint()
    targets: list[str] = []
    stages: list[_Stage] = []
    finished_utc: str | None = None
    interrupted: str | None = None


class _Spread(msgspec.Struct):
    p50: float | None = None
    p99: float | None = None


class _Figures(msgspec.Struct):
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    ttft_s: _Spread | None = None
    itl_s: _Spread | None = None


class _Summed(msgspec.Struct):
    outcomes: dict[str, Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]]
    figures: _Figures


class _Summary(msgspec.Struct):
    stages: list[_Summed]
    doubts: list[msgspec.Raw] = []


def _read(key: str, path: Path, *, going: bool, summed: bool) -> Listed:
    """Raises DecodeError, OSError."""
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=_Manifest)
    at = manifest.endpoint
    found = Listed(
        key=key,
        path=path,
        name=manifest.name,
        state="complete",
        kind=manifest.kind,
        started_utc=manifest.started_utc,
        model=at.model or "",
        engine=" ".join(filter(None, (at.engine, at.engine_version))),
        target=", ".join(filter(None, (at.protocol, *(manifest.targets or [at.url or ""])))),
        loads=[stage.load for stage in manifest.stages if not stage.warmup],
    )
    if going:
        begun = sum(stage.start_ns is not None for stage in manifest.stages)
        found.state, found.why = "running", f"stage {begun} of {len(manifest.stages)}"
    elif manifest.interrupted is not None or manifest.finished_utc is None:
        found.state, found.why = "incomplete", manifest.interrupted or "it was killed"
    if summed:
        _add_figures(found, (path / "summary.json").read_bytes())
    return found


def _add_figures(found: Listed, text: bytes) -> None:
    summary = msgspec.json.decode(text, type=_Summary)
    figures = [stage.figures for stage in summary.stages]
    ttft = [each.ttft_s or _Spread() for each in figures]
    itl = [each.itl_s or _Spread() for each in figures]
    found.figures = {
        "requests_per_s": _range([each.requests_per_s for each in figures]),
        "output_tokens_per_s": _range([each.output_tokens_per_s for each in figures]),
        "ttft_p50": _range([each.p50 for each in ttft]),
        "ttft_p99": _range([each.p99 for each in ttft]),
        "itl_p50": _range([each.p50 for each in itl]),
    }
    found.doubts = len(summary.doubts)
    outcomes = [outcome for stage in summary.stages for outcome in stage.outcomes.items()]
    found.failed = sum(count for name, count in outcomes if name.startswith("failed:"))


def _range(values: Sequence[float | None]) -> Range | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
