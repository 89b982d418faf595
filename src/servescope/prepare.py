"""What all stages of a run share: the targets as they were found, the items, where results go."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import msgspec

import servescope
from servescope.client import workers
from servescope.client.address import (
    Address,
    parse_target,
    resolve_host,
    through_proxy,
    tunnel_to,
)
from servescope.client.feed import Settings
from servescope.client.probe import Dialogue, Endpoint, probe
from servescope.client.ruler import ruler_of
from servescope.client.secret import Secret, without
from servescope.client.tls import tls_context
from servescope.datasets import Item, ItemSource, Setting
from servescope.errors import BadInput, Unreachable
from servescope.experiment import Plan, Trial, readable
from servescope.protocols import Ask, WireProtocol
from servescope.protocols.http1 import MAX_BODY_BYTES
from servescope.rulers import load_tokenizer
from servescope.store import RunWriter

if TYPE_CHECKING:
    from servescope.records import Sample
    from servescope.rulers import Ruler
    from servescope.stage import Moment
    from servescope.store import Manifest, Stage

KEY_VARIABLES = ("SERVESCOPE_API_KEY", "OPENAI_API_KEY")
PROBE_TIMEOUT_S = 30.0


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def target(self, endpoint: Endpoint, ruler: Ruler, plan: Plan) -> None:
        """The target is known and the run begins."""

    def stage(self, stage: Stage) -> None:
        """A stage begins."""

    def progress(self, stage: Stage, moment: Moment) -> None:
        """Many times a second."""

    def samples(self, samples: Sequence[Sample]) -> None:
        """What the collectors have read since the last call."""

    def told(self, text: str) -> None:
        """Something that the user should know at once."""

    def draining(self, why: str) -> None:
        """The run was interrupted: nothing more is sent, what is in flight may end."""

    def clear(self) -> None:
        """The run is over, or something else is to be said."""


class Interrupt:
    """INT and TERM: the first ends the run in order, the second at once."""

    def __init__(self) -> None:
        self.level = 0
        self.name = ""
        self._at_s = 0.0

    def __enter__(self) -> Self:
        try:
            self._before = {
                n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not in the main thread: whoever called us handles signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.level += 1
        self.name = signal.Signals(number).name
        self._at_s = self._at_s or time.monotonic()

    def stop_level(self) -> int:
        """What the load processes are told: 1 offer no more, 2 end at once."""
        if not self.level:
            return 0
        return 2 if self.level > 1 or time.monotonic() - self._at_s > workers.DRAIN_S else 1


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What rendering requests and reading answers need, on this machine or on another."""

    plan: Plan
    endpoint: Endpoint
    wire: WireProtocol
    ruler: Ruler
    items: ItemSource
    count: Callable[[str], int] | None
    """A local tokenizer, to count answers that the server did not count."""
    secrets: list[Secret]


@dataclass(frozen=True, kw_only=True)
class Bench(Kit):
    """What all stages of a run share."""

    dialogues: list[Dialogue]
    """For plain questions to each target, outside any measurement."""
    targets: list[Settings]
    """Of the load processes that go to each target, without what a stage's own load decides."""
    loaded: list[str]
    """IP address of each target, or the name that its proxy knows; none of a Unix socket."""
    writer: RunWriter
    origin_ns: int
    interrupt: Interrupt
    watcher: Watcher | None


def prepare(
    plan: Plan,
    targets: list[str],
    key: Secret | None,
    writer: RunWriter,
    *,
    interrupt: Interrupt,
    watcher: Watcher | None,
) -> Bench:
    """Find out about the targets, and make everything that does not depend on a stage.

    The first target decides protocol, model and how tokens are counted; the others must be alike.
    """
    trial = plan.trial
    local = load_tokenizer(trial.tokenizer) if trial.tokenizer is not None else None
    found = [_find(plan, target, key) for target in targets]
    first, wire = found[0], found[0].wire
    for other in found[1:]:
        if other.endpoint.protocol != first.endpoint.protocol:
            want = f"want targets that speak the same protocol: {first.endpoint.protocol}"
            raise BadInput("TARGET", other.endpoint.url, want)
    check_context(plan, first.endpoint.context_tokens)
    ruler = ruler_of(first.dialogue, first.endpoint, wire, trial.tokenizer, stream=trial.stream)
    items = make_items(plan, ruler)
    _check_history(items, wire, trial)
    manifest = writer.manifest
    secrets = [secret for one in found for secret in one.dialogue.secrets]
    shown = without(secrets, first.endpoint)
    manifest.endpoint = msgspec.to_builtins(shown)
    manifest.targets = [one.endpoint.url for one in found]
    manifest.notes += dict.fromkeys(note for one in found for note in one.way)
    note_lengths(manifest, ruler)
    if watcher is not None:
        watcher.target(shown, ruler, plan)
    return Bench(
        plan=plan,
        endpoint=first.endpoint,
        wire=wire,
        ruler=ruler,
        items=items,
        targets=[one.settings for one in found],
        dialogues=[one.dialogue for one in found],
        loaded=[one.loaded for one in found if one.loaded],
        writer=writer,
        origin_ns=time.monotonic_ns(),
        count=None if local is None else lambda text: len(local(text)),
        secrets=secrets,
        interrupt=interrupt,
        watcher=watcher,
    )


def make_items(plan: Plan, ruler: Ruler) -> ItemSource:
    """The items of a run; what cannot be made is refused here, before the first request."""
    items = plan.dataset.items(
        Setting(
            seed=plan.seed,
            ruler=ruler,
            input_tokens=plan.input_tokens,
            output_tokens=plan.output_tokens,
        )
    )
    items(0)
    return items


def note_lengths(manifest: Manifest, ruler: Ruler) -> None:
    """Keep how prompts were made to length."""
    manifest.lengths = {
        "source": ruler.source,
        "exact": ruler.exact,
        "overhead_tokens": ruler.overhead,
    }


class _Found(NamedTuple):
    """A target, found out."""

    endpoint: Endpoint
    wire: WireProtocol
    dialogue: Dialogue
    settings: Settings

    @property
    def loaded(self) -> str:
        """Whom the load reaches: its IP address, or the name that a proxy knows."""
        address, settings = self.dialogue.address, self.settings
        if address.proxy is None:
            return "" if address.path else str(settings.address[0])
        return address.host if settings.tunnel is None else settings.tunnel.host

    @property
    def way(self) -> list[str]:
        """What the way to the target does to the figures, in sentences."""
        address = self.dialogue.address
        if address.path:
            return ["a Unix socket has no kernel timestamps: times are read by the load process"]
        if address.proxy is None:
            return []
        return [f"the proxy {address.proxy.url} is between: its time is in every figure"]


def _find(plan: Plan, target: str, key: Secret | None) -> _Found:
    trial = plan.trial
    address = parse_target(target)
    if trial.targets:  # no proxy has to do with an engine that was started here
        address = through_proxy(address, os.environ)
    where = resolve_host(address)
    dialogue = Dialogue(
        address,
        key=key,
        timeout_s=min(PROBE_TIMEOUT_S, plan.timeouts.total_s),
        context=_context(address, trial),
    )
    endpoint, wire = probe(
        dialogue,
        protocol=trial.protocol,
        model=trial.model,
        stream=trial.stream,
        extra=trial.extra_body,
    )
    settings = _settings(plan, address, dialogue, endpoint, wire, where=where)
    return _Found(endpoint, wire, dialogue, settings)


def _check_history(items: ItemSource, wire: WireProtocol, trial: Trial) -> None:
    """A protocol that repeats the prompt in its answer cannot carry a live history."""
    if wire.echoes_prompt and not items.alone:
        want = "want data without sessions: this protocol's answers repeat the prompt"
        raise BadInput("--data", trial.data, want)


def _context(address: Address, trial: Trial) -> ssl.SSLContext | None:
    """Files that cannot be used are refused, also where nothing uses them."""
    if address.scheme != "https" and not (trial.ca_file or trial.client_cert):
        return None
    context = tls_context(
        trial.ca_file,
        verify=not trial.insecure,
        client_cert=trial.client_cert,
        client_key=trial.client_key,
    )
    return context if address.scheme == "https" else None


def check_context(plan: Plan, context: int | None) -> None:
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
    dialogue: Dialogue,
    endpoint: Endpoint,
    wire: WireProtocol,
    *,
    where: tuple[int, tuple[str | int, ...]],
) -> Settings:
    timeouts, trial = plan.timeouts, plan.trial
    headers = dialogue.headers_of(wire) | address.hop_headers
    if not trial.keep_alive:
        headers["Connection"] = "close"
    try:
        tunnel = tunnel_to(address)
    except OSError as error:
        raise Unreachable(f"{address.url}: {error.strerror or error}") from None
    return Settings(
        family=where[0],
        address=where[1],
        server_name=address.host,
        tls=address.scheme == "https",
        verify=not trial.insecure,
        ca_file=trial.ca_file,
        client_cert=trial.client_cert,
        client_key=trial.client_key,
        tunnel=tunnel,
        keep_alive=trial.keep_alive,
        head=_head(address, endpoint.path, headers),
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
        address.request_line("POST", path),
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


def api_key(trial: Trial) -> Secret | None:
    """The key, from a file or from the environment. Raises BadInput."""
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


def encode(kit: Kit, item: Item) -> bytes:
    """The body of the request for an item, with the optional fields that the target takes."""
    fields = set(kit.endpoint.fields)
    if not item.pinned:
        fields -= {"ignore_eos", "min_tokens"}
    ask = Ask(
        prompt=item.prompt,
        output_tokens=item.output_tokens,
        model=kit.endpoint.model,
        stream=kit.plan.trial.stream,
        extra=kit.plan.trial.extra_body,
    )
    return kit.wire.encode(msgspec.structs.replace(ask, **dict.fromkeys(fields, True)))
