"""Finding out what a target is before it is measured: protocol, model, engine and what it can do.

Nothing is assumed of a server: each optional field of a request is tried, and given up where the
server refuses it. One small generation tells in the good case; it is sent before the run and is in
none of its figures.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from servescope import protocols
from servescope.client.address import Address
from servescope.client.once import exchange
from servescope.client.reading import words
from servescope.client.secret import Secret
from servescope.client.tls import words as tls_words
from servescope.errors import Unreachable, shorten
from servescope.protocols import Ask, Event, ProtocolFault, WireProtocol
from servescope.protocols._events import UNREADABLE

GUESSES = (
    ("openai-chat", "openai-completions"),
    ("openai-responses", "anthropic-messages", "tgi", "lightllm", "sglang", "llamacpp", "vllm"),
)
"""Where a URL does not tell the protocol; the others only where OpenAI's two are not there."""
_NOT_THERE = (404, 405)
PROBE_TOKENS = 4
PROBE_TEXT = "Please continue this story: One morning the old clock in the hall"
MAX_TRIES = 12
MOST_CHARACTERS = 200
"""Of a name that a server gives itself."""
MAX_TRANSIENT = 3
_KNOWN_ENGINES = ("vllm", "sglang", "llamacpp", "lightllm")


class Endpoint(msgspec.Struct, kw_only=True):
    """What is known of a target; the manifest keeps it."""

    url: str
    protocol: str
    path: str
    model: str
    models: list[str] = []
    engine: str | None = None
    engine_version: str | None = None
    context_tokens: int | None = None
    fields: list[str] = []
    """Optional fields that the server takes: names of `Ask`."""
    refused: list[str] = []
    """Optional fields that it refused."""
    usage: str = "none"
    """Token counts: none, end (at the end of an answer), each (in every chunk)."""
    tokenize: bool = False
    probe_input_tokens: int | None = None
    """What the server counted for `PROBE_TEXT`, its own additions included."""


class Dialogue:
    """Plain requests to a target, one after another, outside any measurement."""

    def __init__(
        self,
        address: Address,
        *,
        key: Secret | None,
        timeout_s: float,
        context: ssl.SSLContext | None,
    ) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._context = context
        self.headers = {"User-Agent": "servescope (probe)", "Accept-Encoding": "identity"}
        self.secrets = [*([] if key is None else [key]), *address.secrets]
        self.key = key
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key.value}"
        elif address.basic is not None:
            self.headers["Authorization"] = f"Basic {address.basic.value}"

    def headers_of(self, wire: WireProtocol) -> dict[str, str]:
        """Headers of a request beyond the usual ones, the key's among them."""
        headers = dict(wire.headers)
        if "Authorization" in self.headers:
            headers["Authorization"] = self.headers["Authorization"]
        if self.key is not None and wire.key_header != "Authorization":
            headers[wire.key_header] = self.key.value
        return headers

    def hide(self, text: str) -> str:
        """What a server said, with stars for the secrets that it repeats."""
        for secret in self.secrets:
            text = secret.hide(text)
        return text

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of one answer; raises OSError.

        A connection of its own each time: a server that closes early disturbs nothing then.
        """
        sent = self.headers | dict(headers or {})
        sent |= {"Content-Type": "application/json"} if body else {}
        return exchange(
            self.address,
            self._context,
            method=method,
            path=self.address.prefix + path,
            headers=sent,
            body=body or b"",
            timeout_s=min(self.timeout_s, timeout_s or self.timeout_s),
        )

    def get_json(self, path: str) -> Any:  # noqa: ANN401 (whatever JSON the server sent)
        """The JSON at a path; None where there is none."""
        try:
            status, body = self.ask("GET", path)
            return msgspec.json.decode(body) if status == 200 and body else None
        except (OSError, *UNREADABLE):
            return None

    def tokenize(self, model: str, text: str) -> list[int] | None:
        """Token ids by the server's own `/tokenize`, without special tokens; None: it has none.

        Every engine finds the text under the name it has for it; TGI answers with objects.
        """
        ask: dict[str, Any] = {"model": model, "add_special_tokens": False}
        ask |= dict.fromkeys(("prompt", "content", "inputs"), text)
        try:
            status, body = self.ask("POST", "/tokenize", msgspec.json.encode(ask))
            if status != 200:
                return None
            found = msgspec.json.decode(body)
            ids = [one["id"] for one in found] if isinstance(found, list) else found["tokens"]
            return msgspec.convert(ids, list[int])
        except (OSError, *UNREADABLE, LookupError, TypeError):
            return None


def probe(
    dialogue: Dialogue,
    *,
    protocol: protocols.Declared | None,
    model: str | None,
    stream: bool,
    extra: dict[str, Any],
) -> tuple[Endpoint, WireProtocol]:
    """Find out what a target is and what it takes. Raises Unreachable."""
    address = dialogue.address
    listing = dialogue.get_json("/v1/models")
    models = _models(listing)
    names = [str(entry["id"]) for entry in models]
    endpoint = Endpoint(
        url=address.url,
        protocol="",
        path="",
        model=model or (names[0] if names else ""),
        models=[name[:MOST_CHARACTERS] for name in names[:50]],
    )
    _engine(dialogue, endpoint, models)
    reasons: dict[str, list[str]] = {}
    answered = False
    unended: tuple[_Attempts, str] | None = None
    for guesses in _guesses(address, protocol):
        there = False
        for name, wire in guesses.items():
            attempts = _Attempts(dialogue, wire, endpoint, stream=stream, extra=extra)
            reason = attempts.run()
            if reason is None and attempts.ended:
                return _found(dialogue, endpoint, attempts, name)
            if reason is None:  # perhaps another protocol's answers, which this one half reads
                unended = unended or (attempts, name)
                reason = "an answer without an end"
            reasons.setdefault(dialogue.hide(reason), []).append(f"{name}, {attempts.path}")
            there |= attempts.there
            answered |= attempts.answered
        if unended is not None:
            return _found(dialogue, endpoint, *unended)
        said = [f"{' and '.join(where)}: {reason}" for reason, where in reasons.items()]
        if there:
            break
    else:
        if protocol is None:
            first, (where, *_) = next(iter(reasons.items()))  # the others say the same
            said = [f"{where}: {first}"]
            said.append("nor is any other protocol there: is this the server's base URL?")
    if not endpoint.model and there and answered:
        said.append("no model in /v1/models; name one with --model")
    if not answered and address.scheme == "https":
        said.append("does the server speak TLS there, or want a certificate (--client-cert)?")
    raise Unreachable(f"{address.url} answers nothing useful: " + "; ".join(said))


def _found(
    dialogue: Dialogue, endpoint: Endpoint, attempts: _Attempts, name: str
) -> tuple[Endpoint, WireProtocol]:
    endpoint.protocol, endpoint.path = name, dialogue.address.prefix + attempts.path
    attempts.tell(endpoint)
    endpoint.tokenize = bool(dialogue.tokenize(endpoint.model, " a"))
    return endpoint, attempts.wire


def _guesses(
    address: Address, said: protocols.Declared | None
) -> Iterator[dict[str, WireProtocol]]:
    """The protocols to try, in order; a later group only where nothing of the one before is."""
    if said is not None:
        name = said if isinstance(said, str) else str(said.get("name"))
        yield {name: protocols.declared("--protocol", said)}
        return
    known = protocols.known()
    for group in [address.protocols] if address.protocols else GUESSES:
        yield {name: known[name] for name in group}


def _models(listing: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (whatever JSON the server sent)
    data = _object(listing).get("data")
    entries = data if isinstance(data, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and "id" in entry]


def _engine(dialogue: Dialogue, endpoint: Endpoint, models: list[dict[str, Any]]) -> None:
    """Engine, version and context length from the info endpoints; all of it may stay unknown."""
    entry = next((m for m in models if m["id"] == endpoint.model), models[0] if models else {})
    owner = str(entry.get("owned_by", "")).lower()
    endpoint.engine = owner if owner in _KNOWN_ENGINES else None
    context = entry.get("max_model_len")
    if endpoint.engine == "llamacpp":
        props = _object(dialogue.get_json("/props"))
        version = props.get("build_info")
        context = _object(props.get("default_generation_settings")).get("n_ctx")
    else:
        version = _object(dialogue.get_json("/version")).get("version")
    if version is not None:
        endpoint.engine_version = str(version)[:MOST_CHARACTERS]
    if isinstance(context, int) and context > 0:
        endpoint.context_tokens = context


def _object(found: Any) -> dict[str, Any]:  # noqa: ANN401 (whatever JSON the server sent)
    return found if isinstance(found, dict) else {}


class _Attempts:
    """Small generations until one is answered, giving up what the server refuses."""

    def __init__(
        self,
        dialogue: Dialogue,
        wire: WireProtocol,
        endpoint: Endpoint,
        *,
        stream: bool,
        extra: dict[str, Any],
    ) -> None:
        self.dialogue, self.wire, self.endpoint = dialogue, wire, endpoint
        self.stream, self.extra = stream, extra
        self.path = wire.path(stream=stream)
        self.keep = [f for f in wire.optional if stream or f not in ("usage", "usage_each")]
        self.refused: list[str] = []
        self.events: list[Event] = []
        """Of the answer."""
        self.there = True
        """Whether the server knows the path."""
        self.answered = False
        """Whether anything came back."""

    def run(self) -> str | None:
        """None when it was answered; else why not, in the server's words."""
        transient, reason = 0, "no answer"
        for _ in range(MAX_TRIES):
            try:
                headers = self.dialogue.headers_of(self.wire)
                status, body = self.dialogue.ask("POST", self.path, self._body(), headers)
            except ssl.SSLError as error:
                raise Unreachable(f"{self.dialogue.address.url}: {tls_words(error)}") from None
            except OSError as error:
                transient, reason = transient + 1, str(error) or type(error).__name__
                if isinstance(error, TimeoutError):
                    break  # who is silent once is silent again: the user waits
            else:
                self.answered = True
                if status == 200:
                    transient, reason = self._read(body, transient)
                    if not reason:
                        return None
                else:
                    reason = f"HTTP {status}: {shorten(self.dialogue.hide(words(body)), 300)}"
                    refusals = (400, 422, self.wire.refused_with)
                    refused = status in refusals and self._give_up(reason)
                    transient += 0 if refused else 1
                    if status in _NOT_THERE:
                        self.there = False
                        break
            if transient >= MAX_TRIES or transient >= MAX_TRANSIENT:
                break
        return reason

    def _body(self) -> bytes:
        flags = dict.fromkeys([*self.keep], True)
        return self.wire.encode(
            Ask(
                prompt=PROBE_TEXT,
                output_tokens=max(PROBE_TOKENS, self.wire.least_tokens),
                model=self.endpoint.model,
                stream=self.stream,
                extra=self.extra,
                **flags,
            )
        )

    def _give_up(self, reason: str) -> bool:
        """Drop one optional field: the one that the server names, else the least needed."""
        if "max_completion_tokens" in reason and "max_completion_tokens" not in self.keep:
            self.keep.append("max_completion_tokens")
            return True
        names = {"usage_each": "continuous_usage_stats", "usage": "stream_options"}
        left = [name for name in self.keep if name in self.wire.optional]
        if not left:
            return False
        named = [name for name in left if names.get(name, name) in reason]
        chosen = named[0] if named else left[0]
        self.keep.remove(chosen)
        self.refused.append(chosen)
        return True

    def _read(self, body: bytes, transient: int) -> tuple[int, str]:
        try:
            events = events_of(self.wire, body, stream=self.stream)
        except ProtocolFault as fault:
            return transient + 1, str(fault)
        errors = [event.error for event in events if event.error]
        if errors:
            return transient + 1, errors[0]
        self.events = events
        return transient, ""

    @property
    def ended(self) -> bool:
        """Whether the answer came to an end of this protocol."""
        return not self.stream or any(e.finish_reason or e.end for e in self.events)

    def tell(self, endpoint: Endpoint) -> None:
        """Note what was learned of the target."""
        contents = [event for event in self.events if event.has_content]
        counted = [event for event in self.events if event.output_tokens is not None]
        each = [event for event in contents if event.output_tokens is not None]
        if self.stream and len(contents) > 1 and len(each) == len(contents):
            endpoint.usage = "each"
        elif counted:
            endpoint.usage = "end"
        endpoint.probe_input_tokens = next(
            (event.input_tokens for event in reversed(self.events) if event.input_tokens), None
        )
        if endpoint.usage != "each" and "usage_each" in self.keep and len(contents) > 1:
            self.keep.remove("usage_each")  # taken, but without effect
        endpoint.fields, endpoint.refused = self.keep, self.refused


def events_of(wire: WireProtocol, body: bytes, *, stream: bool) -> list[Event]:
    """What an answer says, in pieces or in one. Raises ProtocolFault."""
    if body.lstrip()[:1] == b"{" and not (stream and wire.streams_json):
        return [wire.decode_whole(body)]
    decoder = wire.decoder()
    return [*decoder.feed(body), *decoder.close()]
