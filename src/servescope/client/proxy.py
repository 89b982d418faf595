"""Proxies: which one the environment names for a target, and the way through it.

A handshake is a generator: it yields what to send and is given what came, so that the load loop
goes through it without waiting and the probe with.
"""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from servescope.client.secret import Secret
from servescope.errors import BadInput, shorten
from servescope.protocols import ProtocolFault
from servescope.protocols.http1 import parse_head

Handshake = Generator[bytes, bytes, None]
KINDS = ("http", "socks5", "socks5h")
_GONE = "the proxy closed the connection"
_SOCKS_WORDS = (
    *("succeeded", "general failure", "not allowed by its rules", "network unreachable"),
    *("host unreachable", "connection refused", "time to live expired"),
    *("command not supported", "address type not supported"),
)
_SOCKS_SIZES = {1: 4, 3: 1, 4: 16}
"""Bytes of an address of this type; a name's are one for its length, and that many more."""


class Proxy(NamedTuple):
    """A proxy as the environment names it."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: Secret | None = None

    @property
    def url(self) -> str:
        """Its URL without secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"

    @property
    def basic(self) -> Secret | None:
        """User and password, as the header has them."""
        return None if self.password is None else _basic(self.user, self.password.value)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What a proxy is asked for on each new connection."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for a target; the variable that is there first decides. Raises BadInput.

    As curl does it, but for HTTP_PROXY, which curl ignores for the sake of CGI scripts.
    """
    if _excepted(host, port, environment):
        return None
    for lower in (f"{scheme}_proxy", "all_proxy"):
        for name in (lower, lower.upper()):
            if name in environment:
                return _parse(name, environment[name].strip())
    return None


def _excepted(host: str, port: int, environment: Mapping[str, str]) -> bool:
    said = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    entries = said.lower().replace(",", " ").split()
    return any(_is_exception(entry, host.lower().rstrip("."), port) for entry in entries)


def _is_exception(entry: str, host: str, port: int) -> bool:
    """`*`, a host with all below it, an address, a network, each perhaps with a port."""
    if entry == "*":
        return True
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit() and (":" not in name or name.startswith("[")):
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").strip(".")
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _parse(name: str, text: str) -> Proxy | None:
    if not text:
        return None
    want = "want http://, socks5:// or socks5h:// and HOST:PORT"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise BadInput(name, "***", want) from None
    kind = parts.scheme
    plain = text.isascii() and text.isprintable() and " " not in text
    if kind not in KINDS or not parts.hostname or not port or not plain:
        raise BadInput(name, "***" if "@" in text else text, want)
    if parts.username is None:
        return Proxy(kind, parts.hostname, port)
    user, password = unquote(parts.username), unquote(parts.password or "")
    if kind != "http" and not (0 < len(user.encode()) < 256 and 0 < len(password.encode()) < 256):
        raise BadInput(name, "***", "want user and password of 1 to 255 bytes")
    return Proxy(kind, parts.hostname, port, user, Secret(password))


def _basic(user: str, password: str) -> Secret:
    return Secret(b64encode(f"{user}:{password}".encode()).decode())


# --- handshakes -----------------------------------------------------------------------------------


def handshake(tunnel: Tunnel) -> Handshake:
    """Ask a proxy for a connection. Raises ConnectionError with its words where it refuses."""
    return _connect(tunnel) if tunnel.kind == "http" else _socks5(tunnel)


def _connect(tunnel: Tunnel) -> Handshake:
    """HTTP's CONNECT (RFC 9110, section 9.3.6)."""
    netloc = f"[{tunnel.host}]" if ":" in tunnel.host else tunnel.host
    lines = [f"CONNECT {netloc}:{tunnel.port} HTTP/1.1", f"Host: {netloc}:{tunnel.port}"]
    if tunnel.user:
        lines += [f"Proxy-Authorization: Basic {_basic(tunnel.user, tunnel.password).value}"]
    said, raw = "\r\n".join([*lines, "", ""]).encode("latin-1"), b""
    while True:
        came = yield said
        said = b""
        if not came:
            raise ConnectionError(_GONE)
        raw += came
        try:
            head = parse_head(raw)
        except ProtocolFault as fault:
            raise ConnectionError(f"proxy's answer: {fault}") from None
        if head is not None:
            break
    if head.status // 100 != 2:
        words = raw.partition(b"\n")[0].partition(b" ")[2].decode("latin-1").strip()
        raise ConnectionError(f"proxy answered {shorten(words)}")
    if len(raw) > head.size:
        raise ConnectionError("bytes came through the proxy before anything was asked")


def _socks5(tunnel: Tunnel) -> Handshake:
    """RFC 1928, and 1929 for user and password."""
    methods = b"\x00\x02" if tunnel.user else b"\x00"
    chosen = (yield from _ask(b"\x05%c%b" % (len(methods), methods), 2))[:2]
    if chosen == b"\x05\x02" and tunnel.user:
        user, password = tunnel.user.encode(), tunnel.password.encode()
        login = b"\x01%c%b%c%b" % (len(user), user, len(password), password)
        if (yield from _ask(login, 2))[1]:
            raise ConnectionError("proxy refused user and password")
    elif chosen == b"\x05\xff":
        wanted = "user and password" if not tunnel.user else "another way to log in"
        raise ConnectionError(f"proxy wants {wanted}")
    elif chosen != b"\x05\x00":
        raise ConnectionError("the proxy does not speak SOCKS5")
    where = _address(tunnel.host) + tunnel.port.to_bytes(2, "big")
    answer = yield from _ask(b"\x05\x01\x00" + where, 5)
    if answer[1]:
        word = _SOCKS_WORDS[answer[1]] if answer[1] < len(_SOCKS_WORDS) else "unknown"
        raise ConnectionError(f"proxy answered {answer[1]}, {word}")
    if answer[3] not in _SOCKS_SIZES:
        raise ConnectionError("the proxy does not speak SOCKS5")
    size = 4 + _SOCKS_SIZES[answer[3]] + (answer[4] if answer[3] == 3 else 0) + 2
    if size > len(answer):
        answer += yield from _ask(b"", size - len(answer))
    if len(answer) > size:
        raise ConnectionError("bytes came through the proxy before anything was asked")


def _address(host: str) -> bytes:
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        name = host.encode()
        if len(name) > 255:
            raise ConnectionError("the target's name is too long for a SOCKS proxy") from None
        return b"\x03%c%b" % (len(name), name)
    return (b"\x01" if len(packed) == 4 else b"\x04") + packed


def _ask(said: bytes, size: int) -> Generator[bytes, bytes, bytes]:
    """Say this; what came, once it is at least so many bytes."""
    answer = b""
    while len(answer) < size:
        came = yield said
        said = b""
        if not came:
            raise ConnectionError(_GONE)
        answer += came
    return answer
