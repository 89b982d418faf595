"""Where a target is: the URL as typed, taken apart, and the address that takes a connection."""

from __future__ import annotations

import socket
from base64 import b64encode
from urllib.parse import unquote, urlsplit

import msgspec

from servescope import protocols
from servescope.client.secret import Secret
from servescope.errors import BadInput, Unreachable


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a target is, taken from its URL."""

    scheme: str
    host: str
    port: int
    prefix: str
    """Path in front of the protocol's own, without a slash at its end."""
    protocols: tuple[str, ...] = ()
    """Protocols whose path the URL ends with; several engines call theirs `/generate`."""
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
    prefix, found = _split_path(parts.path.rstrip("/"))
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
        protocols=found,
        basic=basic,
        phrase=phrase,
    )


def _split_path(path: str) -> tuple[str, tuple[str, ...]]:
    """What stands before the path of a protocol, and which protocols have it; longest path first.

    `/v1/completions` is no `/completions` below `/v1`.
    """
    owners: dict[str, list[str]] = {}
    for name, wire in protocols.known().items():
        for own in {wire.path(stream=True), wire.path(stream=False)}:
            owners.setdefault(own, []).append(name)
    for own in sorted(owners, key=len, reverse=True):
        if path.endswith(own):
            return path[: -len(own)], tuple(owners[own])
    return path.removesuffix("/v1"), ()


def redact(url: str) -> str:
    """A URL as typed, without user and password, and without what a query may hold."""
    url, question, _ = url.partition("?")
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = rest.partition("/")
    hidden = "?***" if question else ""
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}{hidden}"


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
