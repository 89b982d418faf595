"""Cells as Markdown, for a console and for docs/accuracy.md alike, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from servescope.validation import vllm_traces
from servescope.validation.cells import Cell
from servescope.validation.statistics import Errors, Order, errors, orders

BEGIN, END = "<!-- {}: made by `make validate` -->", "<!-- {}: end -->"


def markdown(cells: Sequence[Cell]) -> str:
    """Statistics of each source and of all, the orders that are wrong, and every cell."""
    return "\n".join([*_summary(cells), "", *_wrong(cells), "", *_all(cells)]) + "\n"


def between(text: str, part: str) -> str:
    """What stands between the markers of a part of a page."""
    begin, end = BEGIN.format(part), END.format(part)
    return text.partition(begin + "\n")[2].partition(end)[0]


def text(cells: Sequence[Cell]) -> str:
    """All tables, and a word where some are missing."""
    missing = f"traces: left out, {vllm_traces.VARIABLE} names no folder with them\n"
    return "\n".join(markdown(own) if own else missing for own in _parts(cells).values())


def write(page: Path, cells: Sequence[Cell]) -> None:
    """Put the tables between the markers of a page; what there are no cells of stays as it is."""
    for part, own in _parts(cells).items():
        begin, end, found = BEGIN.format(part), END.format(part), page.read_text("utf-8")
        head, _, rest = found.partition(begin)
        _, _, tail = rest.partition(end)
        if own:
            page.write_text(f"{head}{begin}\n{markdown(own)}{end}{tail}", "utf-8")


def as_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """The same figures as builtins: statistics of each source and of all, and every cell."""
    sources = {name: [cell for cell in cells if cell.source == name] for name in _sources(cells)}
    sources["all but fractions"] = [cell for cell in cells if not cell.is_share]
    return {
        "sources": [{"source": name, **_statistics(own)} for name, own in sources.items()],
        "cells": [{**msgspec.to_builtins(cell), "error": cell.error} for cell in cells],
    }


def _statistics(cells: Sequence[Cell]) -> dict[str, float]:
    pairs = orders(cells)
    right = sum(pair.is_right for pair in pairs)
    return {**errors(cells)._asdict(), "orders": len(pairs), "orders_right": right}


def _parts(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """By part of the page: traces are not everywhere."""
    told = (vllm_traces.NOTHING_FITTED, vllm_traces.ONE_CONSTANT)
    return {
        "tables": [cell for cell in cells if cell.source not in told],
        "traces": [cell for cell in cells if cell.source in told],
    }


def _sources(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.source for cell in cells))


def _summary(cells: Sequence[Cell]) -> Iterator[str]:
    yield "| source | figures | not predicted | median | mean | P90 | bias | orders |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for source in _sources(cells):
        own = [cell for cell in cells if cell.source == source]
        yield _line(source, own, is_share=own[0].is_share and own[-1].is_share)
    ratios = [cell for cell in cells if not cell.is_share]
    if len(ratios) < len(cells):
        yield _line("**all but fractions**", ratios, is_share=False)


def _line(name: str, cells: Sequence[Cell], *, is_share: bool) -> str:
    found, pairs = errors(cells), orders(cells)
    right = sum(pair.is_right for pair in pairs)
    figures = " | ".join(_figures(found, is_share=is_share))
    return (
        f"| {name} | {found.cells} | {found.unpredicted or ''} | {figures} | {_of(right, pairs)} |"
    )


def _figures(found: Errors, *, is_share: bool) -> Iterator[str]:
    if not found.cells:
        yield from ["", "", "", ""]
        return
    shown = "{:.4f}" if is_share else "{:.1%}"
    for value in (found.median, found.mean, found.p90):
        yield shown.format(value)
    yield ("{:+.4f}" if is_share else "{:+.1%}").format(found.bias)


def _of(right: int, pairs: Sequence[object]) -> str:
    return f"{right} of {len(pairs)}" if pairs else ""


def _wrong(cells: Sequence[Cell]) -> Iterator[str]:
    pairs = [pair for pair in orders(cells) if not pair.is_right]
    if not pairs:
        yield "All orders are predicted."
        return
    yield "Orders that are not predicted, measured and predicted as ratios:"
    yield ""
    for (source, by, first, second, setting), group in _alike(pairs).items():
        told = [f"{pair.cells[0].metric} {_ratios(pair)}" for pair in group]
        yield f"- {source}, {setting}: {by} {first} : {second}; {', '.join(told)}"


def _alike(pairs: Sequence[Order]) -> dict[tuple[str, ...], list[Order]]:
    """Pairs by what they compare, whatever the metric."""
    found: dict[tuple[str, ...], list[Order]] = {}
    for pair in pairs:
        one, _ = pair.cells
        ends = [str(getattr(cell.setup, pair.by)) for cell in pair.cells]
        setting = {**msgspec.structs.asdict(one.setup), pair.by: ""}
        gpus = f"{setting['tp']} x {setting['gpu']}" if pair.by == "engine" else setting["gpu"]
        words = [setting["engine"], gpus or f"tp {setting['tp']}", setting["workload"]]
        key = (one.source, pair.by, *ends, ", ".join(map(str, filter(None, words))))
        found.setdefault(key, []).append(pair)
    return found


def _ratios(pair: Order) -> str:
    one, other = pair.cells
    measured = one.published / other.published
    predicted = (one.predicted or 0) / other.predicted if other.predicted else float("inf")
    return f"{measured:.2f} and {predicted:.2f}"


def _all(cells: Sequence[Cell]) -> Iterator[str]:
    for source in _sources(cells):
        own = [cell for cell in cells if cell.source == source]
        yield f"**{source}**: published, predicted, error"
        yield ""
        yield "| what | figures |"
        yield "|---|---|"
        for what in dict.fromkeys(cell.what for cell in own):
            told = [_cell(cell) for cell in own if cell.what == what and cell.error is not None]
            missing = [cell for cell in own if cell.what == what and cell.error is None]
            reasons = dict.fromkeys(cell.note for cell in missing)
            told += [f"{sum(c.note == why for c in missing)} {why}" for why in reasons]
            yield f"| {what} | {'; '.join(told)} |"
        yield ""


def _cell(cell: Cell) -> str:
    assert cell.error is not None  # noqa: S101 (only such are shown)
    error = f"{cell.error:+.3f}" if cell.is_share else f"{cell.error:+.1%}"
    metric = cell.metric.replace("|", "/")
    return f"{metric} {cell.published:.4g}, {cell.predicted:.4g}, {error}"
