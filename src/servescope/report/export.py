"""A run as tables for pandas, polars or DuckDB: requests, chunks and samples, CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from servescope.errors import BadInput
from servescope.records import ABSENT, Record
from servescope.store import Run

FORMATS = ("csv", "parquet")
_NOT_CELLS = ("chunk_ns", "chunk_tokens", "server_s")
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")
Table = dict[str, list[Any]]


def export(run: Run, form: str, out: Path) -> list[Path]:
    """Write the tables of a run into the directory `out`; returns the files. Raises BadInput."""
    if form not in FORMATS:
        raise BadInput("--format", form, f"want one of {', '.join(FORMATS)}")
    write = _csv if form == "csv" else _parquet()
    records = sorted(run.records(), key=lambda record: record.request)
    tables = {
        "requests": _transpose(
            map(_request, records), _request(Record(request=0, stage=0, due_ns=0))
        ),
        "chunks": _chunks(records),
        "samples": _transpose(
            ({**msgspec.to_builtins(s), "labels": _json(s.labels)} for s in run.samples()),
            ("t_ns", "source", "name", "value", "labels"),
        ),
    }
    files = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            files.append(out / f"{name}.{form}")
            write(files[-1], table)
            files[-1].chmod(0o600)
    except OSError as error:
        raise BadInput("--out", out, f"cannot be written ({error.strerror})") from None
    return files


def _request(record: Record) -> dict[str, Any]:
    cells = {
        name: getattr(record, name) for name in record.__struct_fields__ if name not in _NOT_CELLS
    }
    for name, value in cells.items():
        if name.endswith("_ns") and value == ABSENT:
            cells[name] = None
    cells["chunks"] = len(record.chunk_ns)
    cells["server_s"] = _json(record.server_s)
    return cells


def _chunks(records: Sequence[Record]) -> Table:
    table: Table = {"request": [], "chunk": [], "t_ns": [], "tokens": []}
    for record in records:
        n = len(record.chunk_ns)
        tokens = record.chunk_tokens
        table["request"] += [record.request] * n
        table["chunk"] += range(n)
        table["t_ns"] += accumulate(record.chunk_ns)
        table["tokens"] += tokens if isinstance(tokens, list) else [tokens] * n
    return table


def _transpose(rows: Iterable[dict[str, Any]], names: Iterable[str]) -> Table:
    table: Table = {name: [] for name in names}
    for row in rows:
        for name, cells in table.items():
            cells.append(row.get(name))
    return table


def _json(value: object) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def _csv(path: Path, table: Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(_rows(table))


def _rows(table: Table) -> Iterator[list[Any]]:
    for row in zip(*table.values(), strict=True):
        yield [defused(cell) for cell in row]


def defused(cell: object) -> object:
    """A text that a spreadsheet would take for a formula gets a quote in front."""
    if isinstance(cell, str) and cell.startswith(_DANGEROUS):
        return "'" + cell
    return cell


def _parquet() -> Any:  # noqa: ANN401 (a function of an optional package)
    try:
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        want = "needs pyarrow: pip install pyarrow"
        raise BadInput("--format", "parquet", want) from None

    def write(path: Path, table: Table) -> None:
        parquet.write_table(pa.table(table), path)

    return write
