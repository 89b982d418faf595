"""A comparison as text: a table for a terminal, Markdown for a pull request, CSV, JUnit XML."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING, TextIO
from xml.etree import ElementTree as ET

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from servescope.analysis.compare import defined
from servescope.analysis.comparison import change, interval, letter, tenths
from servescope.report.changes import (
    NOTHING_SHARED,
    OUTCOMES,
    answer,
    count,
    judged,
    notes,
    outcomes,
    resources,
    smallest,
    title,
    value,
)
from servescope.report.export import defused
from servescope.units import printable

if TYPE_CHECKING:
    from servescope.analysis.comparison import Comparison, Pair, Row, Side
    from servescope.analysis.gate import Judgement

WIDTH = 100
_COLOURS = {
    "better": "bold green",
    "worse": "bold red",
    "kept": "green",
    "broken": "bold red",
    "not decided": "bold yellow",
}
_BOLD = {word: f"**{word}**" for word in _COLOURS}
_SHORT = {"no difference shown": "none shown"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CSV = (
    *("load", "side", "figure", "a", "b", "change_ratio", "low", "high", "verdict"),
    *("smallest_ratio", "note", "requests_wanted"),
)


def heading(found: Comparison, pair: Pair) -> str:
    """What a pair's table is of."""
    a, b = (
        f"{letter(k)} {found.sides[k].name} ({count(pair, which)})"
        for which, k in enumerate((0, pair.side))
    )
    return f"{pair.load}: {a}, {b}"


def definitions(found: Comparison, pair: Pair) -> list[str]:
    """What other tools mean by the figures that are compared, where the sides' tools differ."""
    sides = (("A", found.sides[0]), (letter(pair.side), found.sides[pair.side]))
    if sides[0][1].tool == sides[1][1].tool:
        return []
    meant: dict[tuple[str, str], None] = {}
    for row in pair.rows:
        for name, side in sides if row.a is not None and row.b is not None else ():
            if said := defined(row, side):
                metric = row.label.removesuffix(f" {row.figure.rpartition('_')[2]}").rstrip(",")
                meant[f"{name}'s {metric}", said] = None
    return [f"{what}: {said}" for what, said in meant]


# --- for a terminal -------------------------------------------------------------------------------


def print_table(found: Comparison, gate: Sequence[Judgement], out: TextIO, *, colour: bool) -> None:
    """Write a comparison for people: what differs and what is in doubt first."""
    console = Console(
        file=out, width=WIDTH, force_terminal=colour, no_color=not colour,
        highlight=False, markup=False, emoji=False,
        soft_wrap=not colour,  # what a program reads has each sentence on one line
    )  # fmt: skip
    for number, side in enumerate(found.sides):
        _print_side(console, letter(number), side)
    for pair in found.pairs:
        console.print()
        console.print(Text(printable(heading(found, pair)), "bold"))
        for note in pair.notes:
            console.print(Text(f"note: {printable(note)}", "yellow"))
        console.print(Text(printable(answer(pair))))
        console.print(_figures(pair))
        if resources(pair):
            console.print(_resources(pair))
        for said in notes(pair):
            console.print(Text(printable(said), "dim"))
        for said in definitions(found, pair):
            console.print(Text(printable(said), "dim"))
    console.print()
    if not found.pairs:
        console.print(Text(NOTHING_SHARED, "bold"))
    for note in found.notes:
        console.print(Text(printable(note), "dim"))
    for one in gate:
        said = f"{one.bound} at {one.load}: "
        words = (one.outcome, _COLOURS[one.outcome])
        console.print(
            Text.assemble("gate ", printable(said), words, f": {printable(one.sentence)}")
        )
    if gate:
        console.print(f"gate: {outcomes(gate)}")


def _print_side(console: Console, letter: str, side: Side) -> None:
    console.print(Text(f"{letter}  {printable(side.name)}: {printable(side.target)}", "bold"))
    for why in side.incomplete:
        console.print(Text(f"   INCOMPLETE: {printable(why)}", "bold red"))
    for doubt in side.doubts:
        said = printable(f"{doubt.kind} at {doubt.load}: {doubt.message}")
        console.print(Text(f"   doubt: {said}", "yellow"))
    for said in _differences(side):
        console.print(Text(f"   {printable(said)}", "yellow"))
    for note in side.notes:
        console.print(Text(f"   note: {printable(note)}", "yellow"))


def _differences(side: Side) -> Iterator[str]:
    for one in side.differs:
        yield f"differs from A in {one.what}: {one.b}, A: {one.a}"
    if side.missing:
        yield f"A alone has {', '.join(side.missing)}: not compared"
    if side.unmatched:
        yield f"this side alone has {', '.join(side.unmatched)}: not compared"


def _figures(pair: Pair) -> Table:
    titles = ("A", letter(pair.side), "change, %", "lies in", "difference", "seen from")
    grid = _grid(titles)
    for row in judged(pair):
        said = _SHORT.get(row.verdict or "", row.verdict or "-")
        seen = "-" if row.smallest_ratio is None else f"{row.smallest_ratio * 100:.1f}"
        last = (interval(row) or "-", Text(said, _COLOURS.get(said, "")), seen)
        grid.add_row(*_first(row), *last)
    return grid


def _resources(pair: Pair) -> Table:
    grid = _grid(("A", letter(pair.side), "change, %", "difference"))
    for row in resources(pair):
        said = _SHORT.get(row.verdict or "", row.verdict or "-")
        grid.add_row(*_first(row), Text(said, _COLOURS.get(said, "")))
    return grid


def _grid(titles: Sequence[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("")
    for each in titles:
        left = each == "difference"
        grid.add_column(each, justify="left" if left else "right", no_wrap=True)
    return grid


def _first(row: Row) -> tuple[str, str, str, str]:
    changed = "-" if row.change_ratio is None else tenths(row.change_ratio)
    return printable(title(row)), _value(row, row.a), _value(row, row.b), changed


def _value(row: Row, x: float | None) -> str:
    return "-" if x is None else value(row, x)


# --- for a pull request ---------------------------------------------------------------------------


def markdown(found: Comparison, judged: Sequence[Judgement]) -> str:
    """A comparison as Markdown that GitHub and GitLab show."""
    return "\n".join(_markdown(found, judged)) + "\n"


def _markdown(found: Comparison, judged: Sequence[Judgement]) -> Iterator[str]:
    if judged:
        yield f"## servescope compare: gate {outcomes(judged)}"
        yield ""
        yield from _lines(("bound", "load", "outcome", "why"), "---", [
            (one.bound, one.load, one.outcome, one.sentence) for one in judged
        ])  # fmt: skip
    else:
        yield "## servescope compare"
        yield ""
    for number, side in enumerate(found.sides):
        yield f"- **{letter(number)}**: {_safe(side.name)}, {_safe(side.target)}"
        yield from (f"  - **incomplete**: {_safe(why)}" for why in side.incomplete)
        for doubt in side.doubts:
            yield f"  - doubt {_safe(f'{doubt.kind} at {doubt.load}: {doubt.message}')}"
        yield from (f"  - {_safe(said)}" for said in _differences(side))
        yield from (f"  - {_safe(note)}" for note in side.notes)
    for pair in found.pairs:
        yield ""
        yield f"### {_safe(heading(found, pair))}"
        yield ""
        yield from (f"- {_safe(note)}" for note in pair.notes)
        if pair.notes:
            yield ""
        yield f"{_safe(answer(pair))}."
        yield ""
        rows = [
            (
                title(row), _value(row, row.a), _value(row, row.b),
                "-" if row.change_ratio is None else change(row),
                interval(row) or "-", row.verdict or "-", smallest(row) or "-",
            )
            for row in pair.rows
        ]  # fmt: skip
        titles = ("figure", "A", "B", "change", "lies in", "verdict", "seen from")
        yield from _lines(titles, "--:", rows)
        yield from (f"- {_safe(said)}" for said in (*notes(pair), *definitions(found, pair)))
    if not found.pairs:
        yield f"\n{NOTHING_SHARED}"
    yield ""
    yield from (f"<sub>{_safe(note)}</sub>" for note in found.notes)


def _lines(titles: Sequence[str], form: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"| --- | {' | '.join(form for _ in titles[1:])} |"
    for row in rows:
        yield f"| {' | '.join(_safe(cell) if cell not in _BOLD else _BOLD[cell] for cell in row)} |"
    yield ""


def _safe(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#@!])", r"\\\1", shown)


# --- for programs ---------------------------------------------------------------------------------


def comma_separated(found: Comparison) -> str:
    """A row a figure and pair of stages."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV)
    for pair in found.pairs:
        side = found.sides[pair.side].name
        for row in pair.rows:
            cells = [pair.load, side, *(getattr(row, column) for column in _CSV[2:])]
            shown = (printable(cell) if isinstance(cell, str) else cell for cell in cells)
            writer.writerow([defused(cell) for cell in shown])
    return out.getvalue()


def junit(judged: Sequence[Judgement], *, undecided_fails: bool) -> bytes:
    """A gate as JUnit XML: a test case a bound, side and load. Not decided is skipped, or fails."""
    count = {word: sum(one.outcome == word for one in judged) for word in OUTCOMES}
    failures = count["broken"] + (count["not decided"] if undecided_fails else 0)
    skipped = 0 if undecided_fails else count["not decided"]
    totals = {"tests": len(judged), "failures": failures, "errors": 0, "skipped": skipped}
    written = {key: str(total) for key, total in totals.items()}
    suites = ET.Element("testsuites", written)
    suite = ET.SubElement(suites, "testsuite", {"name": "servescope compare", **written})
    for one in judged:
        where = _xml(f"servescope.compare.{one.side}")
        title = _xml(f"{one.bound} at {one.load}")
        case = ET.SubElement(suite, "testcase", {"classname": where, "name": title})
        said = _xml(one.sentence)
        if one.outcome == "broken" or (undecided_fails and one.outcome == "not decided"):
            failure = ET.SubElement(case, "failure", {"message": said, "type": one.outcome})
            failure.text = said
        elif one.outcome == "not decided":
            ET.SubElement(case, "skipped", {"message": f"not decided: {said}"})
        else:
            ET.SubElement(case, "system-out").text = said
    ET.indent(suites)
    written_out: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return written_out + b"\n"


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
