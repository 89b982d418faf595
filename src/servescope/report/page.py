"""Sections to one HTML file that needs nothing else, now or in ten years.

Text is escaped, data are JSON in inert script elements, and the page's policy lets no script run
but the two that are in it (by their hashes) and nothing be fetched.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from servescope.report.content import Cell, Estimate, Plot, Said, Section
from servescope.report.export import defused
from servescope.units import format_seconds, printable, three_digits

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = "<!-- scripts -->\n"
_MOST_LETTERS = 500
"""Of one text inside a plot."""
_INERT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""Plotly takes some HTML in its texts for markup, and decodes entities."""
_FORMS: dict[str, Callable[[float], str]] = {
    "seconds": format_seconds,
    "percent": lambda ratio: f"{three_digits(ratio * 100)} %",
    "change": lambda ratio: f"{ratio:+z.1%}".replace("%", " %"),
    "count": lambda count: f"{count:,.0f}",
}


def render(
    title: str,
    sections: Sequence[Section],
    *,
    facts: Sequence[str] = (),
    marks: Sequence[str] = (),
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """One page. `facts` are small lines under the title, `marks` words that stand out beside it.

    `links` are words and where they lead, for a page that is served among others.
    """
    return encoded(title, sections, facts=facts, marks=marks, links=links).decode()


def encoded(
    title: str,
    sections: Sequence[Section],
    *,
    facts: Sequence[str] = (),
    marks: Sequence[str] = (),
    links: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The same in UTF-8, which is sooner made: its megabytes of script are never decoded."""
    scripts = [(_TEMPLATES / "page.js").read_bytes()]
    if any(section.plots for section in sections):
        scripts.insert(0, _plotly())
    text = (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            facts=facts,
            marks=marks,
            links=links,
            sections=sections,
            style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),  # noqa: S704 (ours)
            hashes=[_hash(script) for script in scripts],
        )
    )
    head, end = text.rsplit(_SCRIPTS, 1)
    elements = (b"<script>" + script + b"</script>\n" for script in scripts)
    return b"".join((head.encode(), *elements, end.encode()))


@cache
def environment() -> Environment:
    """Templates, and the filters by which they show what is not ours."""
    found = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(cell=_cell, key=_key, interval=_interval, inert=_inert, shown=_shown)
    found.globals.update(places=_places)
    return found


@cache
def _plotly() -> bytes:
    """The script that Plotly's distribution brings; importing the package would take a second."""
    spec = find_spec("plotly")
    assert spec is not None, "plotly is a dependency"  # noqa: S101
    for home in spec.submodule_search_locations or ():
        path = Path(home) / "package_data" / "plotly.min.js"
        if path.exists():
            return path.read_bytes()
    raise FileNotFoundError("plotly.min.js")


def _hash(script: bytes) -> str:
    """As a content-security policy names a script."""
    digest = hashlib.sha256(script).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _places(plots: Iterable[Plot]) -> list[list[Plot]]:
    """Plots by the place that they have on the page: neighbours with a choice share one."""
    found: list[list[Plot]] = []
    for chosen, group in groupby(plots, lambda plot: bool(plot.choice)):
        place = list(group)
        found += [place] if chosen else [[plot] for plot in place]
    return found


def _inert(plot: Plot) -> Markup:
    """A plot's data as JSON that no parser of HTML takes for anything else."""
    data = {
        "traces": _neutral(plot.traces),
        "layout": _neutral(plot.layout),
        "csv": _csv(plot.csv_header, plot.csv_rows),
    }
    text = msgspec.json.encode(data).decode()
    for letter, escape in _INERT.items():
        text = text.replace(letter, escape)
    return Markup(text)  # noqa: S704 (escaped just above)


def _neutral(value: Any, key: str = "") -> Any:  # noqa: ANN401 (JSON)
    """A copy in which Plotly finds no markup but in our own templates."""
    if isinstance(value, dict):
        return {name: _neutral(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_neutral(inner, key) for inner in value]
    if isinstance(value, str) and not key.endswith("template"):
        return printable(value[:_MOST_LETTERS]).translate(_TEXT)
    return value


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file whose cells no spreadsheet takes for formulas."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    for row in (header, *rows):
        writer.writerow([defused(cell) for cell in row])
    return stream.getvalue() if header else ""


def _shown(text: str) -> str:
    """Text from elsewhere, with what cannot be seen made visible; line breaks stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _cell(cell: Cell, form: str) -> str:
    """A cell as people read it."""
    if isinstance(cell, Said):
        return cell.words
    value = cell.value if isinstance(cell, Estimate) else cell
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"  # noqa: RUF001 (a dash is what it is)
    if isinstance(value, str):
        return _shown(value)
    return _FORMS.get(form, three_digits)(value)


def _interval(cell: Cell, form: str) -> str:
    """The interval of a cell that has one."""
    if not isinstance(cell, Estimate) or cell.low is None or cell.low == cell.high:
        return ""
    low, high = _cell(cell.low, form), _cell(cell.high, form)
    (number, _, unit), (upper, _, same) = low.partition(" "), high.partition(" ")
    alike = unit == same and " " not in unit
    return f"{number} to {upper} {unit}".strip() if alike else f"{low} to {high}"


def _key(cell: Cell) -> str:
    """What a row is sorted by: a number, or text; nothing where there is none."""
    value = cell.value if isinstance(cell, Estimate | Said) else cell
    return "" if value is None else printable(str(value))
