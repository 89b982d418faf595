"""A comparison as sections of a page: doubts, the answer, then each load's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from servescope.analysis.comparison import Comparison, Pair, Row, Side
from servescope.report import changes
from servescope.report.compare_plots import before_after, forest
from servescope.report.content import Cell, Column, Form, Notice, Section, Table
from servescope.report.page import render
from servescope.units import format_seconds, three_digits

MOST_NAMED = 5
"""Figures that a sentence names before it counts the others."""


def page(comparison: Comparison, links: Sequence[tuple[str, str]] = ()) -> str:
    """The page of a comparison; `links` as `render` has them."""
    sides = comparison.sides
    kinds = [kind for kind in ("simulated", "imported") if any(s.kind == kind for s in sides)]
    return render(
        " against ".join(
            changes.names(comparison)[::-1] if len(sides) == 2 else changes.names(comparison)
        ),
        sections(comparison),
        facts=[f"{changes.letter(k)}: {_described(side)}" for k, side in enumerate(sides)],
        marks=kinds,
        links=links,
    )


def sections(comparison: Comparison) -> list[Section]:
    """What a page that compares sides is made of."""
    found = [
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
        yield (f"{changes.letter(pair.side)}, {pair.load}" if several else pair.load), pair


# --- in words -------------------------------------------------------------------------------------


def _doubts(comparison: Comparison) -> Section | None:
    notices = []
    for k, side in enumerate(comparison.sides):
        notices += [
            Notice(kind=f"{changes.letter(k)} is incomplete", text=text, tone="bad")
            for text in side.incomplete
        ]
        notices += [
            Notice(
                kind=f"{changes.letter(k)}: {kind}",
                text="\n".join(dict.fromkeys(texts)),
                tone="warning",
            )
            for kind, texts in _by_kind(side)
        ]
        for loads, words in ((side.missing, "A alone has"), (side.unmatched, "A has not")):
            if loads:
                text = f"{changes.letter(k)} and A share no load like these, which {words}: "
                text += ", ".join(loads)
                notices.append(Notice(kind="not compared", text=text, tone="warning"))
        notices += [Notice(kind=f"{changes.letter(k)} and A", text=note) for note in side.notes]
    notices += [
        Notice(kind=name, text=note) for name, pair in _pairs(comparison) for note in pair.notes
    ]
    return Section(name="doubts", title="Doubts", notices=notices) if notices else None


def _by_kind(side: Side) -> Iterator[tuple[str, list[str]]]:
    doubts = sorted(side.doubts, key=lambda doubt: doubt.kind)
    for kind, group in groupby(doubts, lambda doubt: doubt.kind):
        yield kind, [f"{doubt.load}: {doubt.message}" for doubt in group]


def _answer(comparison: Comparison) -> Section:
    sentences = [_sentence(name, pair) for name, pair in _pairs(comparison)]
    if not sentences:
        sentences = ["No load is on both sides: nothing can be compared."]
    return Section(name="answer", title="Answer", sentences=sentences, lead=len(sentences) <= 4)


def _sentence(name: str, pair: Pair) -> str:
    letter = changes.letter(pair.side)
    changed = [
        f"{letter} is {verdict} than A in {_listed(rows)}"
        for verdict in ("worse", "better")
        if (rows := pair.shown(verdict))
    ]
    same = pair.shown("no difference shown")
    if same:
        seen = [
            row.smallest_ratio for row in same if row.smallest_ratio and not changes.is_share(row)
        ]
        if len(same) == 1:
            figures = "the other figure" if changed else "the one figure there is"
        else:
            figures = f"{'the other' if changed else 'any of'} {len(same)} figures"
        end = f"no difference is shown in {figures}"
        if seen:
            low, high = (f"{three_digits(value * 100)} %" for value in (min(seen), max(seen)))
            would = low if low == high else f"{low} to {high}, by figure,"
            end += f", where a change of {would} would have been seen"
        changed.append(end)
    elif not changed:
        changed = ["nothing could be judged: too few requests, or no figure on both sides"]
    return f"{name}: " + "; ".join(changed) + "."


def _listed(rows: Sequence[Row]) -> str:
    """The largest changes first, and one of the statistics of a metric."""
    rows = sorted(rows, key=lambda row: -abs(row.change_ratio or 0.0))
    named = {row.figure.rpartition("_")[0]: row for row in reversed(rows)}
    chosen = [row for row in rows if row in named.values()][:MOST_NAMED]
    said = [f"{row.label} ({changes.change(row)})" for row in chosen]
    more = len(rows) - len(said)
    return ", ".join(said) + (f" and {more} more" if more else "")


# --- in tables ------------------------------------------------------------------------------------


def _value(row: Row, value: float | None) -> Cell:
    if value is None:
        return None
    if row.form == "percent":
        return f"{three_digits(value * 100)} %"
    return format_seconds(value) if row.form == "seconds" else three_digits(value)


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
    letter = changes.letter(pair.side)
    counts = " and ".join(
        f"{requests:,} requests" + (f" in {repeats} runs" if repeats > 1 else "")
        for requests, repeats in zip(pair.requests, pair.repeats, strict=True)
    )
    rows: list[list[Cell]] = [
        [
            row.label,
            _value(row, row.a),
            _value(row, row.b),
            None if row.change_ratio is None else changes.change(row),
            changes.interval(row) or None,
            row.verdict,
            changes.signed(row.smallest_ratio, share=changes.is_share(row)).strip("+?") or None,
            row.note,
        ]
        for row in changes.judged(pair)
    ]
    titles: list[tuple[str, Form]] = [
        ("Figure", "text"),
        ("A", "number"),
        (letter, "number"),
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


def _resources(comparison: Comparison) -> Section | None:
    tables = []
    for name, pair in _pairs(comparison):
        rows: list[list[Cell]] = [
            [row.label, row.a, row.b, row.change_ratio, row.verdict]
            for row in pair.rows
            if row.form == "resource"
        ]
        titles: list[tuple[str, Form]] = [
            ("Figure", "text"),
            ("A", "number"),
            (changes.letter(pair.side), "number"),
            ("Change", "percent"),
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
            columns = [Column(title=title) for title in ("What", "A", changes.letter(k))]
            tables.append(
                Table(title=f"{changes.letter(k)} and A differ in", columns=columns, rows=rows)
            )
        if side.definitions:
            meant: list[list[Cell]] = [list(each) for each in side.definitions.items()]
            columns = [Column(title="Figure"), Column(title=f"As {side.tool} defines it")]
            title = f"{changes.letter(k)}: whose definitions its figures follow"
            tables.append(Table(title=title, columns=columns, rows=meant))
    return Section(name="sides", title="What else differs", tables=tables) if tables else None


def _method(comparison: Comparison) -> Section:
    rows: list[list[Cell]] = [
        [changes.letter(k), name, side.kind, side.target, "\n".join(side.paths)]
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
