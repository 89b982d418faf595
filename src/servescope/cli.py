"""The command `servescope`: options to a trial, a run to text. Wiring, nothing else."""

from __future__ import annotations

import re
import signal
import sys
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servescope import __version__
from servescope.cli_compare import compare
from servescope.cli_doctor import doctor
from servescope.cli_plan import calibrate, plan
from servescope.cli_read import FORMATS, export, report, show, write_page
from servescope.cli_selftest import selftest
from servescope.cli_trial import declared
from servescope.cli_view import view
from servescope.errors import ServescopeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servescope.analysis.evidence import Evidence

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_PAIR = re.compile(r"[a-z0-9]+:[0-9.]+")


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="servescope")
def cli() -> None:
    """Measure, explain and predict how well large language models are served."""


@cli.command()
@click.argument("target", nargs=-1)
@click.option("--each", is_flag=True, help="Several targets: each gets the whole load, not a part.")
@click.option(
    "--protocol",
    metavar="NAME",
    help="openai-chat, openai-completions, openai-responses, anthropic-messages, vllm, sglang, "
    "tgi, lightllm, llamacpp; template in an experiment file.  [default: found out]",
)
@click.option("--backend", "protocol", metavar="NAME", hidden=True)
@click.option("--model", metavar="NAME", help="Default: the first in the server's list.")
@click.option(
    "--load",
    multiple=True,
    metavar="LOAD",
    help="When requests start: users:32, users:8,think=1s, sync, burst, constant:10, poisson:4, "
    "gamma:rate=4,cv=2, ramp:1-20, trace:FILE,scale=2, sweep. Several values (poisson:2,4,8) or "
    "several options make several stages.  [default: users:4]",
)
@click.option("--request-rate", metavar="R", help="Same as --load poisson:R; inf: all at once.")
@click.option(
    "--max-concurrency",
    type=int,
    metavar="N",
    help="At most N requests in flight. Without a load or a rate: same as --load users:N.",
)
@click.option("--requests", "--num-prompts", type=int, metavar="N", help="Requests of each stage.")
@click.option(
    "--duration",
    metavar="TIME",
    help="Time in which each stage starts requests, such as 30s or 5m. With --requests: whichever "
    "ends first.  [default, with neither: 100 requests or 30s]",
)
@click.option(
    "--warmup", metavar="N|TIME", help="Requests or time before the first stage, not counted."
)
@click.option(
    "--repeat-cache",
    metavar="cold,warm",
    help="Run each stage twice with the same items; before the cold one the engine's cache is "
    "emptied, where it has a way.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="What is asked: emulated (prose), dummy (words), file:PATH (.txt, .jsonl, .csv), "
    "sharegpt:PATH,turns=all, mcq, extraction, shared_prefix:groups=8, sessions:turns=5,think=2s, "
    "trace:PATH.  [default: emulated; with a trace as the load, the trace]",
)
@click.option(
    "--input-tokens",
    "--random-input-len",
    metavar="LENGTH",
    help="512, uniform:1-512, normal:mean=256,std=64, lognormal:mean=256,std=200, "
    "exponential:mean=128,max=512 (clipped; beyond=redraw draws again), empirical:FILE, "
    "pairs:FILE (answers too).  [default: 128]",
)
@click.option(
    "--output-tokens",
    "--random-output-len",
    metavar="LENGTH",
    help="Likewise; where the server can, it gives exactly so many.  [default: 64]",
)
@click.option(
    "--collect",
    multiple=True,
    metavar="SOURCE",
    help="What to read while it runs: host, gpu and the target's own /metrics by default; none for "
    "none of these; host,every=200ms; prometheus:URL,every=5s.",
)
@click.option(
    "--metrics",
    multiple=True,
    metavar="URL",
    help="A page of metrics to read too: of an engine, of dcgm-exporter, of node_exporter.",
)
@click.option(
    "--slo",
    multiple=True,
    metavar="BOUNDS",
    help="ttft_p99<200ms,tpot_p95<50ms: reports goodput; exit status 4 if missed.",
)
@click.option(
    "--goodput",
    multiple=True,
    metavar="NAME:MS",
    help="ttft:200 tpot:50 e2el:2000: reports goodput, in milliseconds a request.",
)
@click.option(
    "--seed", type=int, metavar="N", help="Repeats prompts, lengths and due times. Default: new."
)
@click.option(
    "--tokenizer", metavar="PATH", help="tokenizer.json or its directory, to count tokens with."
)
@click.option("--no-stream", is_flag=True, help="Ask for answers in one piece.")
@click.option(
    "--extra-body", metavar="JSON", help="More fields of each request: '{\"temperature\": 0}'."
)
@click.option(
    "--workers", default="auto", show_default=True, metavar="N|auto", help="Load processes."
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Drive the load from the nodes of a Ray cluster: auto (the one that runs here, or "
    "RAY_ADDRESS), ray://HOST:PORT, HOST:PORT. Workers: one for each core, or --workers N.",
)
@click.option(
    "--timeout",
    default="600s",
    show_default=True,
    metavar="TIME",
    help="For a whole request; none of the other three exceeds it.",
)
@click.option(
    "--timeout-connect", default="10s", show_default=True, metavar="TIME", help="For a connection."
)
@click.option(
    "--timeout-first-token",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="From sending to the first token.",
)
@click.option(
    "--timeout-between-tokens",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="For a silence between two tokens.",
)
@click.option(
    "--api-key-file",
    metavar="FILE",
    help="File with the API key. Or set SERVESCOPE_API_KEY or OPENAI_API_KEY.",
)
@click.option(
    "--ca-file", metavar="FILE", help="Certificates (PEM) to trust instead of the system's."
)
@click.option("--client-cert", metavar="FILE", help="Certificate (PEM) to show to the server.")
@click.option("--client-key", metavar="FILE", help="Its key (PEM), without a password.")
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option("--no-keep-alive", is_flag=True, help="Open a connection for each request.")
@click.option("--keep-text", is_flag=True, help="Keep prompts and answers in the run's directory.")
@click.option(
    "--out", default="runs", show_default=True, metavar="DIR", help="Where runs are kept."
)
@click.option("--name", metavar="NAME", help="The run's directory below it. Default: the time.")
@click.option(
    "--i-own-this", is_flag=True, help="Needed to load a public address more than modestly."
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="summary.json on standard output, nothing else; of several files a list of them.",
)
@click.option("--quiet", is_flag=True, help="Only the run's directory on standard output.")
@click.option("--no-report", is_flag=True, help="Write no report.html into the run's directory.")
def run(
    target: tuple[str, ...],
    form: str,
    *,
    as_json: bool,
    quiet: bool,
    no_report: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure the endpoint at the URL TARGET.

    Protocol, model and what the server can do are found out; prompts are built in and never repeat.
    Results are kept in a directory that the other commands read. Several targets share the load.
    Without one a simulated engine is started on loopback and measured over HTTP; `sim:vllm` runs it
    in virtual time. FILE.yaml (or .toml, .json) holds the same options by name; several files are
    several runs, those of simulated targets side by side on all cores.

    Exit status: 0 done, 2 bad input, 3 the target cannot be reached or answers nothing useful, 4 an
    SLO was missed, 130 or 143 interrupted, 1 a load process or a node died; what was measured is
    kept.
    """
    from servescope.analysis import conclude  # noqa: PLC0415 (--help need not wait for it)
    from servescope.report.progress import Progress  # noqa: PLC0415
    from servescope.several import conduct_all  # noqa: PLC0415

    trials = declared(target, **options)
    several = len(trials) > 1
    progress = None if as_json or quiet else Progress(named=several)
    beside = None if as_json or quiet else partial(Progress, named=True, lines=True)
    if any(trial.insecure for trial in trials):
        click.echo("warning: the server's certificate is not verified", err=True)
    status, between = 0, "["
    try:
        command = ["servescope", *sys.argv[1:]]
        told = None if progress is None else progress.told
        for found in conduct_all(trials, progress, command, beside, told):
            if progress is not None:
                progress.clear()
            evidence = conclude(found)
            if as_json and several:
                click.echo(between)
                between = ","
            page = None if no_report else write_page(evidence)
            show(evidence, form, as_json=as_json, quiet=quiet, page=page)
            status = max(status, _status(evidence))
    finally:
        if progress is not None:
            progress.clear()
        if between == ",":
            click.echo("]")
    sys.exit(status)


def _status(evidence: Evidence) -> int:
    from servescope.summary import nothing_answered  # noqa: PLC0415

    summary, interrupted = evidence.summary, evidence.run.manifest.interrupted
    if interrupted is not None:
        return {"SIGINT": 130, "SIGTERM": 143}.get(interrupted, 1)
    if nothing_answered(summary):
        return 3
    return 4 if any(not b.met for stage in summary.stages for b in stage.slo) else 0


@cli.command()
@click.argument("sim", default="sim:vllm")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one needs a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token that requests must bear. Or set SERVESCOPE_SERVE_TOKEN.",
)
@click.option("--quiet", is_flag=True, help="Only the URL on standard output.")
def serve(sim: str, host: str, port: int, token_file: Path | None, *, quiet: bool) -> None:
    """Serve a simulated engine over HTTP, in real time: every protocol on one port.

    SIM is whom it imitates and how fast it is: sim:vllm, sim:sglang, sim:tgi, sim:lightllm or
    sim:llamacpp, with settings such as sim:vllm?step=5ms&kv_tokens=8192&max_waiting=20.
    """
    from servescope.engine.config import parse  # noqa: PLC0415
    from servescope.serve import listen  # noqa: PLC0415

    config = parse("SIM", sim)

    def ready(url: str, paths: list[str]) -> None:
        more = f" (POST {' '.join(paths)}; ctrl-C ends)"
        click.echo(url if quiet else f"serving {sim} on {url}{more}")

    listen.run(config, host=host, port=port, token=listen.token_from(token_file), ready=ready)


cli.add_command(report)
cli.add_command(compare)
cli.add_command(export)
cli.add_command(doctor)
cli.add_command(selftest)
cli.add_command(view)
cli.add_command(plan)
cli.add_command(calibrate)


def main() -> None:
    """Entry of the command: errors of known cause are one line and an exit status."""
    arguments = _spread_goodput(sys.argv[1:]) or ["--help"]
    try:
        cli.main(arguments, prog_name="servescope", standalone_mode=False)
    except ServescopeError as error:
        click.echo(f"servescope: {_one_line(str(error))}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            meant = _alike(error.option_name, error.possibilities or ())
            error = click.NoSuchOption(error.option_name, possibilities=meant)
        click.echo(f"servescope: {_one_line(error.format_message())}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one says no more than the first
        sys.exit(130)


def _spread_goodput(arguments: list[str]) -> list[str]:
    """`--goodput ttft:200 tpot:50`, as vLLM takes it, becomes one option for each."""
    spread: list[str] = []
    for word in arguments:
        follows = len(spread) > 1 and spread[-2] == "--goodput" and _PAIR.fullmatch(spread[-1])
        if follows and _PAIR.fullmatch(word):
            spread.append("--goodput")
        spread.append(word)
    return spread


def _alike(name: str, options: Iterable[str]) -> list[str]:
    """Those that may be meant: Click counts the hyphens, too, and takes --bogus for --out."""
    bare = {option.strip("-"): option for option in options}
    return [bare[one] for one in get_close_matches(name.strip("-"), bare, cutoff=0.7)]


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
