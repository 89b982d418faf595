"""`servescope doctor`: what of this machine will limit a measurement."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servescope import __version__

if TYPE_CHECKING:
    from servescope.doctor import Row

WIDTH = 100
VERDICT = (
    "How exact times are here, and up to how many streams and requests/s, is measured and not "
    "guessed: servescope selftest"
)


@click.command()
@click.option(
    "--out",
    default="runs",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where runs are to be kept.",
)
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON, nothing else.")
def doctor(out: Path, *, as_json: bool) -> None:
    """Say what of this machine will limit a measurement, and what can be done about it.

    Nothing is changed and nothing leaves the machine. What cannot be found out says so. It takes
    about a second, and the exit status is 0 whatever is found.
    """
    from servescope.doctor import diagnose  # noqa: PLC0415 (--help need not wait for it)

    rows = diagnose(out)
    if as_json:
        import msgspec  # noqa: PLC0415

        found = {"servescope": __version__, "rows": msgspec.to_builtins(rows), "verdict": VERDICT}
        click.echo(json.dumps(found, indent=1))
    else:
        _print(rows)


def _print(rows: list[Row]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from servescope.units import printable  # noqa: PLC0415

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="bold")
    for row in rows:
        told = Text(printable(row.value))
        if row.advice:
            told.append("\n-> ", "bold yellow").append(printable(row.advice), "italic yellow")
        grid.add_row(row.name.replace("_", " "), told)
    console = Console(
        width=min(shutil.get_terminal_size((80, 24)).columns, WIDTH),
        no_color=not sys.stdout.isatty(),
        highlight=False,
    )
    console.print(grid)
    console.print(Text(f"\n{VERDICT}"))
