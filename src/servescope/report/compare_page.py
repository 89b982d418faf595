"""A comparison as sections of a page: doubts, the answer, then each load's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from servescope.analysis.comparison import (
    Comparison,
    Pair,
    Row,
    Side,
    change,
    interval,
    letter,
    said,
    unit,
)
from servescope.report import changes
from servescope.report.changes import outcomes
from servescope.report.compare_plots import before_after, forest
from servescope.report.content import Cell, Column, Form, Notice, Said, Section, Table
from servescope.report.page import render

if TYPE_CHECKING:
    from servescope.analysis.gate import Judgement


def page(
    comparison: Comparison,
    links: Sequence[tuple[str, str]] = (),
    gate: Sequence[Judgement] = (),
) -> str:
    """The page of a comparison, with what became of a gate; `links` as `render` has them."""
    sides = comparison.sides
    kinds = [kind for kind in ("simulated", "imported") if any(s.kind == kind for s in sides)]
    return render(
        " against ".join(
            changes.names(comparison)[::-1] if len(sides) == 2 else changes.names(comparison)
        ),
        sections(comparison, gate),
        facts=[f"{letter(k)}: {_described(side)}" for k, side in enumerate(sides)],
        marks=kinds,
        links=links,
    )


def sections(comparison: Comparison, gate: Sequence[Judgement] = ()) -> list[Section]:
    """What a page that compares sides is made of."""
    found = [
        _gate(gate),
        _doubts(comparison),
        _answer(comparison),
        before_after(comparison),
        _changes(comparison),
        _resources(comparison),
        _differences(comparison),
        _method(comparison),
    ]
    return [section for section in found if section is not None]


def _described(side: Side) -> str:
    kind = "" if side.kind == "measured" else side.kind
    return ", ".join(filter(None, (side.name, kind, side.target)))


def _pairs(comparison: Comparison) -> Iterator[tuple[str, Pair]]:
    """Each pair with its name: the side only where there are several."""
    several = len(comparison.sides) > 2
    for pair in comparison.pairs:
        yield (f"{letter(pair.side)}, {pair.load}" if several else pair.load), pair


# --- in words -------------------------------------------------------------------------------------


def _gate(gate: Sequence[Judgement]) -> Section | None:
    rows: list[list[Cell]] = [
        [one.bound, one.side, one.load, one.outcome, one.sentence] for one in gate
    ]
    columns = [Column(title=title) for title in ("Bound", "Side", "Load", "Outcome", "Why")]
    table = Table(title=f"The gate: {outcomes(gate)}", columns=columns, rows=rows)
    return Section(name="gate", title="Gate", tables=[table]) if rows else None


def _doubts(comparison: Comparison) -> Section | None:
    notices = []
    for k, side in enumerate(comparison.sides):
        notices += [
            Notice(kind=f"{letter(k)} is incomplete", text=text, tone="bad")
            for text in side.incomplete
        ]
        notices += [
            Notice(
                kind=f"{letter(k)}: {kind}",
                text="\n".join(dict.fromkeys(texts)),
                tone="warning",
            )
            for kind, texts in _by_kind(side)
        ]
        for who, loads in (("A", side.missing), (letter(k), side.unmatched)):
            if loads:
                text = f"{who} alone has {', '.join(loads)}"
                notices.append(Notice(kind="not compared", text=text, tone="warning"))
        notices += [Notice(kind=letter(k), text=note) for note in side.notes]
    notices += [
        Notice(kind=name, text=note) for name, pair in _pairs(comparison) for note in pair.notes
    ]
    return Section(name="doubts", title="Doubts", notices=notices) if notices else None


def _by_kind(side: Side) -> Iterator[tuple[str, list[str]]]:
    doubts = sorted(side.doubts, key=lambda doubt: doubt.kind)
    for kind, group in groupby(doubts, lambda doubt: doubt.kind):
        yield kind, [f"{doubt.load}: {doubt.message}" for doubt in group]


def _answer(comparison: Comparison) -> Section:
    sentences = [f"{name}: {changes.answer(pair)}." for name, pair in _pairs(comparison)]
    if not sentences:
        sentences = [f"{changes.NOTHING_SHARED[:1].upper()}{changes.NOTHING_SHARED[1:]}."]
    return Section(name="answer", title="Answer", sentences=sentences, lead=len(sentences) <= 4)


# --- in tables ------------------------------------------------------------------------------------


def _changes(comparison: Comparison) -> Section | None:
    pairs = list(_pairs(comparison))
    plots = [forest(k, name, pair, several=len(pairs) > 1) for k, (name, pair) in enumerate(pairs)]
    if not pairs:
        return None
    return Section(
        name="changes",
        title="Changes",
        plots=[plot for plot in plots if plot is not None],
        tables=[_table(name, pair) for name, pair in pairs],
    )


def _table(name: str, pair: Pair) -> Table:
    counts = " and ".join(changes.count(pair, side) for side in (0, 1))
    rows: list[list[Cell]] = [
        [
            row.label,
            _value(row, row.a),
            _value(row, row.b),
            _said(change(row), row.change_ratio),
            Said(f"{interval(row)} {unit(row)}", row.low) if interval(row) else None,
            row.verdict,
            _said(changes.smallest(row), row.smallest_ratio),
            said(row),
        ]
        for row in changes.judged(pair)
    ]
    titles: list[tuple[str, Form]] = [
        ("Figure", "text"),
        ("A", "number"),
        (letter(pair.side), "number"),
        ("Change", "number"),
        ("95 % interval", "number"),
        ("Verdict", "text"),
        ("Would have been seen", "number"),
        ("Note", "text"),
    ]
    if not any(row[-1] for row in rows):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    columns = [Column(title=title, form=form) for title, form in titles]
    return Table(title=f"{name}: {counts}", columns=columns, rows=rows)


def _value(row: Row, x: float | None) -> Cell:
    return None if x is None else Said(changes.value(row, x), x)


def _said(words: str | None, value: float | None) -> Cell:
    return None if words is None or value is None else Said(words, value)


def _resources(comparison: Comparison) -> Section | None:
    tables = []
    for name, pair in _pairs(comparison):
        rows: list[list[Cell]] = [
            [
                changes.title(row),
                _value(row, row.a),
                _value(row, row.b),
                row.change_ratio,
                row.verdict,
            ]
            for row in changes.resources(pair)
        ]
        titles: list[tuple[str, Form]] = [
            ("Figure", "text"),
            ("A", "number"),
            (letter(pair.side), "number"),
            ("Change", "change"),
            ("Verdict", "text"),
        ]
        columns = [Column(title=title, form=form) for title, form in titles]
        if rows:
            tables.append(Table(title=name, columns=columns, rows=rows))
    return Section(name="resources", title="Resources", tables=tables) if tables else None


def _differences(comparison: Comparison) -> Section | None:
    """In what the sides are unlike besides: what the changes may come from."""
    tables = []
    for k, side in enumerate(comparison.sides):
        if side.differs:
            rows: list[list[Cell]] = [[each.what, each.a, each.b] for each in side.differs]
            columns = [Column(title=title) for title in ("What", "A", letter(k))]
            tables.append(Table(title=f"{letter(k)} and A differ in", columns=columns, rows=rows))
        if side.definitions:
            meant: list[list[Cell]] = [list(each) for each in side.definitions.items()]
            columns = [Column(title="Figure"), Column(title=f"As {side.tool} defines it")]
            title = f"{letter(k)}: whose definitions its figures follow"
            tables.append(Table(title=title, columns=columns, rows=meant))
    return Section(name="sides", title="What else differs", tables=tables) if tables else None


def _method(comparison: Comparison) -> Section:
    rows: list[list[Cell]] = [
        [letter(k), name, side.kind, side.target, "\n".join(side.paths)]
        for k, (name, side) in enumerate(
            zip(changes.names(comparison), comparison.sides, strict=True)
        )
    ]
    columns = [Column(title=title) for title in ("Side", "Name", "Kind", "Target", "From")]
    return Section(
        name="method",
        title="How it was compared",
        sentences=[note[:1].upper() + note[1:] + "." for note in comparison.notes],
        tables=[Table(title="Sides", columns=columns, rows=rows)],
    )
