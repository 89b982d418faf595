"""What a report is made of before it is HTML: sections of sentences, notices, plots and tables.

Text may come from anywhere (a server's words, a model's name): the page shows it as text.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Form: TypeAlias = Literal["text", "number", "seconds", "percent", "change", "count"]
"""How a column shows its numbers. `percent` takes ratios: 0.5 is 50 %; so does `change`: +50 %."""


class Estimate(msgspec.Struct, frozen=True):
    """A number with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


class Said(msgspec.Struct, frozen=True):
    """A number that has its own words in a column where others have another unit."""

    words: str
    value: float | None
    """By which its row is sorted."""


Cell = str | float | int | Estimate | Said | None
"""Text is shown as it is, whoever wrote it; numbers as their column says; None as a dash."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a table."""

    title: str
    form: Form = "text"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table that can be sorted by each column. A row's first cell is its heading."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """A plot, with what it shows as a table of its own to download."""

    name: str
    """Of letters, digits and hyphens: the element's id and the CSV file's name."""
    title: str
    caption: str
    """One or two sentences for those who cannot see it, or do not know how to read it."""
    traces: list[dict[str, Any]]
    """Plotly's. The page escapes every text in them, but for hover and text templates: what others
    wrote has no place in those."""
    layout: dict[str, Any] = {}
    """Plotly's. Colours, here and in the traces, have keys that end in `colour` and are names of
    the page's palette: it has one for each theme."""
    choice: str = ""
    """Neighbours in a section that have one share a place; this names the plot among them."""
    csv_header: list[str] = []
    csv_rows: list[list[Any]] = []


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence that stands out: a doubt, a finding."""

    kind: str
    """In a word or two."""
    text: str
    advice: str = ""
    tone: Literal["bad", "warning", "plain"] = "plain"


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """Text to be shown letter for letter, folded away under its title."""

    title: str
    text: str
    open: bool = False


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a report with a heading."""

    name: str
    """Of letters, digits and hyphens: the anchor."""
    title: str
    sentences: list[str] = []
    lead: bool = False
    """The sentences are what the reader came for: they are set large."""
    notices: list[Notice] = []
    plots: list[Plot] = []
    tables: list[Table] = []
    codes: list[Code] = []
