"""What a report is made of before it is HTML: sections of sentences, tables and plots."""

from __future__ import annotations

from typing import Any

import msgspec

Cell = str | float | int | None
"""Text is shown as it is, whoever wrote it; numbers as their column says; None as a dash."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a table."""

    title: str
    form: str = "text"
    """How numbers are shown: `text`, `number`, `seconds`, `percent`, `count`."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table that can be sorted by each column."""

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
    """Plotly's."""
    layout: dict[str, Any] = {}
    """Plotly's, without colours: the page gives those of its theme."""
    csv_header: list[str] = []
    csv_rows: list[list[Cell]] = []


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a report with a heading."""

    name: str
    """Of letters, digits and hyphens: the anchor."""
    title: str
    sentences: list[str] = []
    plots: list[Plot] = []
    tables: list[Table] = []
