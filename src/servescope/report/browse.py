"""The pages of `servescope view`: a list of runs, a run's report, and runs compared."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from servescope.analysis import compare, findings
from servescope.analysis.evidence import Evidence
from servescope.errors import ServescopeError
from servescope.report import compare_page, html, page
from servescope.report.content import Cell, Estimate, Form, Section
from servescope.report.listing import Listed, Listing
from servescope.serve.browse import Answer
from servescope.store import Run

MOST_ROWS = 1000
_KEPT_PAGES = 8
_MOST_LOADS = 5
_HERE = Path(__file__).parent / "templates"
_ASSETS = {"/page.css": "text/css", "/browse.css": "text/css", "/browse.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'"
)
_CHOICES = (("kind", "Kind"), ("model", "Model"), ("engine", "Engine"))


class _Column(NamedTuple):
    name: str
    title: str
    form: Form = "text"


_TEXTS = (
    _Column("name", "Run"),
    _Column("when", "When, UTC"),
    _Column("model", "Model and engine"),
    _Column("load", "Load"),
)
_NUMBERS = (
    _Column("failed", "Errors", "count"),
    _Column("doubts", "Doubts", "count"),
    _Column("requests_per_s", "Requests/s", "number"),
    _Column("output_tokens_per_s", "Output tokens/s", "number"),
    _Column("ttft_p50", "TTFT P50", "seconds"),
    _Column("ttft_p99", "TTFT P99", "seconds"),
    _Column("itl_p50", "ITL P50", "seconds"),
)
_COLUMNS = (*_TEXTS, *_NUMBERS)


class Browser:
    """Answers requests for the pages of the runs under a directory; from several threads."""

    def __init__(self, root: Path) -> None:
        """Raises BadInput where it is no directory that can be read."""
        self._listing = Listing(root)
        self._pages: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def respond(self, path: str, query: Sequence[tuple[str, str]]) -> Answer:
        """The page at a path."""
        if path == "/":
            return Answer(_list(self._listing, dict(query)), policy=_POLICY)
        if path in _ASSETS:
            text = (_HERE / path[1:]).read_text(encoding="utf-8")
            return Answer(text, _ASSETS[path], policy="default-src 'none'")
        if path.startswith("/run/"):
            return self._show([path.removeprefix("/run/")], _report)
        if path == "/compare":
            keys = list(dict.fromkeys(value for name, value in query if name == "run"))
            if len(keys) < 2:
                return _said(400, "Nothing to compare", "Tick two runs or more, then Compare.")
            return self._show(keys, _comparison)
        if path == "/favicon.ico":  # asked for by browsers, whatever a page says
            return Answer("", status=204)
        return _said(404, "No such page", "There is nothing here by this name.")

    def _show(self, keys: list[str], make: Callable[[list[Listed]], str]) -> Answer:
        """The page that `make` makes of runs; kept until one of them changes."""
        runs = {run.key: run for run in self._listing.runs()}
        chosen = [runs[key] for key in keys if key in runs]
        if len(chosen) < len(keys):
            lost = next(key for key in keys if key not in runs)
            return _said(404, "No such run", f"There is no run {lost} here, or not any more.")
        for run in chosen:
            if run.state == "unreadable":
                return _said(422, f"{run.name} cannot be read", run.why)
        mark = (make, *((run.state, _mark(run.path)) for run in chosen))
        with self._lock:  # one at a time: each takes a whole core while it is made
            try:
                text = self._pages.pop(mark, None) or make(chosen)
            except (ServescopeError, OSError) as error:
                return _said(422, "This cannot be shown", str(error))
            self._pages[mark] = text
            if len(self._pages) > _KEPT_PAGES:
                self._pages.popitem(last=False)
        return Answer(text)


def _mark(path: Path) -> tuple[Any, ...]:
    """Changes when what is in a run's directory does."""
    names = ("manifest.json", "requests.jsonl", "samples.jsonl")
    found = [(path / name).stat() for name in names if (path / name).exists()]
    return (path, *((each.st_mtime_ns, each.st_size) for each in found))


def _report(runs: list[Listed]) -> str:
    """The report of a run, worked out anew: nothing is written into a run that may go on."""
    found = Evidence.of(Run(runs[0].path))
    found.summary.findings = findings(found)
    if runs[0].state == "running":
        found.summary.ended_by = "it is still going on"
    return html.of_run(found, [("All runs", "/")])


def _comparison(runs: list[Listed]) -> str:
    """Runs compared with the first of them."""
    sides = compare.read([str(run.path) for run in runs])
    links = [("All runs", "/")]
    if len(runs) == 2:
        swapped = _query([("run", run.key) for run in reversed(runs)])
        links.append(("Swap A and B", f"/compare?{swapped}"))
    links += [(f"Report of {run.name}", f"/run/{_quoted(run.key)}") for run in runs]
    return compare_page.page(compare.compare(sides), links)


def _quoted(key: str) -> str:
    """As it stands in a URL; a directory's name may hold any byte."""
    return quote(os.fsencode(key))


def _query(asked: Iterable[tuple[str, str]]) -> str:
    return urlencode(list(asked), errors="surrogateescape")


def _said(status: int, title: str, words: str) -> Answer:
    why = Section(name="why", title="Why", sentences=[words])
    text = page.render(title, [why], links=[("All runs", "/")])
    return Answer(text, status=status)


# --- the list -------------------------------------------------------------------------------------


def _list(listing: Listing, query: dict[str, str]) -> str:
    everything = listing.runs()
    names = ("q", "sort", "down", *(name for name, _ in _CHOICES))
    asked = {name: query.get(name, "") for name in names}
    runs = [run for run in everything if _wanted(run, asked)]
    found = len(runs)
    by = next((column for column in _COLUMNS if column.name == asked["sort"]), None)
    if by is not None:
        runs = _sorted(runs, by, down=bool(asked["down"]))
    shown = [_row(run) for run in runs[:MOST_ROWS]]
    return (
        page.environment()
        .get_template("browse.html")
        .render(
            root=str(listing.root),
            asked=asked,
            choices=[
                (name, title, values)
                for name, title in _CHOICES
                if len(values := sorted({_value(run, name) for run in everything} - {""})) > 1
            ],
            columns=[_heading(column, by, asked) for column in _COLUMNS],
            runs=shown,
            going=any(run.state == "running" for run in everything),
            said=_count(len(shown), found, len(everything)),
        )
    )


def _count(shown: int, found: int, all_: int) -> str:
    if not all_:
        return "No runs here yet: servescope run makes one."
    if not found:
        return f"None of {all_:,} runs."
    runs = f"{all_:,} run" + "s" * (all_ != 1)
    said = runs if found == all_ else f"{found:,} of {runs}"
    return said + (f"; the first {shown:,} are shown" if shown < found else "")


def _wanted(run: Listed, asked: dict[str, str]) -> bool:
    chosen = all(asked[name] in ("", _value(run, name)) for name, _ in _CHOICES)
    return chosen and run.mentions(asked["q"].casefold().split())


def _value(run: Listed, name: str) -> str:
    """What the run has in a column of text."""
    if name == "when":
        return run.started_utc[:16].replace("T", " ")
    if name == "load":
        return _loads(run.loads)
    return str(getattr(run, name))


def _loads(loads: Sequence[str]) -> str:
    """Loads as an option has them: those of one kind together."""
    found = []
    for kind, group in groupby(loads, lambda load: load.partition(":")[0]):
        values = [load.partition(":")[2] for load in group]
        if len(values) > _MOST_LOADS:
            values[2:-1] = ["..."]
        found.append(f"{kind}:{', '.join(values)}" if values[0] else kind)
    return "; ".join(found)


def _cell(run: Listed, column: _Column) -> Cell:
    if column.name in ("failed", "doubts"):
        return run.failed if column.name == "failed" else run.doubts
    found = run.figures.get(column.name)
    if found is None or found[0] == found[1]:
        return found and found[0]
    return Estimate(found[1], *found)


def _sorted(runs: Iterable[Listed], by: _Column, *, down: bool) -> list[Listed]:
    """Stages that differ count with their largest; what has no such figure comes last."""

    def order(run: Listed) -> Any:  # noqa: ANN401
        if by.form == "text":
            return _value(run, by.name).casefold()
        cell = _cell(run, by)
        return cell.value if isinstance(cell, Estimate) else cell

    runs = list(runs)
    known = sorted((r for r in runs if order(r) not in (None, "")), key=order, reverse=down)
    return known + [run for run in runs if order(run) in (None, "")]


def _heading(column: _Column, by: _Column | None, asked: dict[str, str]) -> dict[str, str]:
    """A heading that sorts: rising, at the second time falling, at the third as it was."""
    now = ("descending" if asked["down"] else "ascending") if column is by else ""
    order = {"": {"sort": column.name, "down": ""}, "ascending": {"down": "1"}}
    following = asked | order.get(now, {"sort": "", "down": ""})
    href = "/?" + _query(item for item in following.items() if item[1])
    return {**column._asdict(), "sorted": now, "href": href}


def _row(run: Listed) -> dict[str, Any]:
    beside = run.key if Path(run.key).name != run.key or run.key != run.name else ""
    return {
        **{name: getattr(run, name) for name in ("key", "name", "state", "why", "kind")},
        "model": run.model,
        "where": ", ".join(filter(None, (run.engine, run.target))),
        "href": _quoted(run.key),
        "beside": beside,
        "date": run.started_utc[:10],
        "time": run.started_utc[11:16],
        "load": _value(run, "load"),
        "cells": [(_cell(run, column), column.form) for column in _NUMBERS],
    }
