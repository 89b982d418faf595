"""`servescope selftest`: how exact the instrument is here, and what it makes of servers' faults."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servescope import __version__

if TYPE_CHECKING:
    from servescope.error_bars import RateRow, Reading, Spread, StreamRow
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
@click.option("--quick", is_flag=True, help="Fewer streams and rates: some seconds, not a minute.")
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON, nothing else.")
def selftest(
    names: tuple[str, ...],
    serve: str | None,
    port: int,
    *,
    faults: bool,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure how exact this version is on this machine; or try it on servers that misbehave.

    Without an option, runs against a server on loopback that remembers when it sent each token tell
    how far the times of a run are off, with 1 to 1024 streams, and how late requests leave, at 50
    to 2000 a second. It takes about a minute, on an otherwise idle machine. The result is kept, and
    later runs carry it in their manifest.

    --faults measures one server for each fault of the table and compares what was found with what
    the server did: outcomes, counts, times, reasons. It takes about a minute.

    --serve is one of these servers, until ctrl-C, to try another client with: one request in four
    meets the fault, or all do. It answers OpenAI chat completions with streams.

    Exit status: 0 all is right, 1 something is not.
    """
    if faults + (serve is not None) + quick > 1 or (names and not faults):
        want = "want --faults (all, or those named), --serve FAULT (one, for a client) or --quick"
        raise click.UsageError(want)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # all servers here are our own
    if serve is not None:
        _serve(serve, port)
    elif faults:
        _check(names, as_json=as_json)
    else:
        _measure(quick=quick, as_json=as_json)


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
    from servescope.units import printable  # noqa: PLC0415

    came = ", ".join(f"{count} {outcome}" for outcome, count in row.came.items()) or "nothing"
    again = " (at the second try)" if row.tries > 1 and row.ok else ""
    expected = " or ".join(row.expected)
    click.echo(f"{'ok' if row.ok else 'WRONG':6}{row.fault:16}{expected:36} came {came}{again}")
    for wrong in row.wrong:
        click.echo(f"      {printable(wrong)}")


# --- how exact it is ------------------------------------------------------------------------------

_WIDTH = 80
_MANY_TOKENS = 10_000
_STREAMS = """
           TTFT error  token error    ITL error  tokens    loop  CPU a token, us
                us (P50, P99 of each)           sharing     lag
streams                                          a read  P99 us    load     all"""
_RATES = """
 requests/s, Poisson   sent late    reached the server late   gaps at the server
     due     came  us (P50, P99)              us (P50, P99)    KS (1 % exceed)"""


def _measure(*, quick: bool, as_json: bool) -> None:
    import msgspec  # noqa: PLC0415

    from servescope import error_bars, instrument  # noqa: PLC0415

    reading = instrument.new_reading()
    if not as_json:
        click.echo(_where(reading))
    heading = ""
    for row in instrument.fill(reading, quick=quick):
        if as_json:
            continue
        if isinstance(row, error_bars.RateRow):
            title, line = _RATES, _rate_line(row)
        else:
            title, line = _STREAMS, _stream_line(row)
        if title != heading:
            heading = title
            click.echo(title)
        click.echo(line)
        for wrong in row.wrong:
            click.echo(f"        WRONG {wrong}")
    try:
        error_bars.keep(reading)
    except (OSError, RuntimeError) as error:
        reading.notes.append(f"this could not be kept for later runs: {error}")
    if as_json:
        found = msgspec.to_builtins(reading) | {"ok": not reading.wrong, "verdict": reading.verdict}
        click.echo(json.dumps(found, indent=1))
    else:
        _conclude(reading)
    sys.exit(1 if reading.wrong else 0)


def _where(reading: Reading) -> str:
    facts, core = reading.host, reading.server_core
    placed = (
        "There is but one core: server and load take it in turns, and both are later for it."
        if core is None
        else f"The null server has core {core}, everything else has the others."
    )
    machine = (
        f"servescope {reading.servescope} with Python {facts['python']} on Linux "
        f"{facts['kernel']}, {facts['cores']} core{'s' * (core is not None)} "
        f"({facts['cpu'] or facts['machine']})."
    )
    return textwrap.fill(f"{machine} {placed}", _WIDTH)


def _pair(error: Spread) -> str:
    return f"{error.p50:6.0f}{error.p99:7.0f}"


def _stream_line(row: StreamRow) -> str:
    errors = "".join(map(_pair, (row.ttft_error_us, row.token_error_us, row.itl_error_us)))
    return (
        f"{row.streams:7}{errors}{row.merged_ratio:8.2%}{row.lag_p99_us:8.0f}"
        f"{_cpu(row, row.load_cpu_us_per_token)}{_cpu(row, row.cpu_us_per_token)}"
    )


def _cpu(row: StreamRow, us_per_token: float) -> str:
    """Nothing where the start of the processes is most of it."""
    return f"{us_per_token:8.1f}" if row.token_error_us.n >= _MANY_TOKENS else f"{'-':>8}"


def _rate_line(row: RateRow) -> str:
    late = f"{_pair(row.sent_late_us):>15}{_pair(row.came_late_us):>27}"
    return f"{row.rate:8g} {row.achieved_rate:8.1f}{late}    {row.ks:.3f} ({row.ks_critical:.3f})"


def _conclude(reading: Reading) -> None:
    from servescope import error_bars  # noqa: PLC0415
    from servescope.units import printable  # noqa: PLC0415

    click.echo()
    for note in reading.notes:
        click.echo(textwrap.fill(printable(note), _WIDTH))
    others, busy = reading.others_ratio, ""
    if others is None:
        busy = "What else ran meanwhile cannot be told here. "
    elif others > error_bars.OTHERS_RATIO:
        busy = (
            f"Other work used up to {others:.0%} of these cores meanwhile, and the P99s are partly "
            "its doing: repeat this when the machine is quiet. "
        )
    click.echo(textwrap.fill(busy + reading.verdict, _WIDTH))
