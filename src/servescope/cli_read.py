"""The commands that read runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from servescope.analysis.evidence import Evidence

FORMATS = ("table", "vllm")


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON, nothing else.")
def report(directories: tuple[Path, ...], form: str, *, as_json: bool) -> None:
    """Print the table of runs again, from their directories alone."""
    from servescope.analysis import conclude  # noqa: PLC0415
    from servescope.store import Run  # noqa: PLC0415

    for directory in directories:
        show(conclude(Run(directory)), form, as_json=as_json, quiet=False)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--format", "form", default="csv", show_default=True, metavar="csv|parquet")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to. Default: the run's directory."
)
def export(directory: Path, form: str, out: Path | None) -> None:
    """Write a run's requests, chunks and samples as tables."""
    from servescope.report.export import export as write  # noqa: PLC0415
    from servescope.store import Run  # noqa: PLC0415

    for path in write(Run(directory), form, out or directory):
        click.echo(str(path))


def show(evidence: Evidence, form: str, *, as_json: bool, quiet: bool) -> None:
    """Print a run as text, or its summary as JSON, or only where it is."""
    found = evidence.run
    if as_json:
        from servescope.summary import as_json as encoded  # noqa: PLC0415

        sys.stdout.buffer.write(encoded(evidence.summary))
        return
    if quiet:
        click.echo(str(found.path))
        return
    _print(evidence, form)
    click.echo(f"kept in {found.path}")


def _print(evidence: Evidence, form: str) -> None:
    from servescope.report import console, vllm  # noqa: PLC0415
    from servescope.units import printable  # noqa: PLC0415

    found, summary = evidence.run, evidence.summary
    if form == "table":
        console.print_table(summary, sys.stdout, colour=sys.stdout.isatty())
        return
    facts = [stage for stage in found.manifest.stages if not stage.warmup]
    cap = found.manifest.trial.get("max_concurrency")
    for stage, fact in zip(summary.stages, facts, strict=False):
        for doubt in stage.doubts:
            click.echo(f"doubt {doubt.kind}: {printable(doubt.message)}")
        click.echo(vllm.block(stage, cap=fact.users or cap, rate=fact.rate))
