"""A trial becomes a run: find out about the target, warm up, drive each stage, keep it all."""

from __future__ import annotations

import ipaddress
import os
import platform
import resource
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import servescope
from servescope import protocols, summary
from servescope.client import measure, probe
from servescope.client.address import Address, parse_target, redact, resolve_host
from servescope.client.feed import Settings
from servescope.client.http import tls_context
from servescope.client.secret import Secret
from servescope.datasets import Setting
from servescope.errors import BadInput
from servescope.experiment import Plan, Trial, readable, resolve
from servescope.load import Closed, Limit, Load, Open
from servescope.protocols import WireProtocol
from servescope.protocols.http1 import MAX_BODY_BYTES
from servescope.records import WARMUP_STAGE
from servescope.rulers import load_tokenizer
from servescope.seeds import generator
from servescope.stage import Bench, Interrupt, StageRun, Watcher, most_connections
from servescope.store import Manifest, Run, RunWriter, Stage, slug

SPARE_FILES = 64
STAGE_REQUESTS = 1 << 20
"""Indices set apart for a stage that time alone ends, so that the next one's prompts do not depend
on how many it came to."""
KEY_VARIABLES = ("SERVESCOPE_API_KEY", "OPENAI_API_KEY")
PROBE_TIMEOUT_S = 30.0
MODEST_CONNECTIONS, MODEST_RATE = 16, 4.0
"""What a public address may get from somebody who does not say that it is theirs."""


class Offer(NamedTuple):
    """A stage with its load drawn."""

    stage: Stage
    load: Open | Closed
    limit: Limit


def conduct(trial: Trial, watcher: Watcher | None = None, command: list[str] | None = None) -> Run:
    """Carry out a trial; returns its run, with the summary written.

    Raises BadInput before the first request, Unreachable where the target is of no use. An
    interrupt ends the run early: the manifest says so, and what was measured is kept.
    """
    plan = resolve(trial)
    address = parse_target(trial.target)
    if trial.protocol is not None:
        protocols.declared("--protocol", trial.protocol)
    key = _key(trial)
    offers = _offers(plan)
    allow_files(max(most_connections(o.load, trial.max_concurrency) for o in offers))
    writer = RunWriter(Path(trial.out), _manifest(plan, command or [], offers))
    interrupt = Interrupt()
    try:
        bench = _bench(plan, address, key, writer=writer, interrupt=interrupt, watcher=watcher)
        _check_ownership(trial, offers, str(bench.settings.address[0]))
    except BaseException:  # an interrupt, too: nothing has been measured
        writer.discard()
        raise
    with interrupt, writer:
        _drive(bench, offers)
    run = Run(writer.path)
    summary.write(run, summary.summarise(run))
    return run


def _drive(bench: Bench, offers: list[Offer]) -> None:
    manifest, number, first = bench.writer.manifest, 0, 0
    for stage, load, limit in offers:
        if bench.interrupt.level:
            break
        if bench.watcher is not None:
            bench.watcher.stage(stage)
        StageRun(bench, stage, WARMUP_STAGE if stage.warmup else number, first).run(load, limit)
        number += not stage.warmup
        first += STAGE_REQUESTS if stage.planned is None else stage.planned
    if bench.interrupt.level:
        manifest.interrupted = bench.interrupt.name
    manifest.finished_utc = _utc_now()
    bench.writer.write_manifest()


# --- before the first request ---------------------------------------------------------------------


def _key(trial: Trial) -> Secret | None:
    path = trial.api_key_file
    if path is not None:
        text = readable("--api-key-file", path).decode(errors="replace")
        return _plain("--api-key-file", path, text)
    found = ((name, os.environ.get(name, "")) for name in KEY_VARIABLES)
    return next((_plain(name, "***", text) for name, text in found if text.strip()), None)


def _plain(field: str, shown: str, text: str) -> Secret:
    value = text.strip()
    if not (value.isascii() and value.isprintable() and value):
        raise BadInput(field, shown, "want one line of plain characters")
    return Secret(value)


def _offers(plan: Plan) -> list[Offer]:
    """Every stage's load, drawn; warm-up is the first load once more, with a limit of its own."""
    wanted: list[tuple[Load, Limit, bool]] = [(load, plan.limit, False) for load in plan.loads]
    if plan.warmup is not None:
        wanted.insert(0, (plan.loads[0], plan.warmup, True))
    return [_offer(plan, k, *one) for k, one in enumerate(wanted)]


def _offer(plan: Plan, k: int, load: Load, limit: Limit, warmup: bool) -> Offer:
    drawn = load.offer(limit, generator(plan.seed, "arrivals", k))
    if isinstance(drawn, Open):
        if not len(drawn.due_ns):
            raise BadInput("--load", str(load), "offers no request in this time; want longer")
        stage = Stage(load=str(load), open=True, rate=drawn.rate, planned=len(drawn.due_ns))
    else:
        if plan.trial.max_concurrency is not None:
            want = f"goes with an open load; {load} has its own"
            raise BadInput("--max-concurrency", plan.trial.max_concurrency, want)
        planned = None if limit.duration_s is not None else limit.requests
        stage = Stage(load=str(load), open=False, users=drawn.users, planned=planned)
    stage.warmup = warmup
    return Offer(stage, drawn, limit)


def allow_files(connections: int) -> None:
    """Raise the limit on open files. Raises BadInput if `connections` want more than it can be."""
    wanted = connections + SPARE_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        want = f"want at most {max(1, hard - SPARE_FILES)}: this machine allows {hard} open files"
        raise BadInput("--load", f"{connections} connections at once", want)
    # Requests that are slow to end hold more connections than start within a second.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _manifest(plan: Plan, command: list[str], offers: list[Offer]) -> Manifest:
    trial = msgspec.to_builtins(plan.trial)
    trial |= {"seed": plan.seed, "target": redact(plan.trial.target)}
    return Manifest(
        name=_run_name(plan.trial),
        servescope=servescope.__version__,
        command=[redact(word) if "@" in word else word for word in command],
        trial=trial,
        machine=_machine(),
        stages=[offer.stage for offer in offers],
        started_utc=_utc_now(),
    )


def _run_name(trial: Trial) -> str:
    """The name asked for, as a safe one; else one made of the time."""
    if trial.name is not None:
        name = slug(trial.name)
        if not name:
            raise BadInput("--name", trial.name, "want letters, digits, '.', '_' and '-'")
        return name
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = [base, *(f"{base}-{k}" for k in range(2, 1000))]
    return next(name for name in names if not (Path(trial.out) / name).exists())


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "load_average": list(os.getloadavg()),
    }


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- the target -----------------------------------------------------------------------------------


def _bench(
    plan: Plan,
    address: Address,
    key: Secret | None,
    *,
    writer: RunWriter,
    interrupt: Interrupt,
    watcher: Watcher | None,
) -> Bench:
    """Find out about the target, and make everything that does not depend on a stage."""
    trial = plan.trial
    local = load_tokenizer(trial.tokenizer) if trial.tokenizer is not None else None
    family, where = resolve_host(address)
    dialogue = probe.Dialogue(
        address,
        key=key,
        timeout_s=min(PROBE_TIMEOUT_S, plan.timeouts.total_s),
        context=_context(address, trial),
    )
    endpoint, wire = probe.probe(
        dialogue,
        protocol=trial.protocol,
        model=trial.model,
        stream=trial.stream,
        extra=trial.extra_body,
    )
    _check_context(plan, endpoint.context_tokens)
    ruler = measure.ruler(dialogue, endpoint, wire, trial.tokenizer)
    items = plan.dataset.items(
        Setting(
            seed=plan.seed,
            ruler=ruler,
            input_tokens=plan.input_tokens,
            output_tokens=plan.output_tokens,
        )
    )
    items(0)  # what cannot be made is refused here, before the first request
    manifest = writer.manifest
    manifest.endpoint = msgspec.to_builtins(endpoint)
    manifest.lengths = {
        "source": ruler.source,
        "exact": ruler.exact,
        "overhead_tokens": ruler.overhead,
    }
    if watcher is not None:
        watcher.target(endpoint, ruler, plan)
    return Bench(
        plan=plan,
        endpoint=endpoint,
        wire=wire,
        items=items,
        settings=_settings(plan, address, dialogue, endpoint, wire, where=(family, where)),
        writer=writer,
        origin_ns=time.monotonic_ns(),
        count=None if local is None else lambda text: len(local(text)),
        secrets=dialogue.secrets,
        interrupt=interrupt,
        watcher=watcher,
    )


def _context(address: Address, trial: Trial) -> ssl.SSLContext | None:
    if address.scheme != "https":
        return None
    try:
        return tls_context(trial.ca_file, verify=not trial.insecure)
    except ssl.SSLError as error:
        raise BadInput("--ca-file", trial.ca_file, f"want PEM certificates ({error})") from None


def _check_ownership(trial: Trial, offers: list[Offer], address: str) -> None:
    """A public address is loaded more than modestly only by someone who says that it is theirs."""
    if trial.i_own_this or not ipaddress.ip_address(address.partition("%")[0]).is_global:
        return
    for stage, load, _ in offers:
        rate = load.rate if isinstance(load, Open) else None
        if (
            most_connections(load, trial.max_concurrency) > MODEST_CONNECTIONS
            or (rate or 0) > MODEST_RATE
        ):
            want = f"{address} is a public address: want --i-own-this for such a load"
            raise BadInput("--load", stage.load, want)


def _check_context(plan: Plan, context: int | None) -> None:
    """Refuse lengths that the target's context cannot hold."""
    if context is None:
        return
    wanted = [length.smallest() for length in (plan.input_tokens, plan.output_tokens) if length]
    if sum(wanted) <= context and max(wanted, default=0) < context:
        return
    field = "--input-tokens" if plan.input_tokens else "--output-tokens"
    shown = " + ".join(str(length) for length in (plan.input_tokens, plan.output_tokens) if length)
    want = f"input and output together want at most the {context} tokens of the target's context"
    raise BadInput(field, shown, want)


def _settings(
    plan: Plan,
    address: Address,
    dialogue: probe.Dialogue,
    endpoint: probe.Endpoint,
    wire: WireProtocol,
    *,
    where: tuple[int, tuple[str | int, ...]],
) -> Settings:
    timeouts, trial = plan.timeouts, plan.trial
    return Settings(
        family=where[0],
        address=where[1],
        server_name=address.host,
        tls=address.scheme == "https",
        verify=not trial.insecure,
        ca_file=trial.ca_file,
        head=_head(address, endpoint.path, dialogue.headers_of(wire)),
        protocol=trial.protocol or endpoint.protocol,
        stream=trial.stream,
        connect_ns=_ns(timeouts.connect_s),
        first_token_ns=_ns(timeouts.first_token_s),
        between_tokens_ns=_ns(timeouts.between_tokens_s),
        total_ns=_ns(timeouts.total_s),
        max_bytes=MAX_BODY_BYTES,
    )


def _head(address: Address, path: str, headers: dict[str, str]) -> str:
    """Request line and headers, up to where the length of the body goes."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {address.netloc}",
        f"User-Agent: servescope/{servescope.__version__}",
        "Accept: text/event-stream, application/json",
        "Accept-Encoding: identity",
        "Content-Type: application/json",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "Content-Length: "])


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
