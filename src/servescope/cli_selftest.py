"""`servescope selftest`: the table of faults against this version, or one fault for others."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servescope import __version__

if TYPE_CHECKING:
    from servescope.selftest import Row


@click.command()
@click.argument("names", nargs=-1, metavar="[FAULT]...")
@click.option("--faults", is_flag=True, help="Measure servers of all faults, or of those named.")
@click.option("--serve", metavar="FAULT", help="Be a server of this fault, for any client.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Where, with --serve.  [default: any that is free]",
)
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON, nothing else.")
def selftest(
    names: tuple[str, ...], serve: str | None, port: int, *, faults: bool, as_json: bool
) -> None:
    """Try this version against servers that misbehave, on loopback.

    --faults measures one server for each fault of the table and compares what was found with what
    the server did: outcomes, counts, times, reasons. It takes about a minute.

    --serve is one of these servers, until ctrl-C, to try another client with: one request in four
    meets the fault, or all do. It answers OpenAI chat completions with streams.

    Exit status: 0 all is right, 1 something is not.
    """
    if faults == (serve is not None) or (names and not faults):
        raise click.UsageError("want --faults (all of them) or --serve FAULT (one, for a client)")
    if serve is not None:
        _serve(serve, port)
    else:
        _check(names, as_json=as_json)


def _serve(name: str, port: int) -> None:
    from servescope.serve.faulty import serve  # noqa: PLC0415 (--help need not wait for it)

    with serve(name, port=port) as server:
        met = "every request" if server.fault.all else "one request in four"
        click.echo(f"{server.url} ({met}: {server.fault.does}; ctrl-C ends)")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        met_count = len(server.requests) - len(server.unharmed())
        click.echo(f"{len(server.requests)} requests came, {met_count} met the fault")


def _check(names: tuple[str, ...], *, as_json: bool) -> None:
    import msgspec  # noqa: PLC0415

    from servescope.selftest import run_table  # noqa: PLC0415
    from servescope.serve.faulty import named  # noqa: PLC0415

    rows, began_s = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="servescope-") as directory:
        for row in run_table(named(names), Path(directory)):
            rows.append(row)
            if not as_json:
                _print(row)
    right = sum(row.ok for row in rows)
    if as_json:
        found = [{"ok": row.ok, **msgspec.to_builtins(row)} for row in rows]
        click.echo(json.dumps({"servescope": __version__, "right": right, "rows": found}, indent=1))
    else:
        took_s = time.monotonic() - began_s
        click.echo(f"{right} of {len(rows)} right in {took_s:.0f} s (servescope {__version__})")
    sys.exit(0 if right == len(rows) else 1)


def _print(row: Row) -> None:
    from servescope.report.console import printable  # noqa: PLC0415

    came = ", ".join(f"{count} {outcome}" for outcome, count in row.came.items()) or "nothing"
    again = " (at the second try)" if row.tries > 1 and row.ok else ""
    expected = " or ".join(row.expected)
    click.echo(f"{'ok' if row.ok else 'WRONG':6}{row.fault:16}{expected:36} came {came}{again}")
    for wrong in row.wrong:
        click.echo(f"      {printable(wrong)}")
