"""Locust: the CSV files of --csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import ClassVar

import msgspec

from servescope.importers import Figure, Imported, ImportedStage
from servescope.importers._reading import content, finite, statistics, told, users, wrong

_STATS, _HISTORY = "_stats.csv", "_stats_history.csv"
_MS = 1e-3
_TIMES = {
    "Average Response Time": "mean",
    "Min Response Time": "min",
    "50%": "p50",
    "90%": "p90",
    "95%": "p95",
    "99%": "p99",
    "Max Response Time": "max",
}
_DEFINITIONS = {
    "e2e_s": "its response time: what the user's code times, as a rule from before the request is"
    " handed to the HTTP client to the end of the body, of failed requests too; its percentiles are"
    " of times rounded to 1 ms below 100 ms and to two digits above",
    "requests_per_s": "requests that did not fail, over the time from the test's start to its last"
    " answer",
}
_SUM = "Aggregated"


class Locust(msgspec.Struct, frozen=True, tag="locust"):
    """The result of `locust --csv PREFIX`; PREFIX_stats_history.csv tells how many users."""

    file: ClassVar[str] = "Locust's PREFIX_stats.csv (--csv PREFIX)"

    def recognises(self, head: bytes, path: Path) -> bool:
        """By the header line of either file."""
        del path
        return head.startswith(
            (b"Type,Name,Request Count,Failure Count,", b"Timestamp,User Count,Type,Name,")
        )

    def read(self, path: Path) -> Imported:
        """Each kind of request is a stage, since Locust times whatever its user's code times."""
        prefix = path.name.removesuffix(_STATS).removesuffix(_HISTORY)
        stats, history = path.with_name(prefix + _STATS), path.with_name(prefix + _HISTORY)
        if not stats.is_file():
            if path.name.endswith(_HISTORY):
                raise wrong(path, f"want {stats.name} beside it")
            stats = path
        rows = [row for row in _rows(stats) if row.get("Name") != _SUM or row.get("Type")]
        rows = [row for row in rows if _number(row, "Request Count")]
        if not rows:
            raise wrong(path, "want at least one kind of request that was made")
        load = _load(history) if history.is_file() else "not told"
        stages = [_stage(stats, row, load, alone=len(rows) == 1) for row in rows]
        notes = ["it does not time tokens: no TTFT, no gaps, no tokens per second"]
        if any(stage.outcomes.get("failed") for stage in stages):
            notes.append("the times of failed requests are among the others")
        return Imported(
            tool="Locust",
            tool_version=None,
            name=prefix,
            definitions=told(_DEFINITIONS, [stage.figures for stage in stages]),
            stages=stages,
            notes=notes,
        )


def _stage(path: Path, row: dict[str, str], load: str, *, alone: bool) -> ImportedStage:
    made, failed = _number(row, "Request Count") or 0.0, _number(row, "Failure Count") or 0.0
    said = {ours: _number(row, theirs) for theirs, ours in _TIMES.items()}
    figures: dict[str, Figure] = {"e2e_s": {"n": made, **statistics(said, _MS)}}
    rate = _number(row, "Requests/s")
    if rate is None or said["mean"] is None:
        raise wrong(path, "want numbers under Average Response Time and Requests/s")
    figures["requests_per_s"] = rate - (_number(row, "Failures/s") or 0.0)
    outcomes = {"completed": int(made - failed)} | ({"failed": int(failed)} if failed else {})
    kind = "" if alone else f" {row.get('Type', '')} {row.get('Name', '')}".rstrip()
    return ImportedStage(load=load + kind, outcomes=outcomes, figures=figures, values={})


def _load(history: Path) -> str:
    """The most users that there were at a time."""
    counts = [_number(row, "User Count") or 0.0 for row in _rows(history)]
    most = max(counts, default=0.0)
    return users(most) if most else "not told"


def _rows(path: Path) -> list[dict[str, str]]:
    text = content(path).decode(errors="replace")
    try:
        return list(csv.DictReader(io.StringIO(text), restval="", strict=True))
    except csv.Error as error:
        raise wrong(path, f"want whole CSV: {error}") from None


def _number(row: dict[str, str], column: str) -> float | None:
    """None for N/A, or where there is no such column."""
    try:
        return finite(float(row.get(column) or "nan"))
    except ValueError:
        return None
