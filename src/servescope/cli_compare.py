"""The command `compare`: runs against a baseline, and a gate on what changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from servescope.analysis.comparison import Comparison
    from servescope.analysis.gate import Judgement

_FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.command()
@click.argument("sides", nargs=-1, required=True, metavar="A B...")
@click.option(
    "--gate",
    "bounds",
    multiple=True,
    metavar="BOUNDS",
    help="How much worse each B may be: ttft_p50<+20%,output_tokens_per_s>-10%. Exit status 4 if a "
    "bound is broken. Of shares (error_ratio<+1%) the percent are points.",
)
@click.option(
    "--gate-undecided",
    type=click.Choice(["pass", "fail"]),
    default="pass",
    show_default=True,
    help="What becomes of a bound that the noise leaves open.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "json", "csv"]),
    default="table",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write the gate as JUnit XML.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write it for a pull request.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page that works offline.")
def compare(
    sides: tuple[str, ...],
    *,
    bounds: tuple[str, ...],
    gate_undecided: str,
    form: str,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare runs with the baseline A: what differs, and what chance alone would not do.

    Each of A, B... is a run's directory, a directory of runs (repeats), several of either with
    commas between, or a result file of vllm bench, SGLang bench, GuideLLM, AIPerf or Locust. Runs
    of one configuration are grouped as repeats, unless nothing else would be left to compare.

    Exit status: 0 done, 2 bad input, 4 a bound of --gate is broken.
    """
    from servescope.analysis import compare as analysis  # noqa: PLC0415
    from servescope.analysis import gate  # noqa: PLC0415
    from servescope.errors import BadInput  # noqa: PLC0415
    from servescope.report import compare as text  # noqa: PLC0415

    wanted = [bound for said in bounds for bound in gate.parse(said)]
    if junit is not None and not wanted:
        raise BadInput("--junit", junit, "want --gate too: its bounds are the test cases")
    loaded = analysis.read(sides)
    found = analysis.compare(loaded)
    judged = gate.judge(loaded, wanted) if wanted else []
    strict = gate_undecided == "fail"
    if Path("-") not in (junit, markdown, html):
        _print(found, judged, "json" if as_json else form)
    if junit is not None:
        _write("--junit", junit, text.junit(judged, undecided_fails=strict))
    if markdown is not None:
        _write("--markdown", markdown, text.markdown(found, judged).encode())
    if html is not None:
        from servescope.report import compare_page  # noqa: PLC0415

        _write("--html", html, compare_page.page(found, gate=judged).encode())
    if gate.failed(judged, undecided_fails=strict):
        sys.exit(4)


def _print(found: Comparison, judged: list[Judgement], form: str) -> None:
    import msgspec  # noqa: PLC0415

    from servescope.report import compare as text  # noqa: PLC0415
    from servescope.units import printable  # noqa: PLC0415

    if form == "table":
        text.print_table(found, judged, sys.stdout, colour=sys.stdout.isatty())
        return
    if form == "json":
        gate = msgspec.to_builtins(judged)
        click.echo(json.dumps({"schema": 1, **msgspec.to_builtins(found), "gate": gate}, indent=2))
    else:
        shown = text.markdown(found, judged) if form == "markdown" else text.comma_separated(found)
        click.echo(shown, nl=False)
    for one in judged:
        if one.outcome == "not decided":
            words = f"servescope: {one.bound} at {one.load} is not decided: {one.sentence}"
            click.echo(printable(words), err=True)


def _write(field: str, path: Path, content: bytes) -> None:
    from servescope.errors import BadInput  # noqa: PLC0415

    if path == Path("-"):
        sys.stdout.buffer.write(content)
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BadInput(field, path, f"cannot be written ({error.strerror})") from None
