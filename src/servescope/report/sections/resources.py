"""What machines and engines said of themselves, stage by stage."""

from __future__ import annotations

from servescope.analysis.evidence import Evidence
from servescope.report.content import Cell, Column, Said, Section, Table
from servescope.report.labels import quantity
from servescope.report.shown import names

PLACE = 130


def section(evidence: Evidence) -> Section | None:
    """A table a source: a row a figure, a column a stage, and how it was got where that varies."""
    stages = evidence.summary.stages
    found: dict[str, dict[str, list[Cell]]] = {}
    for k, stage in enumerate(stages):
        for part in stage.resources:
            rows = found.setdefault(part.source, {})
            for name, value in part.figures.items():
                label, shown = quantity(name, value)
                row = rows.setdefault(name, [label, *[None] * len(stages), None])
                row[k + 1] = None if value is None else Said(words=shown, value=value)
                row[-1] = part.how.get(name)
    stage_names = names(evidence) if len(stages) > 1 else ["value"]
    tables = [_table(source, stage_names, list(rows.values())) for source, rows in found.items()]
    tables = [table for table in tables if table.rows]
    return Section(name="resources", title="Resources", tables=tables) if tables else None


def _table(source: str, stages: list[str], rows: list[list[Cell]]) -> Table:
    kept = [row for row in rows if any(cell is not None for cell in row[1:-1])]
    columns = [Column(title="figure"), *(Column(title=name, form="number") for name in stages)]
    if any(row[-1] for row in kept):
        columns.append(Column(title="how"))
    return Table(title=source, columns=columns, rows=[row[: len(columns)] for row in kept])
