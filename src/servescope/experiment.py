"""What the user declares: a trial, in the words of the options, and its check.

`resolve` finds every fault of the input before the first request and turns words into values. Names
of fields are those of the options and of `servescope.run()`.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import msgspec

from servescope import datasets as data_sets
from servescope import goodput, lengths, loads
from servescope.datasets import Dataset
from servescope.errors import BadInput
from servescope.lengths import Lengths
from servescope.load import Later, Limit, Load
from servescope.loads.trace import FromTrace
from servescope.plugins import one_of
from servescope.units import parse_duration_s

DEFAULT_LOAD = "users:4"
DEFAULT_DATA = "emulated"
DEFAULT_LIMIT = Limit(requests=100, duration_s=30.0)
MAX_REQUESTS = 10_000_000
MOST_WORKERS = 256
OUR_FIELDS = {
    *("model", "prompt", "messages", "max_tokens", "max_completion_tokens"),
    *("stream", "stream_options", "n", "best_of"),
}
MAX_DURATION_S = 7 * 24 * 3600.0


class Trial(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One cell of an experiment, as declared."""

    target: str | list[str] = []
    """Where it goes: a URL, or several; none: an engine is started here."""
    each: bool = False
    """Every target gets the whole load, instead of a part of it."""
    protocol: str | dict[str, Any] | None = None
    """A name, or a mapping with the name under `name` and the protocol's settings."""
    model: str | None = None
    load: list[str] = []
    data: str | None = None
    """What is asked; by default `emulated`, with a trace as the load what the trace asks."""
    input_tokens: str | None = None
    output_tokens: str | None = None
    requests: int | None = None
    duration: str | None = None
    warmup: str | None = None
    repeat_cache: list[str] = []
    """`cold`, `warm`: each stage is run so many times with the same items."""
    max_concurrency: int | None = None
    slo: list[str] = []
    goodput: list[str] = []
    """Bounds in vLLM's spelling, `ttft:200`: for the goodput, not for the exit status."""
    collect: list[str] = []
    """What else is read while the run goes on, besides what is by default; `none`: not that."""
    metrics: list[str] = []
    """URLs of pages in Prometheus's format: `--collect prometheus:URL`."""
    seed: int | None = None
    """Drawn anew where none is given, so that no prefix cache flatters a repeated run."""
    timeout: str = "600s"
    timeout_connect: str = "10s"
    timeout_first_token: str = "60s"  # noqa: S105 (no password)
    timeout_between_tokens: str = "60s"
    workers: int | str = "auto"
    """Load processes; `auto`: as many as the load wants and the cores allow."""
    cluster: str | None = None
    """A Ray cluster whose nodes drive the load: `auto`, `ray://HOST:PORT`, `HOST:PORT`."""
    stream: bool = True
    tokenizer: str | None = None
    extra_body: dict[str, Any] = {}
    api_key_file: str | None = None
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    insecure: bool = False
    keep_alive: bool = True
    """False: each request has a connection of its own."""
    keep_text: bool = False
    out: str = "runs"
    name: str | None = None
    i_own_this: bool = False
    """The target may be a public address and the load more than a modest one."""

    @property
    def targets(self) -> list[str]:
        """All targets."""
        return [self.target] if isinstance(self.target, str) else self.target


def declare(options: dict[str, Any]) -> Trial:
    """A trial from plain values, as they stand in Python or in a file. Raises BadInput.

    Names may have hyphens, as on the command line; one value may stand for a list of one.
    """
    fields = {field.name: field.type for field in msgspec.structs.fields(Trial)}
    plain: dict[str, Any] = {}
    for said, value in options.items():
        name = said.replace("-", "_")
        if name not in fields:
            raise BadInput("options", said, f"want {one_of(name, fields)}")
        if name in plain:
            raise BadInput("options", said, f"want {name} only once")
        if fields[name] in (str, str | None) and isinstance(value, int | float):
            plain[name] = str(value)
        elif fields[name] == int | str and isinstance(value, str) and value.isdecimal():
            plain[name] = int(value)
        elif fields[name] == list[str] and isinstance(value, str | int | float):
            plain[name] = [str(value)]
        else:
            plain[name] = list(value) if isinstance(value, tuple) else value
    try:
        return msgspec.convert(plain, Trial)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`").partition("[")[0].partition(".")[0]
        raise BadInput(name or "options", plain.get(name, ""), f"want another: {words}") from None


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; none exceeds `total_s`."""

    connect_s: float
    first_token_s: float
    between_tokens_s: float
    total_s: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A trial, resolved."""

    trial: Trial
    seed: int
    loads: list[Load | Later]
    limit: Limit
    warmup: Limit | None
    dataset: Dataset
    input_tokens: Lengths | None
    output_tokens: Lengths | None
    timeouts: Timeouts


def resolve(trial: Trial) -> Plan:
    """Check a trial and turn its words into values. Raises BadInput."""
    if trial.workers != "auto" and trial.workers not in range(1, MOST_WORKERS + 1):
        raise BadInput("--workers", trial.workers, f"want 1 to {MOST_WORKERS}, or auto")
    if trial.max_concurrency is not None and trial.max_concurrency < 1:
        raise BadInput("--max-concurrency", trial.max_concurrency, "want 1 or more")
    if trial.seed is not None and trial.seed < 0:
        raise BadInput("--seed", trial.seed, "want 0 or more")
    _check_files(trial)
    if trial.repeat_cache not in ([], ["cold"], ["cold", "warm"]):
        raise BadInput("--repeat-cache", ",".join(trial.repeat_cache), "want cold or cold,warm")
    _check_extra_body(trial.extra_body)
    limit = _limit(trial)
    found = _loads(trial, limit)
    dataset = data_sets.parse("--data", _data(trial, found))
    if path := getattr(dataset, "path", None):  # before anything is sent to the target
        readable("--data" if trial.data else "--load", path)
    goodput.bounds(trial.slo, trial.goodput)
    inputs, outputs = lengths.joint(
        _lengths("--input-tokens", trial.input_tokens),
        _lengths("--output-tokens", trial.output_tokens),
    )
    return Plan(
        trial=trial,
        seed=secrets.randbits(32) if trial.seed is None else trial.seed,
        loads=found,
        limit=limit,
        warmup=_warmup(trial.warmup),
        dataset=dataset,
        input_tokens=inputs,
        output_tokens=outputs,
        timeouts=_timeouts(trial),
    )


def _check_files(trial: Trial) -> None:
    """Those that go with the connection."""
    for name in ("ca_file", "api_key_file", "client_cert", "client_key"):
        path = getattr(trial, name)
        if path is not None:
            readable(f"--{name.replace('_', '-')}", path)
    if trial.client_key is not None and trial.client_cert is None:
        raise BadInput("--client-key", trial.client_key, "want its certificate in --client-cert")


def _check_extra_body(body: dict[str, Any]) -> None:
    """Refuse what would change what is measured behind its back."""
    for name in sorted(body.keys() & OUR_FIELDS):
        raise BadInput("--extra-body", name, "is set by servescope: want another field")


def readable(field: str, path: str) -> bytes:
    """The content of a file that the user names. Raises BadInput."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise BadInput(field, path, "want a plain file")
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(field, path, f"cannot be read ({error.strerror})") from None


def _loads(trial: Trial, limit: Limit) -> list[Load | Later]:
    found: list[Load | Later] = []
    for text in trial.load or [DEFAULT_LOAD]:
        found += loads.parse("--load", text)
    for load in found:
        if str(load).partition(":")[0] == "burst" and limit.requests is None:
            raise BadInput("--load", str(load), "a burst wants --requests")
    return found


def _data(trial: Trial, found: list[Load | Later]) -> str:
    """The data set as it was said, else the one that goes with the load."""
    if trial.data is not None:
        return trial.data
    traces = [load.path for load in found if isinstance(load, FromTrace)]
    return f"trace:{traces[0]}" if traces and trial.input_tokens is None else DEFAULT_DATA


def _limit(trial: Trial) -> Limit:
    requests, duration = trial.requests, trial.duration
    if requests is not None and not 1 <= requests <= MAX_REQUESTS:
        raise BadInput("--requests", requests, f"want 1 to {MAX_REQUESTS:,}")
    if requests is None and duration is None:
        return DEFAULT_LIMIT
    return Limit(
        requests=requests,
        duration_s=None if duration is None else _positive_s("--duration", duration),
    )


def _positive_s(field: str, text: str) -> float:
    seconds = parse_duration_s(field, text)
    if not 0 < seconds <= MAX_DURATION_S:
        raise BadInput(field, text, "want a time above 0 and up to 168h")
    return seconds


def _warmup(text: str | None) -> Limit | None:
    if text is None or text == "0":
        return None
    if text.isascii() and text.isdigit():
        return Limit(requests=min(int(text), MAX_REQUESTS))
    try:
        return Limit(duration_s=_positive_s("--warmup", text))
    except BadInput:
        raise BadInput(
            "--warmup", text, "want a number of requests or a time such as 10s"
        ) from None


def _lengths(field: str, text: str | None) -> Lengths | None:
    return None if text is None else lengths.parse(field, text)


def _timeouts(trial: Trial) -> Timeouts:
    total = _positive_s("--timeout", trial.timeout)
    return Timeouts(
        total_s=total,
        connect_s=min(total, _positive_s("--timeout-connect", trial.timeout_connect)),
        first_token_s=min(total, _positive_s("--timeout-first-token", trial.timeout_first_token)),
        between_tokens_s=min(
            total, _positive_s("--timeout-between-tokens", trial.timeout_between_tokens)
        ),
    )
