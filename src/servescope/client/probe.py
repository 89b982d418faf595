"""Finding out what a target is before it is measured: protocol, model, engine and what it can do.

Nothing is assumed of a server: each optional field of a request is tried, and given up where the
server refuses it. One small generation tells in the good case; it is sent before the run and is in
none of its figures.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from servescope import plugins
from servescope.client.reading import words
from servescope.client.secret import Secret
from servescope.errors import BadInput, Unreachable, shorten
from servescope.protocols import Ask, Event, ProtocolFault, WireProtocol

GUESSES = ("openai-chat", "openai-completions")
PROBE_TOKENS = 4
PROBE_TEXT = "Please continue this story: One morning the old clock in the hall"
MAX_TRIES = 12
MAX_TRANSIENT = 3
_MAX_BYTES = 4 << 20
_KNOWN_ENGINES = ("vllm", "sglang", "llamacpp", "lightllm")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a target is, taken from its URL."""

    scheme: str
    host: str
    port: int
    prefix: str
    """Path in front of the protocol's own, without a slash at its end."""
    protocol: str | None = None
    """Protocol whose path the URL ends with."""
    basic: Secret | None = None
    """User and password in the URL, as the header has them."""
    phrase: Secret | None = None
    """The password alone."""

    @property
    def netloc(self) -> str:
        """Host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without secrets."""
        return f"{self.scheme}://{self.netloc}{self.prefix}"


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


def parse_target(text: str) -> Address:
    """The address in a URL or a bare host:port. Raises BadInput."""
    field = "TARGET"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
    except ValueError:
        raise BadInput(field, redact(text), "want a URL such as http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https"):
        raise BadInput(field, redact(text), "want a URL such as http://127.0.0.1:8000")
    try:
        port = (443 if parts.scheme == "https" else 80) if parts.port is None else parts.port
    except ValueError:
        raise BadInput(field, redact(text), "want a port from 1 to 65535") from None
    if not parts.hostname or not port or not text.isascii() or any(c.isspace() for c in text):
        raise BadInput(field, redact(text), "want a URL such as http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise BadInput(field, redact(text), "want a URL without ? and #")
    prefix, protocol = _split_path(parts.path.rstrip("/"))
    basic = phrase = None
    if parts.username is not None:
        phrase = Secret(unquote(parts.password or ""))
        pair = f"{unquote(parts.username)}:{phrase.value}"
        basic = Secret(b64encode(pair.encode()).decode())
    return Address(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port,
        prefix=prefix,
        protocol=protocol,
        basic=basic,
        phrase=phrase,
    )


def _split_path(path: str) -> tuple[str, str | None]:
    for name, kind in plugins.find("servescope.protocols").items():
        own: str = kind.path  # type: ignore[attr-defined]
        if path.endswith(own):
            return path[: -len(own)], name
    return path.removesuffix("/v1"), None


def redact(url: str) -> str:
    """A URL as typed, without user and password."""
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


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
        known = (key, address.basic, address.phrase)
        self.secrets = [secret for secret in known if secret is not None and secret.value]
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key.value}"
        elif address.basic is not None:
            self.headers["Authorization"] = f"Basic {address.basic.value}"

    def hide(self, text: str) -> str:
        """What a server said, with stars for the secrets that it repeats."""
        for secret in self.secrets:
            text = secret.hide(text)
        return text

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one answer; raises OSError or HTTPException.

        A connection of its own each time: a server that closes early disturbs nothing then.
        """
        where = (self.address.host, self.address.port)
        connection: http.client.HTTPConnection
        if self.address.scheme == "https":
            connection = http.client.HTTPSConnection(
                *where, timeout=self.timeout_s, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(*where, timeout=self.timeout_s)
        headers = self.headers | ({"Content-Type": "application/json"} if body else {})
        try:
            connection.request(method, self.address.prefix + path, body, headers)
            response = connection.getresponse()
            found = _drain(response, time.monotonic() + self.timeout_s)
        finally:
            connection.close()
        return response.status, found

    def get_json(self, path: str) -> Any:  # noqa: ANN401 (whatever JSON the server sent)
        """The JSON at a path; None where there is none."""
        try:
            status, body = self.ask("GET", path)
            return msgspec.json.decode(body) if status == 200 and body else None
        except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def tokenize(self, model: str, text: str) -> list[int] | None:
        """Token ids by the server's own `/tokenize`, without special tokens; None: it has none."""
        ask = {"model": model, "prompt": text, "content": text, "add_special_tokens": False}
        try:
            status, body = self.ask("POST", "/tokenize", msgspec.json.encode(ask))
            ids = msgspec.json.decode(body)["tokens"] if status == 200 else None
            return msgspec.convert(ids, list[int] | None)
        except (OSError, http.client.HTTPException, msgspec.MsgspecError, LookupError, TypeError):
            return None


def _drain(response: http.client.HTTPResponse, until_s: float) -> bytes:
    """The body, or as much of it as comes in time: a probe must end even if the answer does not."""
    pieces, size = [], 0
    while size < _MAX_BYTES and time.monotonic() < until_s:
        piece = response.read1(65536)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def resolve_host(address: Address) -> tuple[int, tuple[str | int, ...]]:
    """Family and socket address of a target that takes a connection. Raises Unreachable."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"{address.url}: {error.strerror or error}") from None
    reason = "no address"
    for family, _, _, _, where in found:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.settimeout(10)
                trial.connect(where)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return int(family), tuple(where)  # type: ignore[arg-type]
    raise Unreachable(f"{address.url}: cannot connect: {reason}")


def probe(
    dialogue: Dialogue,
    *,
    protocol: str | None,
    model: str | None,
    stream: bool,
    extra: dict[str, Any],
) -> Endpoint:
    """Find out what a target is and what it takes. Raises Unreachable."""
    address = dialogue.address
    listing = dialogue.get_json("/v1/models")
    models = _models(listing)
    names = [str(entry["id"]) for entry in models]
    endpoint = Endpoint(
        url=address.url,
        protocol=protocol or address.protocol or "",
        path="",
        model=model or (names[0] if names else ""),
        models=[dialogue.hide(name) for name in names[:50]],
    )
    _engine(dialogue, endpoint, models)
    guesses = [endpoint.protocol] if endpoint.protocol else list(GUESSES)
    reasons = []
    for name in guesses:
        wire: WireProtocol = plugins.make("--protocol", "servescope.protocols", name, {})
        reason = _Trial(dialogue, wire, endpoint, stream=stream, extra=extra).run()
        if reason is None:
            endpoint.protocol, endpoint.path = name, address.prefix + wire.path
            break
        reasons.append(dialogue.hide(f"{wire.path}: {reason}"))
    else:
        if not endpoint.model:
            reasons.append("no model in /v1/models; name one with --model")
        raise Unreachable(f"{address.url} answers nothing useful: " + "; ".join(reasons))
    endpoint.tokenize = bool(dialogue.tokenize(endpoint.model, " a"))
    return endpoint


def _models(listing: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (whatever JSON the server sent)
    data = listing.get("data") if isinstance(listing, dict) else None
    entries = data if isinstance(data, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and "id" in entry]


def _engine(dialogue: Dialogue, endpoint: Endpoint, models: list[dict[str, Any]]) -> None:
    """Engine, version and context length from the info endpoints; all of it may stay unknown."""
    entry = next((m for m in models if m["id"] == endpoint.model), models[0] if models else {})
    owner = str(entry.get("owned_by", "")).lower()
    endpoint.engine = owner if owner in _KNOWN_ENGINES else None
    context = entry.get("max_model_len")
    if endpoint.engine == "llamacpp":
        props = dialogue.get_json("/props") or {}
        endpoint.engine_version = props.get("build_info")
        context = (props.get("default_generation_settings") or {}).get("n_ctx")
    else:
        found = dialogue.get_json("/version")
        if isinstance(found, dict) and "version" in found:
            endpoint.engine_version = dialogue.hide(str(found["version"])[:100])
    if isinstance(context, int) and context > 0:
        endpoint.context_tokens = context


class _Trial:
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
        self.keep = [f for f in wire.optional if stream or f not in ("usage", "usage_each")]
        self.refused: list[str] = []

    def run(self) -> str | None:
        """None when it was answered; else why not, in the server's words."""
        transient, reason = 0, "no answer"
        for _ in range(MAX_TRIES):
            try:
                status, body = self.dialogue.ask("POST", self.wire.path, self._body())
            except (OSError, http.client.HTTPException) as error:
                transient, reason = transient + 1, str(error) or type(error).__name__
                if isinstance(error, TimeoutError):
                    break  # who is silent once is silent again: the user waits
            else:
                if status == 200:
                    transient, reason = self._read(body, transient)
                    if not reason:
                        return None
                else:
                    reason = f"HTTP {status}: {shorten(self.dialogue.hide(words(body)), 300)}"
                    refused = status in (400, 422) and self._give_up(reason)
                    transient += 0 if refused else 1
            if transient >= MAX_TRIES or transient >= MAX_TRANSIENT:
                break
        return reason

    def _body(self) -> bytes:
        flags = dict.fromkeys([*self.keep], True)
        return self.wire.encode(
            Ask(
                prompt=PROBE_TEXT,
                output_tokens=PROBE_TOKENS,
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
            events = self._events(body)
        except ProtocolFault as fault:
            return transient + 1, str(fault)
        errors = [event.error for event in events if event.error]
        if errors:
            return transient + 1, errors[0]
        contents = [event for event in events if event.has_content]
        counted = [event for event in events if event.output_tokens is not None]
        each = [event for event in contents if event.output_tokens is not None]
        if self.stream and len(contents) > 1 and len(each) == len(contents):
            self.endpoint.usage = "each"
        elif counted:
            self.endpoint.usage = "end"
        self.endpoint.probe_input_tokens = next(
            (event.input_tokens for event in reversed(events) if event.input_tokens), None
        )
        if self.endpoint.usage != "each" and "usage_each" in self.keep and len(contents) > 1:
            self.keep.remove("usage_each")  # taken, but without effect
        self.endpoint.fields, self.endpoint.refused = self.keep, self.refused
        return transient, ""

    def _events(self, body: bytes) -> list[Event]:
        if body.lstrip()[:1] == b"{":
            return [self.wire.decode_whole(body)]
        decoder = self.wire.decoder()
        return [*decoder.feed(body), *decoder.close()]
