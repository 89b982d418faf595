"""The commands that read runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.analysis.evidence import Evidence

FORMATS = ("table", "vllm")


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON, nothing else.")
@click.option("--html/--no-html", default=True, show_default=True, help="Write the page, too.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the page goes.  [default: report.html in the run's directory]",
)
def report(
    directories: tuple[Path, ...], form: str, *, as_json: bool, html: bool, out: Path | None
) -> None:
    """Make the reports of runs again, from their directories alone: page and table."""
    from servescope.analysis import conclude  # noqa: PLC0415
    from servescope.store import Run  # noqa: PLC0415

    if out is not None and len(directories) > 1:
        raise BadInput("--out", out, "want one run with it: a page is of one")
    for directory in directories:
        evidence = conclude(Run(directory))
        page = write_page(evidence, out) if html else None
        show(evidence, form, as_json=as_json, quiet=False, page=page)


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


def write_page(evidence: Evidence, out: Path | None = None) -> Path | None:
    """Write a run's report.html; raises BadInput where `out` cannot be written.

    A run's own directory may be another's, or full: then this is said, and None returned.
    """
    from servescope.report import html  # noqa: PLC0415

    try:
        return html.write(evidence, out)
    except OSError as error:
        if out is not None:
            raise BadInput("--out", out, f"cannot be written ({error.strerror})") from None
        click.echo(f"warning: {html.NAME} could not be written: {error.strerror}", err=True)
        return None


def show(
    evidence: Evidence, form: str, *, as_json: bool, quiet: bool, page: Path | None = None
) -> None:
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
    if page is not None:
        click.echo(f"report: {page}")


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
