"""Where a target is: the URL as typed, taken apart, and the address that takes a connection."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

import msgspec

from servescope import protocols
from servescope.client.proxy import Proxy, Tunnel, proxy_for
from servescope.client.secret import Secret
from servescope.errors import BadInput, Unreachable

UNIX = "http+unix"
PATIENCE_S = 10.0
MOST_PATH_BYTES = 107
"""Of a Unix socket, on Linux."""
_WANT = "want a URL such as http://127.0.0.1:8000"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a target is, taken from its URL, and the proxy on the way there."""

    scheme: str
    host: str
    """`localhost` where it is a Unix socket."""
    port: int
    path: str = ""
    """Of the Unix socket."""
    prefix: str
    """Path in front of the protocol's own, without a slash at its end."""
    protocols: tuple[str, ...] = ()
    """Protocols whose path the URL ends with; several engines call theirs `/generate`."""
    basic: Secret | None = None
    """User and password in the URL, as the header has them."""
    phrase: Secret | None = None
    """The password alone."""
    proxy: Proxy | None = None

    @property
    def netloc(self) -> str:
        """Host and port."""
        if self.path:
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without secrets."""
        where = quote(self.path, safe="") if self.path else self.netloc
        return f"{self.scheme}://{where}{self.prefix}"

    @property
    def secrets(self) -> list[Secret]:
        """All that must not be shown."""
        known = [self.basic, self.phrase]
        known += [] if self.proxy is None else [self.proxy.password, self.proxy.basic]
        return [secret for secret in known if secret is not None and secret.value]

    @property
    def relayed(self) -> bool:
        """Whether each request is asked of an HTTP proxy, instead of going through a tunnel."""
        return self.proxy is not None and (self.proxy.kind, self.scheme) == ("http", "http")

    def request_line(self, method: str, path: str) -> str:
        """The first line of a request; a proxy is told the whole URL."""
        return f"{method} {f'http://{self.netloc}' if self.relayed else ''}{path} HTTP/1.1"

    @property
    def hop_headers(self) -> dict[str, str]:
        """Headers for the proxy alone."""
        basic = self.proxy.basic if self.proxy is not None and self.relayed else None
        return {} if basic is None else {"Proxy-Authorization": f"Basic {basic.value}"}


def parse_target(text: str) -> Address:
    """The address in a URL or a bare host:port. Raises BadInput."""
    field = "TARGET"
    if text.startswith((f"{UNIX}://", "unix:")):
        return _unix(text)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
    except ValueError:
        raise BadInput(field, redact(text), _WANT) from None
    if parts.scheme not in ("http", "https"):
        raise BadInput(field, redact(text), _WANT)
    try:
        port = (443 if parts.scheme == "https" else 80) if parts.port is None else parts.port
    except ValueError:
        raise BadInput(field, redact(text), "want a port from 1 to 65535") from None
    if not parts.hostname or not port or not text.isascii() or any(c.isspace() for c in text):
        raise BadInput(field, redact(text), _WANT)
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


def _unix(text: str) -> Address:
    """`http+unix://%2Ftmp%2Fserver.sock/v1`, or `unix:/tmp/server.sock` and nothing more."""
    if text.startswith("unix:"):
        path, rest = text.removeprefix("unix:").removeprefix("//"), ""
    else:
        name, slash, rest = text.removeprefix(f"{UNIX}://").partition("/")
        path, rest = unquote(name), f"{slash}{rest}"
    odd = "?" in rest or "#" in rest or not rest.isascii() or any(c.isspace() for c in rest)
    if odd or not path or "\0" in path or len(path.encode()) > MOST_PATH_BYTES:
        want = f"want unix:PATH or {UNIX}://%2FPATH, of at most {MOST_PATH_BYTES} bytes"
        raise BadInput("TARGET", redact(text), want)
    prefix, found = _split_path(rest.rstrip("/"))
    return Address(
        scheme=UNIX, host="localhost", port=80, path=path, prefix=prefix, protocols=found
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


def through_proxy(address: Address, environment: Mapping[str, str]) -> Address:
    """The address with the proxy that the environment names for it. Raises BadInput."""
    if address.path:
        return address
    proxy = proxy_for(address.scheme, address.host, address.port, environment)
    return msgspec.structs.replace(address, proxy=proxy)


def tunnel_to(address: Address) -> Tunnel | None:
    """What the proxy is asked for on each connection; None: nothing. Raises OSError.

    Only `socks5://` has names looked up here; all others leave it to the proxy.
    """
    proxy = address.proxy
    if proxy is None or address.relayed:
        return None
    host = address.host
    if proxy.kind == "socks5":
        host = str(socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0][4][0])
    password = "" if proxy.password is None else proxy.password.value
    return Tunnel(proxy.kind, host, address.port, proxy.user, password)


def connect(address: Address, timeout_s: float) -> socket.socket:
    """A connection to a target, or to the proxy before it; nothing is said yet. Raises OSError."""
    if not address.path:
        proxy = address.proxy
        where = (address.host, address.port) if proxy is None else (proxy.host, proxy.port)
        return socket.create_connection(where, timeout_s)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address.path)
    except OSError:
        sock.close()
        raise
    return sock


def resolve_host(address: Address) -> tuple[int, tuple[str | int, ...]]:
    """Family and socket address of what takes our connections. Raises Unreachable."""
    try:
        with connect(address, PATIENCE_S) as trial:
            where = trial.getpeername()
            return int(trial.family), tuple(where) if isinstance(where, tuple) else (where,)
    except OSError as error:
        by = "" if address.proxy is None else f" by the proxy {address.proxy.url}"
        why = error.strerror or str(error)
        raise Unreachable(f"{address.url}: cannot connect{by}: {why}") from None
