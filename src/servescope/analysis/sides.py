"""What stands on the sides of a comparison: runs, repeats of runs, other tools' result files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from servescope import importers
from servescope.analysis.comparison import LATENCIES, Difference, Side, SideDoubt
from servescope.analysis.estimates import Estimates, failed_share, of_stage, of_values
from servescope.analysis.machine import SOURCE
from servescope.analysis.overload import pace
from servescope.errors import BadInput
from servescope.goodput import METRICS, bounds
from servescope.records import ANSWERED, CANCELLED, COMPLETED
from servescope.store import Run
from servescope.summary import StageSummary, Summary, summarise

if TYPE_CHECKING:
    from servescope.goodput import Slo
    from servescope.importers import ImportedStage
    from servescope.records import Columns

FIELD = "A B ..."
_WANT = "want a run's directory, or one of runs, or a result file of another tool"
_AIPERF = "profile_export_aiperf.json"
"""AIPerf's users know its directory; the file in it."""
_SAME_ANYWAY = (
    *("seed", "name", "out", "target", "keep_text", "api_key_file", "ca_file", "client_cert"),
    *("client_key", "insecure", "i_own_this", "collect", "metrics", "slo", "goodput"),
)
"""What of a trial does not change what is measured. The target is told by what was found there."""
_FOUND = ("model", "engine", "engine_version", "protocol", "context_tokens")
_TOKENLESS = ("ttft", "ttfo", "ttft_from_due")
"""What an answer in one piece does not show."""
_CHUNKED = 1.1


@dataclass
class Part:
    """One stage of one run."""

    load: str
    answered: int
    columns: Columns | None
    """None where another tool measured it."""
    summary: StageSummary | None
    imported: ImportedStage | None = None
    open: bool = False
    streamed: bool = True

    def estimates(self, slo: Slo | None, wanted: Collection[str]) -> Estimates:
        """The figures among `wanted`, with their noise."""
        if self.imported is not None:
            # What a tool broke off at its end has not failed.
            counts = {k: n for k, n in self.imported.outcomes.items() if k != CANCELLED}
            found = of_values(self.imported.values, self.imported.figures, wanted)
            return found | failed_share(counts.get(COMPLETED, 0), counts.values(), wanted)
        assert self.columns is not None  # noqa: S101 (one of the two is there)
        if not self.streamed:
            wanted = [name for name in wanted if name.rpartition("_")[0] not in _TOKENLESS]
            if slo is not None and any(bound.metric in _TOKENLESS for bound in slo.bounds):
                slo = None
        return of_stage(self.columns, slo, wanted)

    @cached_property
    def keeps_up(self) -> bool:
        """Whether an open load was answered as it came: then its rates are the load's."""
        seen = pace(self.columns) if self.open and self.columns is not None else None
        return seen is not None and seen.keeps_up is True

    @property
    def at_once(self) -> bool:
        """Whether all was due at one time, so that more requests are no more rounds."""
        due = self.columns.due_ns if self.columns is not None else None
        return self.open and due is not None and not (due != due[:1]).any()

    @property
    def cpu_busy(self) -> float | None:
        """Of this machine's CPU, the part that was busy; None where it was not read."""
        hosts = [r for r in self.summary.resources if r.source == SOURCE] if self.summary else []
        return hosts[0].figures.get("cpu_busy_ratio_mean") if hosts else None

    @property
    def rounds(self) -> float | None:
        """How often the requests in flight were replaced; None where it is not known."""
        flying = (self.summary.figures.get("concurrency") or {}) if self.summary else {}
        return self.answered / flying["mean"] if flying.get("mean") else None

    @property
    def output_lengths(self) -> tuple[float, ...]:
        """The shortest and the longest answer; empty where they are not known."""
        told = (
            msgspec.to_builtins(self.summary.figures.get("output_tokens")) if self.summary else {}
        )
        return (told["min"], told["max"]) if told else ()

    @property
    def chunked(self) -> bool:
        """Whether gaps between chunks are other than those between tokens."""
        if self.summary is None:
            return {METRICS["icl"], METRICS["itl"]} & {*self.imported_figures} == {METRICS["icl"]}
        return (self.summary.figures.get("tokens_per_chunk") or 1.0) > _CHUNKED

    @property
    def imported_figures(self) -> Collection[str]:
        """The names of another tool's figures."""
        return self.imported.figures if self.imported is not None else ()


@dataclass
class Loaded:
    """A side with what its figures are made of."""

    side: Side
    parts: dict[str, list[Part]] = field(default_factory=dict)
    """By load, one a repeat."""
    runs: list[Run] = field(default_factory=list)

    @property
    def slo(self) -> Slo | None:
        """What its goodput is measured against."""
        trial = self.runs[0].manifest.trial if self.runs else {}
        return bounds(trial.get("slo") or [], trial.get("goodput") or [])[0]

    @property
    def simulated(self) -> bool:
        """Whether nothing of it happened on a machine."""
        return self.side.kind == "simulated"


def read(arguments: Sequence[str]) -> list[Loaded]:
    """The sides that these name: directories of runs, runs, files; several with commas between.

    Arguments that are runs of one configuration are one side, unless all are: then each stands for
    itself. Raises BadInput.
    """
    groups = [_paths(text) for text in arguments]
    sides = [_load(text, paths) for text, paths in zip(arguments, groups, strict=True)]
    sides = _together(sides)
    if len(sides) < 2:
        raise BadInput(FIELD, " ".join(arguments), "want two sides or more to compare")
    for other in sides[1:]:
        other.side.differs = differences(sides[0], other)
    return sides


def _paths(text: str) -> list[Path]:
    """The runs and files of one argument."""
    if not Path(text).exists() and "," in text:
        return [path for part in text.split(",") for path in _paths(part.strip())]
    path = Path(text)
    if not path.exists():
        raise BadInput(FIELD, text, f"{_WANT}; there is no such file")
    if path.is_file() and (path.parent / "manifest.json").exists():
        raise BadInput(FIELD, text, f"this is a file of a run: want its directory, {path.parent}")
    if not path.is_dir() or (path / "manifest.json").exists():
        return [path]
    if (path / _AIPERF).exists():
        return [path / _AIPERF]
    found = sorted(child.parent for child in path.glob("*/manifest.json"))
    if not found:
        raise BadInput(FIELD, text, _WANT)
    return found


def _load(text: str, paths: list[Path]) -> Loaded:
    loaded = [_run(path) if path.is_dir() else _file(path) for path in paths]
    first = loaded[0]
    for other, path in zip(loaded[1:], paths[1:], strict=True):
        unlike = _unlike(first, other)
        if unlike is not None:
            want = f"want repeats of one configuration: {unlike.what} is {unlike.b} in {path.name}"
            raise BadInput(FIELD, text, f"{want} and {unlike.a} in {paths[0].name}")
        _join(first, other)
    if len(paths) > 1 and Path(text).is_dir():
        first.side.name = Path(text).resolve().name
    return first


def _together(sides: list[Loaded]) -> list[Loaded]:
    """Sides of one configuration joined, unless that would leave one side."""
    groups: list[list[Loaded]] = []
    for side in sides:
        mine = (g for g in groups if _unlike(g[0], side, and_target=True) is None)
        group = next(mine, None) if side.runs else None
        if group is None:
            groups.append([side])
        else:
            group.append(side)
    if len(groups) < 2:
        return sides
    for first, *others in groups:
        for other in others:
            _join(first, other)
    return [group[0] for group in groups]


def _join(first: Loaded, other: Loaded) -> None:
    first.runs += other.runs
    for name in ("paths", "incomplete", "doubts", "notes"):
        mine = getattr(first.side, name)
        mine += [one for one in getattr(other.side, name) if one not in mine]
    for load, parts in other.parts.items():
        first.parts.setdefault(load, []).extend(parts)


def _unlike(a: Loaded, b: Loaded, *, and_target: bool = False) -> Difference | None:
    """What speaks against two being repeats of one configuration."""
    if a.runs and b.runs and and_target:
        one, two = (side.runs[0].manifest.trial.get("target") for side in (a, b))
        if one != two:
            return Difference(what="target", a=str(one), b=str(two))
    found = [d for d in differences(a, b) if not d.what.startswith(("machine", "servescope"))]
    return found[0] if found else None


# --- one run, one file ----------------------------------------------------------------------------


def _run(path: Path) -> Loaded:
    run = Run(path)
    summary = _summary(run)
    side = Side(name=path.resolve().name, paths=[str(path)], kind=summary.kind)
    side.target = summary.target
    if not summary.complete:
        side.incomplete.append(f"{side.name}: {summary.ended_by}")
    loaded = Loaded(side, runs=[run])
    columns = run.columns()
    offered = [stage for stage in run.manifest.stages if not stage.warmup]
    for stage in summary.stages:
        part = Part(
            load=stage.load,
            answered=sum(stage.outcomes.get(name, 0) for name in ANSWERED),
            columns=columns.where(columns.stage == stage.number),
            summary=stage,
            open=offered[stage.number].open,
            streamed=run.manifest.trial.get("stream", True),
        )
        _put(loaded, part)
        side.doubts += [
            SideDoubt(load=part.load, kind=doubt.kind, message=doubt.message)
            for doubt in stage.doubts
        ]
    return loaded


def _summary(run: Run) -> Summary:
    """As kept beside the run where that is no older than its records, else worked out."""
    kept, records = run.path / "summary.json", run.path / "requests.jsonl"
    try:
        if kept.stat().st_mtime_ns >= records.stat().st_mtime_ns:
            return msgspec.json.decode(kept.read_bytes(), type=Summary)
    except (OSError, msgspec.DecodeError, RecursionError):
        pass
    return summarise(run)


def _file(path: Path) -> Loaded:
    found = importers.read(path)
    version = f" {found.tool_version}" if found.tool_version else ""
    side = Side(name=found.name, paths=[str(path)], kind="imported")
    side.tool, side.definitions = found.tool + version, found.definitions
    side.target, side.notes = f"as {found.tool}{version} measured it", list(found.notes)
    loaded = Loaded(side)
    for stage in found.stages:
        answered = stage.outcomes.get(COMPLETED, 0)
        _put(loaded, Part(stage.load, answered, None, None, imported=stage))
    return loaded


def _put(loaded: Loaded, part: Part) -> None:
    """A load that a run has twice is told apart by its number."""
    load, k = part.load, 1
    while part.load in loaded.parts:
        k += 1
        part.load = f"{load} #{k}"
    loaded.parts[part.load] = [part]


# --- apples and pears -----------------------------------------------------------------------------


def differences(a: Loaded, b: Loaded) -> list[Difference]:
    """In what two sides are unlike, their figures aside."""
    pairs: dict[str, tuple[Any, Any]]
    if not (a.runs and b.runs):
        pairs = {"measured by": (_tool(a), _tool(b))}
    else:
        one, two = a.runs[0].manifest, b.runs[0].manifest
        pairs = {"kind": (one.kind, two.kind)}
        pairs |= {name: (one.endpoint.get(name), two.endpoint.get(name)) for name in _FOUND}
        if "simulated" in (one.kind, two.kind):
            pairs["target"] = (one.endpoint.get("url"), two.endpoint.get("url"))
        names = dict.fromkeys((*one.trial, *two.trial))
        pairs |= {
            name: (one.trial.get(name), two.trial.get(name))
            for name in names
            if name not in _SAME_ANYWAY and name not in pairs
        }
        pairs["tokenizer"] = (one.lengths.get("source"), two.lengths.get("source"))
        if one.kind == two.kind == "measured":
            for name in dict.fromkeys((*one.machine, *two.machine)):
                if name != "load_average":
                    pairs[f"machine: {name}"] = (one.machine.get(name), two.machine.get(name))
        pairs["servescope"] = (one.servescope, two.servescope)
    return [
        Difference(what=what.replace("_", " "), a=_text(x), b=_text(y))
        for what, (x, y) in pairs.items()
        if (x or None) != (y or None)
    ]


def _tool(loaded: Loaded) -> str:
    return loaded.side.tool or "servescope"


def _text(value: Any) -> str:  # noqa: ANN401 (whatever a manifest holds)
    if value in (None, [], {}, ""):
        return "not given"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def metrics_of(parts: Sequence[Part]) -> list[str]:
    """The latencies that a table of these has: those from the due time where they differ, gaps
    between chunks where they are not those between tokens, and end-to-end over tokens where it is
    not the same one divided by one number."""
    from servescope.metrics import from_due_differs  # noqa: PLC0415

    plain = {"ttft", "itl", "tpot", "e2e"}
    lengths = [part.output_lengths for part in parts]
    if not all(lengths) or len({length for both in lengths for length in both}) > 1:
        plain.add("normalized_latency")
    for part in parts:
        if part.chunked:
            plain.add("icl")
        if part.summary is not None and from_due_differs(_typed(part.summary.figures)):
            plain |= {"ttft_from_due", "e2e_from_due"}
    return [name for name in LATENCIES if name in plain]


def _typed(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures whose distributions are structs, wherever they were read."""
    from servescope.stats import Distribution  # noqa: PLC0415

    names = [METRICS[name] for name in ("ttft", "ttft_from_due", "e2e", "e2e_from_due")]
    chosen = {name: figures.get(name) for name in names}
    return {
        name: msgspec.convert(found, Distribution) if isinstance(found, dict) else found
        for name, found in chosen.items()
    }
